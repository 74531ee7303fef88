"""From a model and a budget to a plan: budgets are met, patterns obeyed, results equal to the masked original."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import slim_prune
from slim_core.errors import BudgetError, ModelError, PatternError, UnknownNameError
from slim_core.graph import analyse, record
from slim_core.graph.cost import cost
from slim_core.testing.families import build
from slim_core.testing.oracle import assert_equals_masked_original
from slim_prune.errors import PlanError
from slim_prune.prune_plan import PrunePlan


class Small(nn.Module):
    """Three convolutions with a residual connection and a linear head: three channel groups."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.outer = nn.Conv2d(2 * width, width, 3, padding=1)
        self.wide = nn.Conv2d(width, 3 * width, 1)
        self.head = nn.Linear(3 * width, 10)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.outer(self.inner(x))
        return self.head(torch.relu(self.wide(x)).mean((2, 3)))


INPUTS = (torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8),)


@pytest.fixture(scope="module")
def model() -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Small()
        with torch.no_grad():
            for norm in (model.stem[1], model.inner[1]):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 1.5)
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_()
    return model.eval()


def measured(model: nn.Module) -> dict[str, float]:
    report = cost(record(model, INPUTS))
    return {"macs": report.macs, "params": report.params, "bytes": report.bytes}


BUDGETS = [
    {"macs": 0.5},
    {"macs": 0.3},
    {"params": 0.5},
    {"bytes": "30%"},
    {"macs": 0.7, "params": 0.4},
    {"macs": "300k"},
    {"params": 5000},
]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("round_to", [1, 4, 8])
def test_budgets_are_met_and_costs_are_those_of_the_pruned_model(model, budget, round_to) -> None:
    plan = slim_prune.plan(model, INPUTS, budget, round_to=round_to)
    pruned = plan.apply(model)
    now, before = measured(pruned), measured(model)
    for name in budget:
        bound = budget[name]
        limit = {"300k": 300e3, 5000: 5000, "30%": 0.3 * before[name]}.get(bound) or bound * before[name]
        assert now[name] <= limit * (1 + 1e-9)
    assert {name: plan.after[name] for name in now if name in plan.after} == {n: now[n] for n in now if n in plan.after}
    assert {name: plan.before[name] for name in plan.before} == {name: before[name] for name in plan.before}
    coupling = analyse(model, INPUTS)
    assert_equals_masked_original(model, pruned, coupling, plan.kept, INPUTS)
    for group in plan.groups:
        kept = len(group.kept)
        assert kept == group.units or kept % round_to == 0


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_no_group_could_grow_by_a_step_without_breaking_the_budget(model, budget) -> None:
    from slim_core.graph import resize_graph

    plan = slim_prune.plan(model, INPUTS, budget, round_to=4)
    coupling = analyse(model, INPUTS)
    before = measured(model)
    limits = {n: {"300k": 300e3, 5000: 5000, "30%": 0.3 * before[n]}.get(b) or b * before[n] for n, b in budget.items()}
    for group in plan.groups:
        more = min(len(group.kept) + 4, group.units)
        if more == len(group.kept):
            continue
        kept = {**plan.kept, group.name: np.arange(more)}
        report = cost(resize_graph(coupling, kept))
        assert any(getattr(report, name) > limit for name, limit in limits.items()), group.name


def test_the_result_is_near_the_best_of_all_choices(model) -> None:
    """An exhaustive search over all permitted counts: nothing lies closer below the budget by more than one percent."""
    from slim_core.graph import resize_graph

    plan = slim_prune.plan(model, INPUTS, {"macs": 0.5}, round_to=4)
    coupling = analyse(model, INPUTS)
    limit = 0.5 * measured(model)["macs"]
    best = max(
        total
        for counts in itertools.product(*(range(4, group.units + 1, 4) for group in coupling.groups))
        if (
            total := cost(
                resize_graph(coupling, {g.name: np.arange(n) for g, n in zip(coupling.groups, counts, strict=True)})
            ).macs
        )
        <= limit
    )
    assert plan.after["macs"] >= 0.97 * best
    ratios = [len(group.kept) / group.units for group in plan.groups]
    assert max(ratios) - min(ratios) <= 0.5


def test_a_budget_that_is_met_already_removes_nothing(model) -> None:
    plan = slim_prune.plan(model, INPUTS, {"params": "1G"})
    assert plan.edits.tensors == ()
    pruned = plan.apply(model)
    assert all(
        torch.equal(a, b) for a, b in zip(pruned.state_dict().values(), model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        ({"macs": 0.001}, {}, r"macs <= 0\.001 of the original cannot be reached.*\d+ of [\d,]+ macs"),
        ({"params": 0.1}, {"include": ["wide"]}, r"the smallest model .* has .* params"),
        ({"macs": 0.2}, {"min_channels": 16}, "cannot be reached"),
    ],
)
def test_an_unreachable_budget_says_what_is_reachable_and_why(model, budget, options, message) -> None:
    with pytest.raises(BudgetError, match=message) as error:
        slim_prune.plan(model, INPUTS, budget, **options)
    assert "channel groups may be pruned" in str(error.value)
    least = float(str(error.value).split("ask for at least ")[1].split(",")[0])
    name = next(iter(budget))
    slim_prune.plan(model, INPUTS, {name: least + 1e-3}, **options)  # what it names as reachable is


def test_a_model_of_which_nothing_can_be_pruned_says_so_and_why() -> None:
    with pytest.raises(BudgetError, match="nothing of this model can be pruned") as caught:
        slim_prune.plan(nn.Linear(16, 10), (torch.zeros(1, 16),), {"macs": 0.5})
    assert "weight dimension 0 (is an output of the model)" in str(caught.value)
    assert "at least" not in str(caught.value)
    assert "slim graph" in str(caught.value.hint)


@pytest.mark.parametrize("options", [{"min_channels": 1000}, {"ratios": {"*": 1.0}}, {"exclude": ["head", "inner"]}])
def test_a_plan_that_may_not_touch_anything_says_what_to_loosen(model, options) -> None:
    with pytest.raises(BudgetError, match="nothing that may be touched can be made smaller") as caught:
        slim_prune.plan(model, INPUTS, {"macs": 0.5}, **options)
    assert "at least" not in str(caught.value)
    assert "exclude" in str(caught.value.hint)


@pytest.mark.parametrize("amount", [0.5, "10K"])
def test_a_budget_of_a_cost_that_the_model_does_not_have(amount) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 8)
            self.norm = nn.BatchNorm1d(8)

        def forward(self, index):
            return self.norm(self.table(index)).sum(1)

    with pytest.raises(BudgetError, match=r"means nothing here: the model has 0 macs") as caught:
        slim_prune.plan(Scaled().eval(), (torch.arange(4),), budget={"macs": amount})
    assert "params" in str(caught.value.hint)


def test_include_and_exclude(model) -> None:
    plan = slim_prune.plan(model, INPUTS, {"params": 0.95}, include=["inner"])
    assert [group.name for group in plan.groups] == ["inner.0"]
    pruned = plan.apply(model)
    assert pruned.stem[0].weight.shape == model.stem[0].weight.shape
    assert pruned.inner[0].out_channels < model.inner[0].out_channels
    plan = slim_prune.plan(model, INPUTS, {"params": 0.95}, exclude="inner")
    assert [group.name for group in plan.groups] == ["wide"]  # the stem's channels are consumed inside ``inner``


def test_patterns_that_match_nothing_name_the_close_ones(model) -> None:
    with pytest.raises(PatternError, match="did you mean 'inner"):
        slim_prune.plan(model, INPUTS, {"macs": 0.5}, exclude=["iner"])
    with pytest.raises(PatternError, match="matches no module"):
        slim_prune.plan(model, INPUTS, ratios={"nope.*": 0.5})
    with pytest.raises(PatternError, match="is frozen: is an output"):
        slim_prune.plan(model, INPUTS, {"macs": 0.5}, include=["head"])


def test_ratios_alone_decide_without_a_budget(model) -> None:
    plan = slim_prune.plan(model, INPUTS, ratios={"inner": 0.25, "*": 0.5})
    assert {group.name: len(group.kept) for group in plan.groups} == {"stem.0": 8, "inner.0": 8, "wide": 24}


def test_ratios_stay_fixed_while_the_rest_meets_the_budget(model) -> None:
    plan = slim_prune.plan(model, INPUTS, {"macs": 0.4}, ratios={"wide": 1.0}, round_to=1)
    assert plan.after["macs"] <= 0.4 * plan.before["macs"]
    assert {group.name: len(group.kept) for group in plan.groups}["wide"] == 48


def test_min_channels_for_all_or_by_glob(model) -> None:
    plan = slim_prune.plan(model, INPUTS, {"macs": 0.4}, min_channels={"stem": 16}, round_to=4)
    kept = {group.name: len(group.kept) for group in plan.groups}
    assert kept["stem.0"] == 16
    assert kept["inner.0"] < 32


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, BudgetError),
        ({"budget": {}}, BudgetError),
        ({"budget": {"macs": -1}}, BudgetError),
        ({"budget": 0.5}, BudgetError),
        ({"budget": "macs"}, BudgetError),
        ({"budget": {"macs": 0.5}, "round_to": 0}, BudgetError),
        ({"budget": {"macs": 0.5}, "min_channels": 0}, BudgetError),
        ({"ratios": {"*": 0.0}}, PatternError),
        ({"ratios": {"*": 1.5}}, PatternError),
        ({"budget": {"mac": 0.5}}, UnknownNameError),
        ({"budget": {"macs": 0.5}, "importance": "l11"}, UnknownNameError),
    ],
)
def test_bad_arguments_are_one_clear_error(model, arguments, error) -> None:
    with pytest.raises(error):
        slim_prune.plan(model, INPUTS, **arguments)


def test_a_model_that_does_not_run_is_one_clear_error(model) -> None:
    with pytest.raises(ModelError):
        slim_prune.plan(model, (torch.zeros(1, 4, 8, 8),), {"macs": 0.5})


def test_what_is_no_model_is_one_clear_error() -> None:
    with pytest.raises(ModelError, match=r"must be a torch\.nn\.Module, and a int was given"):
        slim_prune.plan(3, INPUTS, {"macs": 0.5})


def test_a_bare_tensor_is_the_only_input(model) -> None:
    plan = slim_prune.plan(model, INPUTS[0], {"macs": 0.5})
    pruned = plan.apply(copy.deepcopy(model))  # another model: the shadow is run on the described input
    assert plan.kept.keys() == slim_prune.plan(model, INPUTS, {"macs": 0.5}).kept.keys()
    assert measured(pruned)["macs"] == plan.after["macs"]


@pytest.mark.parametrize(
    "importance", ["l1", "l2", lambda group, tensors: tensors[group.members[0].name].sum((1, 2, 3))]
)
def test_weights_without_data_cannot_be_scored(importance) -> None:
    with pytest.raises(PlanError, match="needs weights, and the model is on the meta device"):
        slim_prune.plan(Small().to("meta"), INPUTS, {"macs": 0.5}, importance=importance)


def test_a_model_without_data_is_planned_where_no_weight_is_read() -> None:
    empty = Small().to("meta")
    pruned = slim_prune.plan(empty, INPUTS, {"macs": 0.5}, importance="random", round_to=1).apply(empty)
    assert pruned.stem[0].weight.is_meta
    assert pruned.stem[0].weight.shape[0] == pruned.stem[0].out_channels < 16


def test_the_units_with_the_highest_scores_stay(model) -> None:
    order = {"stem.0": [3, 1, 4, 15, 9, 2, 6, 5], "inner.0": list(range(16)), "wide": list(range(0, 48, 2))}

    def chosen(group, tensors):
        scores = torch.zeros(group.units)
        scores[order[group.name]] = 1
        return scores

    plan = slim_prune.plan(model, INPUTS, ratios={"*": 0.5}, importance=chosen)
    assert {group.name: group.kept.tolist() for group in plan.groups} == {k: sorted(v) for k, v in order.items()}
    assert plan.importance == "chosen"


def test_a_bad_criterion_names_the_group(model) -> None:
    with pytest.raises(PlanError, match=r"channel group 'stem\.0'"):
        slim_prune.plan(model, INPUTS, ratios={"*": 0.5}, importance=lambda group, tensors: torch.zeros(1))


def test_planning_touches_nothing(model) -> None:
    model.train()
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    attributes = copy.deepcopy({path: vars(m).get("out_channels") for path, m in model.named_modules()})
    slim_prune.plan(model, INPUTS, {"macs": 0.5})
    assert model.training
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert attributes == {path: vars(m).get("out_channels") for path, m in model.named_modules()}
    model.eval()


def test_the_same_call_gives_the_same_plan(model) -> None:
    first = slim_prune.plan(model, INPUTS, {"macs": 0.5}, importance="random")
    assert slim_prune.plan(model, INPUTS, {"macs": 0.5}, importance="random").to_json() == first.to_json()


def test_an_analysis_can_be_reused(model) -> None:
    coupling = analyse(model, INPUTS)
    plan = slim_prune.plan(model, INPUTS, {"macs": 0.5}, coupling=coupling)
    assert plan.to_json() == slim_prune.plan(model, INPUTS, {"macs": 0.5}).to_json()


def test_wrapped_models_are_looked_through(model) -> None:
    wrapped = nn.DataParallel(copy.deepcopy(model))
    plan = slim_prune.plan(wrapped, INPUTS, {"macs": 0.5}, round_to=1)
    assert type(plan.apply(wrapped)) is Small
    assert plan.apply(wrapped, inplace=True) is wrapped
    assert wrapped.module.stem[0].out_channels < 16


def test_a_compiled_model_is_planned_and_pruned(model) -> None:
    compiled = copy.deepcopy(model)
    compiled.inner.compile(backend="eager")
    compiled.compile(backend="eager")
    plan = slim_prune.plan(compiled, INPUTS, {"macs": 0.5})
    assert plan.to_json() == slim_prune.plan(model, INPUTS, {"macs": 0.5}).to_json()
    with torch.no_grad():
        expected = plan.apply(model)(*INPUTS)
        assert torch.equal(plan.apply(compiled)(*INPUTS), expected)
        compiled(*INPUTS)  # compiled for the full size before it is cut in place
        assert torch.equal(plan.apply(compiled, inplace=True)(*INPUTS), expected)


def test_a_submodule_in_torch_compile_is_pruned_too(model) -> None:
    compiled = copy.deepcopy(model)
    compiled.inner = torch.compile(compiled.inner, backend="eager")
    plan = slim_prune.plan(compiled, INPUTS, {"macs": 0.5})
    with torch.no_grad():
        expected = slim_prune.plan(model, INPUTS, {"macs": 0.5}).apply(model)(*INPUTS)
        assert torch.equal(plan.apply(compiled)(*INPUTS), expected)


class Attributes(Small):
    """Uses tensors, modules and a method from plain attributes, and takes notes while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.full((3, 1, 1), 2.0)
        self.offsets = {"all": [torch.ones(3, 1, 1)]}
        self.last = [self.wide]
        self.first = self.stem.forward
        self.calls: list[int] = []

    def forward(self, x):
        self.calls.append(len(self.calls))
        x = self.first(x * self.scale + self.offsets["all"][0])
        x = x + self.outer(self.inner(x))
        return self.head(torch.relu(self.last[0](x)).mean((2, 3)))


def test_plain_attributes_of_modules_take_part_and_stay() -> None:
    model = Attributes().eval()
    with torch.no_grad():
        model(*INPUTS)
    plan = slim_prune.plan(model, INPUTS, {"macs": 0.5})
    assert model.calls == [0]
    assert model.scale.device.type == "cpu"
    pruned = plan.apply(model)
    with torch.no_grad(), plan.masked(model):
        assert torch.allclose(pruned(*INPUTS), model(*INPUTS), atol=1e-5)
    other = Attributes().eval()
    plan.check(other)
    assert plan.apply(other, inplace=True) is other  # after a run of its shadow
    assert other.calls == []


def test_hooks_run_on_tensors_without_data_and_stay(model) -> None:
    hooked = copy.deepcopy(model)
    seen, kept = [], []
    handle = hooked.inner.register_forward_hook(lambda module, args, output: seen.append(output))
    hooked.inner.register_forward_hook(lambda module, args, output: setattr(module, "kept", output))
    hooked.inner.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    hooks = dict(hooked.inner._forward_hooks)
    slim_prune.plan(hooked, INPUTS, {"macs": 0.5})
    assert seen
    assert all(tensor.is_meta for tensor in (*seen, *kept))
    assert {tensor.shape[1] for tensor in seen} > {32}  # of the full model, and of smaller ones
    assert not hasattr(hooked.inner, "kept")  # what is stored in the module is taken back
    assert hooked.inner._forward_hooks == hooks
    seen.clear()
    handle.remove()
    slim_prune.plan(hooked, INPUTS, {"macs": 0.5})
    assert seen == []


class Keywords(nn.Module):
    """Keyword inputs, a mapping as output, an embedding tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens, scale=1.0):
        x = self.embedding(tokens)
        x = x + self.down(torch.relu(self.up(x))) * scale
        return {"logits": self.head(x)}


def test_keyword_inputs_mapping_outputs_and_ties() -> None:
    torch.manual_seed(0)
    model = Keywords().eval()
    inputs = {"tokens": torch.arange(12).reshape(2, 6), "scale": 0.5}
    plan = slim_prune.plan(model, inputs, {"params": 0.5}, round_to=1)
    pruned = plan.apply(model)
    assert pruned.head.weight is pruned.embedding.weight
    assert pruned.embedding.weight.shape[1] < 16
    assert_equals_masked_original(model, pruned, analyse(model, inputs), plan.kept, inputs)
    assert plan.apply(copy.deepcopy(model), inplace=True).head.weight.shape == pruned.head.weight.shape


class Branching(nn.Module):
    """Data-dependent control flow: neither meta nor fake tensors can run it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x):
        x = torch.relu(self.a(x))
        if float(x.sum()) > 0:
            x = torch.relu(self.b(x))
        return self.head(x)


def test_models_with_data_dependent_control_flow() -> None:
    torch.manual_seed(0)
    model, inputs = Branching().eval(), (torch.randn(4, 6),)
    plan = slim_prune.plan(model, inputs, {"params": 0.6}, round_to=1)
    pruned = plan.apply(model)
    assert pruned.b.out_features < 16
    assert_equals_masked_original(model, pruned, analyse(model, inputs), plan.kept, inputs)
    assert any("recorded" in note for note in plan.notes)


class NoMeta(nn.Module):
    """Refuses the meta device, as a model does that reads values; it runs with fake tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, x):
        if x.is_meta:
            raise RuntimeError("no data here")
        return self.head(torch.relu(self.a(x)))


def test_models_that_cannot_run_on_meta_tensors() -> None:
    torch.manual_seed(0)
    model, inputs = NoMeta().eval(), (torch.randn(4, 6),)
    plan = slim_prune.plan(model, inputs, {"params": 0.6}, round_to=1)
    pruned = PrunePlan.from_json(plan.to_json()).apply(model)
    assert pruned.a.out_features < 16
    assert_equals_masked_original(model, pruned, analyse(model, inputs), plan.kept, inputs)


def test_attention_loses_what_is_preferred() -> None:
    """4 heads of 8: at half, 2 heads of 8 or 4 heads of 4; in one step or two."""
    model, inputs = build("vit_head_dim", width=32)
    layer = "blocks.0.attn.qkv"
    options = {"ratios": {layer: 0.5}, "round_to": 1}
    for prefer, heads in (("heads", 2), ("head_dim", 4)):
        made = slim_prune.plan(model, inputs, prefer=prefer, **options)
        attention = made.apply(model).blocks[0].attn
        assert (attention.num_heads, attention.qkv.weight.shape[0] // (3 * attention.num_heads)) == (heads, 16 // heads)
        stepwise = slim_prune.Stepwise(copy.deepcopy(model), inputs, steps=2, prefer=prefer, **options)
        list(stepwise)
        assert stepwise.model.blocks[0].attn.num_heads == heads
        assert stepwise.model.blocks[0].attn.qkv.weight.shape == attention.qkv.weight.shape
