"""Records of ``quant.static`` that somebody altered: each is refused by a CheckpointError, and no text of it runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quant_nets import Residual
from torch import nn

from slim_core.errors import CheckpointError
from slim_core.workload import Transform
from slim_quant import quantize
from slim_quant.record import StaticReplayer

Keys = tuple[str | int, ...]
_STORAGE = ("axis", "packing", "scale", "zero_point")  # of schemes: checked where the file's tensors are read


def nested() -> list[Any]:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    return value


WRONG: dict[str, Any] = {
    "nothing": None,
    "a truth value": True,
    "a negative number": -1,
    "a large number": 10**30,
    "a number too long to print": 10**5000,
    "not a number": math.nan,
    "infinity": math.inf,
    "no text": "",
    "text with spaces": "a b",
    "text beyond ASCII": "é\n",
    "a path": "../x",
    "an empty part": "a..b",
    "a long name": "a" * 100_000,
    "an empty list": [],
    "an empty object": {},
    "deep nesting": nested(),
    "an object": {"name": "x"},
}


@pytest.fixture(scope="module")
def transform() -> Transform:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    return quantize(Residual().eval(), [x], example_inputs=(x,)).transform


def replay(transform: Transform, data: Any) -> nn.Module:
    with torch.device("meta"):
        model = Residual()
        inputs = (torch.empty(2, 3, 16, 16),)
    return StaticReplayer().replay(model, replace(transform, data=data), inputs)


def paths(value: Any, start: Keys = ()) -> Iterator[Keys]:
    """Every key of a record; of long lists and of the schemes the first two entries."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, inner in items[:2] if isinstance(value, list) or start == ("schemes",) else items:
        if not (start[:1] == ("schemes",) and key in _STORAGE):
            yield (*start, key)
            if isinstance(inner, dict | list):
                yield from paths(inner, (*start, key))


def changed(data: Any, where: Keys, value: Any) -> Any:
    data = copy.deepcopy(dict(data))
    inner = data
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    return data


def legal(where: Keys, value: Any) -> bool:
    if where[-1] == "symmetric":
        return isinstance(value, bool)
    return where in (("placement", "activations"), ("placement", "weights")) and value == []


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_value_in_any_place_is_refused(transform: Transform, kind: str) -> None:
    places = [where for where in paths(transform.data) if not legal(where, WRONG[kind])]
    assert {where[0] for where in places} == {"target", "activation", "placement", "schemes"}
    for where in places:
        with pytest.raises(CheckpointError) as caught:
            replay(transform, changed(transform.data, where, WRONG[kind]))
        assert caught.value.field.startswith(f"quant.static.{where[0]}")
        assert len(str(caught.value)) < 1000


def test_an_unknown_or_missing_key_is_refused(transform: Transform) -> None:
    for where in ((), ("activation",), ("placement",), ("schemes", "stem.weight")):
        with pytest.raises(CheckpointError, match="unknown key 'extra'"):
            replay(transform, changed(transform.data, (*where, "extra"), 1))
    for key in ("activation", "placement", "schemes"):
        with pytest.raises(CheckpointError, match=f"lacks '{key}'"):
            replay(transform, {name: value for name, value in transform.data.items() if name != key})


@pytest.mark.parametrize(
    "form", ['x" if {} else "x', 'x"); {} #', "x.scale; {}", "x')\n{}", "x\n    {}\n", "{}", "x = {}"]
)
def test_text_that_would_be_code_never_runs(transform: Transform, tmp_path: Path, form: str) -> None:
    mark = tmp_path / "ran"
    text = form.format(f"open({str(mark)!r}, 'w')")
    data = copy.deepcopy(dict(transform.data))
    first = data["placement"]["activations"][0]
    spoiled = [
        changed(data, ("placement", "activations", 0), text),
        changed(data, ("placement", "activations", 0), [first, text]),
        changed(data, ("placement", "activations", 0), [text, first]),
        changed(data, ("placement", "weights", 0, 0), text),
        changed(data, ("placement", "weights", 0, 2), [text]),
        changed(data, ("schemes",), {text: data["schemes"]["stem.weight"]}),
        changed(data, ("target",), text),
    ]
    for record in spoiled:
        with pytest.raises(CheckpointError):
            replay(transform, record)(torch.randn(2, 3, 16, 16))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("activations", 0), "output"),  # a node that is no activation
        (("activations", 0), "stem_weight"),  # not in the graph, or a weight
        (("activations", 0), ["x", "relu"]),  # the scale of a node that has another's
        (("activations", 0), ["x", "missing"]),
        (("weights", 0, 0), "head.weight"),  # a weight that the layer does not use
        (("weights", 0, 0), "stem_norm.running_mean"),
        (("weights", 0, 1), 7),
        (("weights", 0, 2), ["relu"]),
        (("weights", 0, 2), ["x"]),
        (("weights", 0, 2), ["output"]),
    ],
)
def test_names_of_the_model_in_the_wrong_place_are_refused(transform: Transform, where: Keys, value: Any) -> None:
    data = copy.deepcopy(dict(transform.data))
    assert data["placement"]["activations"][0] == "x"
    if where[-1] == 0 and where[0] == "weights":
        data["schemes"][value] = data["schemes"]["stem.weight"]
    with pytest.raises(CheckpointError):
        replay(transform, changed(data, ("placement", *where), value))


def test_a_node_or_weight_that_stands_twice_is_refused(transform: Transform) -> None:
    for key in ("activations", "weights"):
        rows = transform.data["placement"][key]
        with pytest.raises(CheckpointError, match="stands twice"):
            replay(transform, changed(transform.data, ("placement", key), [*rows, rows[0]]))


def replay_new(transform: Transform, **fields: Any) -> nn.Module:
    return replay(transform, {**transform.data, **fields})


def test_records_of_the_first_schema_still_load_and_may_not_say_more(transform: Transform) -> None:
    old = replace(transform, schema=1)
    assert replay(old, transform.data).code == replay(transform, transform.data).code
    for fields in ({"edits": []}, {"activations": {}}):
        with pytest.raises(CheckpointError, match="unknown key"):
            replay(old, {**transform.data, **fields})
    schemes = copy.deepcopy(transform.data["schemes"])
    schemes["head.weight"] |= {"granularity": "per_group", "group_size": 8}
    with pytest.raises(CheckpointError, match="unknown key 'group_size'"):
        replay(old, {**transform.data, "schemes": schemes})


@pytest.mark.parametrize(
    "edits",
    [
        None,
        {},
        ["bias"],
        [{}],
        [{"kind": "bias"}],
        [{"kind": "other", "layer": "conv2d"}],
        [{"kind": ["bias"], "layer": "conv2d"}],
        [{"kind": "bias", "layer": "conv2d", "more": 1}],
        [{"kind": "bias", "layer": "a b"}],
        [{"kind": "bias", "layer": "relu"}],  # no layer
        [{"kind": "bias", "layer": "linear"}],  # it has one
        [{"kind": "bias", "layer": "missing"}],
        [{"kind": "bias", "layer": "conv2d"}] * 2,
    ],
)
def test_edits_that_are_malformed_or_do_not_fit_are_refused(transform: Transform, edits: Any) -> None:
    with pytest.raises(CheckpointError):
        replay_new(transform, edits=edits)


@pytest.mark.parametrize(
    "activations",
    [
        None,
        [],
        {"missing": {"bits": 6, "symmetric": False, "granularity": "per_tensor"}},
        {"x": {"bits": 6, "symmetric": False, "granularity": "per_channel"}},
        {"x": {"bits": 6}},
        {"x": None},
        {"x": {"bits": 6, "symmetric": False, "granularity": "per_tensor", "group_size": 3}},
    ],
)
def test_schemes_of_single_activations_are_read_strictly(transform: Transform, activations: Any) -> None:
    with pytest.raises(CheckpointError):
        replay_new(transform, activations=activations)


@pytest.mark.parametrize("size", [None, 0, -1, 2**40, 1.5, True, "8"])
def test_group_sizes_are_read_strictly(transform: Transform, size: Any) -> None:
    schemes = copy.deepcopy(transform.data["schemes"])
    schemes["head.weight"] |= {"granularity": "per_group", "group_size": size}
    with pytest.raises(CheckpointError):
        replay_new(transform, schemes=schemes)


def test_groups_of_what_is_no_matrix_are_refused(transform: Transform) -> None:
    schemes = copy.deepcopy(transform.data["schemes"])
    schemes["stem.weight"] |= {"granularity": "per_group", "group_size": 8}
    with pytest.raises(CheckpointError, match="no matrix"):
        replay_new(transform, schemes=schemes)
