"""Plans from files: whatever stands in one, it is refused with a PlanError or does no more than a plan may do."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from rich.console import Console

from slim_prune.errors import PlanError
from slim_prune.prune_plan import PrunePlan
from slim_prune.schema import MAX_BYTES


def nested(depth: int):
    value: object = {"value": 1}
    for _ in range(depth):
        value = {"list": [value]}
    return value


HUGE = (2**31, 2**63, 2**70, 10**400)
VALUES = (
    None, True, -1, 0, 1, *HUGE, 0.5, -0.0, float("nan"), float("inf"), "", "a", "x" * 5000, "\x00", [], [[]], [2, 1],
    [True], [-1], [2**70], {}, {"a": 1}, {"": None}, nested(2000),
)  # fmt: skip


def places(value, path=()):
    """Yield the path of every value inside ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def parent_of(data, path):
    for key in path[:-1]:
        data = data[key]
    return data


def mutations(data):
    """Yield copies of ``data`` with one value replaced, removed, doubled, or with a strange key beside it."""
    for path in places(data):
        for value in VALUES:
            changed = copy.deepcopy(data)
            parent_of(changed, path)[path[-1]] = value
            yield path, changed
        changed = copy.deepcopy(data)
        del parent_of(changed, path)[path[-1]]
        yield path, changed
        changed = copy.deepcopy(data)
        parent = parent_of(changed, path)
        if isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        else:
            parent["strange"] = copy.deepcopy(parent[path[-1]])
        yield path, changed


def test_every_mutation_of_a_plan_is_refused_or_harmless(net, plan) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    refused = total = 0
    for path, data in mutations(plan.to_json()):
        total += 1
        try:
            read = PrunePlan.from_json(data)
        except PlanError:
            refused += 1
            continue
        assert PrunePlan.from_json(read.to_json()).to_json() == read.to_json(), path
        Console(file=io.StringIO()).print(read.show())
        read.summary()
        try:
            read.diff(plan)
            pruned = read.apply(net)
        except PlanError:
            continue
        for name, tensor in pruned.state_dict().items():  # never larger than it was
            assert all(new <= old for new, old in zip(tensor.shape, before[name].shape, strict=True)), path
        for module, original in ((pruned.a, net.a), (pruned.norm, net.norm)):
            for name, value in vars(original).items():
                if type(value) is int:
                    assert vars(module)[name] <= value, path
    assert refused > 0.8 * total
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def doubled(data, key):
    rows = data["edits"][key]
    rows.append(copy.deepcopy(rows[0]))


CHANGES = {
    "attribute grows": (lambda d: d["edits"]["attributes"][0].update(after=99999), "larger than"),
    "attribute of another kind": (lambda d: d["edits"]["attributes"][0].update(after=[3]), "not of the kind"),
    "attribute that is no size": (lambda d: d["edits"]["attributes"][0].update(names=["a.stride"]), "may not be set"),
    "attribute twice": (lambda d: doubled(d, "attributes"), "the same attribute is set twice"),
    "cut twice": (lambda d: doubled(d, "tensors"), "the same dimension is cut twice"),
    "group twice": (lambda d: d["groups"].append(copy.deepcopy(d["groups"][0])), "a group stands there twice"),
    "tensor without a shape": (lambda d: d["shapes"].pop("a.weight"), "expects 6 indices"),
    "index beyond int64": (lambda d: d["indices"]["kept0"].append(2**70), "indices.kept0"),
    "unit beyond int64": (lambda d: d["groups"][0]["kept"].append(2**70), "groups.0.kept"),
    "shape beyond int64": (lambda d: d["shapes"].update({"a.weight": [2**70]}), "shapes.a.weight"),
    "deep inputs": (lambda d: d.update(inputs={"inputs": nested(5000), "floating": None}), "nested deeper than"),
    "strange inputs": (lambda d: d.update(inputs={"inputs": {"code": "x"}, "floating": None}), "malformed"),
    "infinite budget": (lambda d: d["budget"].update(macs=float("inf")), "budget.macs"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_what_a_record_may_not_do_a_plan_may_not_do(plan, change, message) -> None:
    data = plan.to_json()
    change(data)
    with pytest.raises(PlanError, match=message):
        PrunePlan.from_json(data)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"inputs": ' + "[" * 5000 + "]" * 5000 + "}"])
def test_deep_nesting_is_one_clear_error(tmp_path, text) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError, match=r"plan\.json"):
        PrunePlan.load(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path) -> None:
    path = tmp_path / "plan.json"
    with open(path, "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(PlanError, match="larger than 128 MB"):
        PrunePlan.load(path)
