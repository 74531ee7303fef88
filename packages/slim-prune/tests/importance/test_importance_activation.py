"""APoZ and mean activation against counting by hand on intermediate results of the very forward."""

from __future__ import annotations

import importance_hand as hand
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_core.errors import ModelError
from slim_core.graph import analyse
from slim_prune.errors import PlanError
from slim_prune.importance.activation import Activation
from slim_prune.importance.taps import find_taps


def keep(kept: dict[str, Tensor] | None, name: str, tensor: Tensor) -> Tensor:
    if kept is not None:
        kept[name] = tensor.detach().clone()
    return tensor


class Plain(nn.Module):
    """conv -> functional relu -> raw convolution -> in-place relu -> flatten -> linear -> relu -> linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.raw = nn.Parameter(torch.randn(5, 6, 1, 1))
        self.hidden = nn.Linear(5 * 16, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor, kept: dict[str, Tensor] | None = None) -> Tensor:
        x = keep(kept, "first", F.relu(self.first(x)))
        x = keep(kept, "raw", F.conv2d(x, self.raw).relu_())
        x = keep(kept, "hidden", torch.clamp_min(self.hidden(x.flatten(1)), 0))
        return self.head(x)


def seeded(make, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def recorded(model: nn.Module, data) -> dict[str, np.ndarray]:
    """All intermediate results over the data, channels last: ``(numbers, channels)``."""
    rows: dict[str, list[np.ndarray]] = {}
    for batch in data:
        kept: dict[str, Tensor] = {}
        with torch.no_grad():
            model(batch[0], kept)
        for name, tensor in kept.items():
            values = tensor.movedim(1, -1).double().numpy()
            rows.setdefault(name, []).append(values.reshape(-1, values.shape[-1]))
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def group_of(ctx, weight: str) -> str:
    (name,) = {g.name for g in ctx.coupling.groups for m in g.members if m.name == weight and m.kind == "out"}
    return name


PLACES = {"first": "first.weight", "raw": "raw", "hidden": "hidden.weight"}


def test_apoz_is_one_less_the_share_of_zeros_counted_by_hand() -> None:
    model, data = seeded(Plain), hand.data(batches=3, size=5)
    ctx = hand.context(model, data)
    found, values = hand.scores("apoz", ctx), recorded(model, data)
    for place, weight in PLACES.items():
        zeros = (values[place] == 0).mean(0)
        assert 0 < zeros.max() < 1
        assert found[group_of(ctx, weight)] == pytest.approx(1 - zeros, abs=1e-12)


@pytest.mark.parametrize(
    ("statistic", "function"),
    [
        ("mean", lambda x: np.abs(x).mean(0)),
        ("rms", lambda x: np.sqrt((x**2).mean(0))),
        ("std", lambda x: x.std(0)),
    ],
)
def test_statistics_of_activations(statistic, function) -> None:
    model, data = seeded(Plain), hand.data(batches=3, size=5)
    ctx = hand.context(model, data)
    found = hand.scores({"name": "activation", "statistic": statistic, "normalize": "none"}, ctx)
    for place, weight in PLACES.items():
        expected = function(recorded(model, data)[place])
        assert found[group_of(ctx, weight)] == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_scores_are_scaled_per_group_by_default() -> None:
    ctx = hand.context(seeded(Plain), hand.data())
    for values in hand.scores("activation", ctx).values():
        assert values.mean() == pytest.approx(1.0)


def test_a_threshold_decides_what_counts_as_zero() -> None:
    model, data = seeded(Plain), hand.data()
    ctx = hand.context(model, data)
    found = hand.scores({"name": "apoz", "threshold": 0.25}, ctx)
    assert found[group_of(ctx, "raw")] == pytest.approx((recorded(model, data)["raw"] > 0.25).mean(0))


class Residual(nn.Module):
    """A stream that passes two rectifiers, a branch whose output is judged on the stream, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.squeeze, self.expand = nn.Linear(6, 4), nn.Linear(4, 6)
        self.inner, self.back = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor, kept: dict[str, Tensor] | None = None) -> Tensor:
        x = keep(kept, "one", torch.relu(self.stem(x)))
        y = keep(kept, "inner", F.gelu(self.inner(x)))
        x = keep(kept, "two", torch.relu(x + self.back(y)))
        gate = torch.sigmoid(self.expand(keep(kept, "squeeze", F.relu(self.squeeze(x.mean((2, 3)))))))
        x = x * gate[:, :, None, None]
        return self.head(x.mean((2, 3)))


def test_a_residual_stream_is_the_mean_over_its_rectifiers_and_a_gate_is_none() -> None:
    model, data = seeded(Residual), hand.data()
    ctx = hand.context(model, data)
    found, values = hand.scores("apoz", ctx), recorded(model, data)
    expected = ((values["one"] > 0).mean(0) + (values["two"] > 0).mean(0)) / 2
    assert found[group_of(ctx, "stem.weight")] == pytest.approx(expected)
    assert found[group_of(ctx, "inner.weight")] == pytest.approx((values["inner"] > 0).mean(0))
    assert found[group_of(ctx, "squeeze.weight")] == pytest.approx((values["squeeze"] > 0).mean(0))
    largest = hand.scores({"name": "apoz", "aggregate": "max"}, ctx)
    assert largest[group_of(ctx, "stem.weight")] == pytest.approx(
        np.maximum((values["one"] > 0).mean(0), (values["two"] > 0).mean(0))
    )


class Branches(nn.Module):
    """Two branches joined by ``cat`` before the rectifier, then a grouped convolution over both."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(10)
        self.head = nn.Linear(10 * 16, 5)

    def forward(self, x: Tensor, kept: dict[str, Tensor] | None = None) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = keep(kept, "joined", F.relu(self.norm(x)))
        return self.head(x.flatten(1))


def test_a_concat_is_taken_apart() -> None:
    model, data = seeded(Branches), hand.data()
    ctx = hand.context(model, data)
    found, values = hand.scores("apoz", ctx), recorded(model, data)
    assert found[group_of(ctx, "left.weight")] == pytest.approx((values["joined"] > 0).mean(0)[:4])
    assert found[group_of(ctx, "right.weight")] == pytest.approx((values["joined"] > 0).mean(0)[4:])


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, kept: dict[str, Tensor] | None = None) -> Tensor:
        x = keep(kept, "first", torch.relu(self.first(x)))
        x = keep(kept, "grouped", torch.relu(self.grouped(x)))
        return self.head(x.mean((2, 3)))


def test_channels_of_one_unit_are_averaged() -> None:
    """Equal positions of the convolution's groups are one unit: channels 0 and 4, 1 and 5, ..."""
    model, data = seeded(Grouped), hand.data()
    ctx = hand.context(model, data)
    found, values = hand.scores("apoz", ctx), recorded(model, data)
    (name,) = {g.name for g in ctx.coupling.groups for m in g.members if m.name == "first.weight"}
    (member,) = (m for m in ctx.coupling.group(name).members if m.name == "first.weight")
    assert member.indices.shape == (4, 2)
    assert found[name] == pytest.approx((values["first"] > 0).mean(0)[member.indices].mean(1))


class Heads(nn.Module):
    """Attention without any rectifier: heads are judged where they are made."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(3, 8) for _ in range(3))
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor, kept: dict[str, Tensor] | None = None) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        q, k, v = (
            keep(kept, name, layer(x)).unflatten(2, (-1, 2)).transpose(1, 2)
            for name, layer in (("q", self.q), ("k", self.k), ("v", self.v))
        )
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(x).mean(1)


def test_heads_are_judged_where_they_are_made_and_the_plan_says_so() -> None:
    model, data = seeded(Heads), hand.data()
    ctx = hand.context(model, data)
    found = hand.scores("apoz", ctx)
    kept: dict[str, list[np.ndarray]] = {"q": [], "k": [], "v": []}
    for batch in data:
        run: dict[str, Tensor] = {}
        with torch.no_grad():
            model(batch[0], run)
        for name, tensor in run.items():
            kept[name].append(tensor.numpy().reshape(-1, 8))
    share = {name: (np.concatenate(parts) > 0).mean(0) for name, parts in kept.items()}
    assert ctx.coupling.groups
    for group in ctx.coupling.groups:
        rows = [
            share[m.name[0]][m.indices].mean(1) for m in group.members if m.kind == "out" and m.name.endswith("weight")
        ]
        assert rows
        assert found[group.name] == pytest.approx(np.mean(rows, axis=0))
    assert any("pass no rectifier" in note for note in ctx.notes)


def test_a_plan_shows_the_note() -> None:
    import slim_prune

    plan = slim_prune.plan(
        seeded(Heads), (torch.randn(2, 3, 4, 4),), ratios={"*": 0.5}, round_to=1,
        importance="apoz", task=hand.Squares(), train=hand.data(),
    )  # fmt: skip
    assert any("importance apoz: these pass no rectifier" in note for note in plan.notes)


class Twice(nn.Module):
    """One module called twice, and a branch that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.first, self.second, self.rare = nn.Linear(6, 5), nn.Linear(5, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor, kept: dict[str, Tensor] | None = None) -> Tensor:
        x = keep(kept, "first", self.relu(self.first(x)))
        if x.sum() > 3.0:
            x = x * 2
        x = keep(kept, "second", self.relu(self.second(x)))
        return self.rare(x)


def test_a_shared_module_and_control_flow_that_depends_on_data() -> None:
    model, data = seeded(Twice), hand.data(shape=(6,), batches=6, size=2)
    with torch.no_grad():
        ways = {bool(model.relu(model.first(inputs)).sum() > 3.0) for inputs, _ in data}
    assert ways == {False, True}
    ctx = hand.context(model, data)
    found, values = hand.scores("apoz", ctx), recorded(model, data)
    assert found["first"] == pytest.approx((values["first"] > 0).mean(0))
    assert found["second"] == pytest.approx((values["second"] > 0).mean(0))


def test_activations_are_those_of_evaluation_mode() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 5)

        def forward(self, x: Tensor, kept: dict[str, Tensor] | None = None) -> Tensor:
            return self.last(F.dropout(keep(kept, "on", torch.relu(self.norm(self.first(x)))), 0.9, self.training))

    model, data = seeded(Noisy), hand.data(shape=(6,))
    expected = (recorded(model, data)["on"] > 0).mean(0)
    assert hand.scores("apoz", hand.context(model.train(), data))["first"] == pytest.approx(expected)
    assert model.training


def test_half_precision_activations_are_summed_in_float32() -> None:
    model, data = seeded(Plain).bfloat16(), hand.data(batches=40, size=8)
    data = [(inputs.bfloat16(), targets) for inputs, targets in data]
    ctx = hand.context(model, data)
    found = hand.scores({"name": "activation", "normalize": "none"}, ctx)
    kept: list[np.ndarray] = []
    for inputs, _ in data:
        run: dict[str, Tensor] = {}
        with torch.no_grad():
            model(inputs, run)
        kept.append(run["first"].double().movedim(1, -1).reshape(-1, 6).numpy())
    assert found["first"] == pytest.approx(np.concatenate(kept).mean(0), rel=1e-5)


def test_data_of_another_width_than_the_example_is_an_error() -> None:
    class Columns(nn.Module):
        """The width of the picture is a dimension of a parameter."""

        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(3, 6, 1)
            self.head = nn.Linear(6, 5)
            self.wide = False

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.mix(x))
            return self.head(x.mean((2, 3)))

    ctx = hand.context(seeded(Columns), hand.data())
    taps = find_taps(ctx.coupling)["mix"]
    assert [(tap.op, tap.dim, tap.size) for tap in taps] == [("aten.relu.default", 1, 6)]
    wrong = hand.context(seeded(Columns), hand.data())
    object.__setattr__(wrong, "coupling", _with_another_width(wrong.coupling))
    with pytest.raises(ModelError, match=r"has shape .* on the data, and dimension 1 had size 7"):
        Activation().prepare(wrong)


def _with_another_width(coupling):
    """As if the example inputs had led to seven channels at the rectifier."""
    from dataclasses import replace

    (node,) = (node for node in coupling.graph.nodes if node.op == "aten.relu.default")
    values = list(coupling.graph.values)
    index = node.outputs[0]
    values[index] = replace(values[index], shape=(2, 7, 4, 4))
    labels = list(coupling.labels)
    labels[index] = (None, np.append(labels[index][1], labels[index][1][-1:]), None, None)
    return replace(coupling, graph=replace(coupling.graph, values=tuple(values)), labels=tuple(labels))


def test_a_group_that_no_batch_reaches_is_an_error() -> None:
    class Never(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.extra, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            if len(x) == 2:  # the example's batch alone
                x = torch.relu(self.extra(x))
            return self.last(x)

    ctx = hand.context(seeded(Never), hand.data(shape=(6,)), example_inputs=(torch.randn(2, 6),))
    with pytest.raises(PlanError, match="has seen no activation of these channels"):
        hand.scores("apoz", ctx)


def test_every_group_of_random_networks_has_a_tap() -> None:
    from slim_core.testing.networks import BLOCKS, BlockSpec, NetworkSpec, build

    for number, kind in enumerate(BLOCKS["image"]):
        net = build(NetworkSpec("image", 8, (BlockSpec(kind, (number, 1, 2, 0)), BlockSpec("conv")), number, number))
        coupling = analyse(net.module, net.example_inputs)
        taps = find_taps(coupling)
        assert [group.name for group in coupling.groups if not taps[group.name]] == [], net.description
