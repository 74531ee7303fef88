"""Replays give what pruned copies give, on every kind of model; what cannot be replayed is measured whole, and said."""

from __future__ import annotations

import pytest
import sensitivity_hand as hand
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn
from torch.nn import functional as F

import slim_prune
from slim_core.testing.families import build
from slim_core.testing.networks import Network
from slim_core.testing.strategies import networks
from slim_core.testing.workloads import differences, fingerprint, tiny_workload
from slim_prune.sensitivity.curves import Curves

relaxed = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def measured(model: nn.Module, inputs, *, batches=None, task=None, metric=None, **options) -> Curves:
    batches = batches if batches is not None else hand.batches_like(inputs)
    options = {"round_to": 1, "points": 3, **options}
    return slim_prune.sensitivity(model, inputs, task or hand.EnergyTask(), batches, metric=metric, **options)


def assert_equals_plain(curves: Curves, model: nn.Module, inputs, *, batches=None, task=None, rel=2e-5) -> None:
    batches = batches if batches is not None else hand.batches_like(inputs)
    task = task or hand.EnergyTask()
    expected = hand.plain_values(model, inputs, task, batches, curves.metric, curves.points)
    found = {key: point.value for key, point in curves.points.items()}
    assert found == pytest.approx(expected, rel=rel, abs=1e-9)


@pytest.mark.slow
@settings(relaxed, max_examples=60)
@given(network=networks(max_blocks=3))
def test_random_networks_measure_as_their_pruned_copies_do(network: Network) -> None:
    before = fingerprint(network.module)
    curves = measured(network.module, network.example_inputs)
    assert_equals_plain(curves, network.module, network.example_inputs)
    assert differences(before, fingerprint(network.module)) == []


@pytest.mark.slow
@settings(relaxed, max_examples=20)
@given(network=networks(families=("image",), max_blocks=3))
def test_random_convolutional_networks_are_replayed(network: Network) -> None:
    curves = measured(network.module, network.example_inputs, points=1)
    assert_equals_plain(curves, network.module, network.example_inputs)
    methods = {point.method for point in curves.points.values()}
    assert methods <= {"replay"}, curves.notes


class Block(nn.Module):
    """What is hard for a replay: a sum, a concatenation, a depthwise layer, a gate, norms, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 12, 1)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.narrow = nn.Conv2d(12, 8, 1, bias=False)
        self.last = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 6, 3, padding=1)
        self.grouped = nn.Conv2d(14, 10, 3, padding=1, groups=2)
        self.group_norm = nn.GroupNorm(5, 10)
        self.hidden, self.head = nn.Linear(10 * 16, 12), nn.Linear(12, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        y = F.hardswish(self.depth(F.relu6(self.wide(x))))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = torch.relu_(x + self.last(self.narrow(y)))
        z = torch.cat([x, F.silu(self.branch(x))], 1)
        z = F.adaptive_avg_pool2d(self.group_norm(self.grouped(z)), 4)
        return self.head(F.gelu(self.hidden(z.view(z.size(0), -1))))


def block() -> Block:
    torch.manual_seed(3)
    model = Block().eval()
    for norm in (model.norm, model.last):
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.3, 0.3)
    return model


INPUTS = (torch.linspace(-1, 1, 2 * 3 * 8 * 8).sin().reshape(2, 3, 8, 8),)


def test_a_buffer_that_is_filled_slice_by_slice_is_replayed() -> None:
    torch.manual_seed(0)
    around = nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), around, nn.Flatten(), nn.Linear(8 * 36, 3)).eval()
    curves = measured(model, INPUTS)
    assert {point.method for point in curves.points.values()} == {"replay"}, curves.notes
    assert_equals_plain(curves, model, INPUTS)


def test_residual_concatenated_gated_and_normalized_channels_are_replayed_exactly() -> None:
    model = block()
    curves = measured(model, INPUTS)
    assert {curve.name for curve in curves.curves} >= {"stem", "wide", "squeeze", "hidden"}
    assert {point.method for point in curves.points.values()} == {"replay"}, curves.notes
    assert_equals_plain(curves, model, INPUTS)


def test_batches_of_other_sizes_than_the_example_are_replayed() -> None:
    model = block()
    batches = [(torch.randn(5, 3, 8, 8),), (torch.randn(5, 3, 8, 8),), (torch.randn(3, 3, 8, 8),)]
    curves = measured(model, INPUTS, batches=batches)
    assert {point.method for point in curves.points.values()} == {"replay"}, curves.notes
    assert curves.base.samples == 13
    assert_equals_plain(curves, model, INPUTS, batches=batches)


def test_batches_of_another_picture_size_are_replayed() -> None:
    model = block()
    model.hidden = nn.Linear(160, 12)
    batches = [(torch.randn(2, 3, 12, 16),), (torch.randn(2, 3, 8, 8),)]
    curves = measured(model, INPUTS, batches=batches)
    assert {point.method for point in curves.points.values()} == {"replay"}, curves.notes
    assert_equals_plain(curves, model, INPUTS, batches=batches)


class Encoder(nn.Module):
    """Attention whose scale and head size come from the width, and layer norms over the pruned width."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.norm = nn.LayerNorm(12)
        self.num_heads, self.head_dim = 3, 4
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, tokens):
        x = self.embed(tokens)
        n, length, _ = x.shape
        y = self.norm(x)
        q, k, v = (f(y).view(n, length, self.num_heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, length, -1))
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


def test_attention_and_layer_norms_over_pruned_widths_are_replayed() -> None:
    torch.manual_seed(0)
    model, inputs = Encoder().eval(), (torch.arange(20).reshape(4, 5) % 11,)
    curves = measured(model, inputs)
    assert {point.method for point in curves.points.values()} == {"replay"}, curves.notes
    assert_equals_plain(curves, model, inputs)


class ChangesAView(nn.Module):
    """Changes a tensor through a view of it: one that pruning leaves alone, or one that it does not."""

    def __init__(self, outside: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)
        self.outside = outside

    def forward(self, x):
        around = torch.cat([x, x[:, :1]], 1)
        x = self.second(torch.relu(self.first(x)))
        changed = around if self.outside else x
        seen = changed.view(changed.shape)
        seen.add_(x)  # changed changes with it
        return self.head(changed.mean((2, 3)))


@pytest.mark.parametrize(("outside", "method"), [(True, "whole"), (False, "replay")])
def test_tensors_changed_through_views_are_right(outside: bool, method: str) -> None:
    torch.manual_seed(0)
    model = ChangesAView(outside).eval()
    curves = measured(model, INPUTS)
    assert {point.method for point in curves.points.values() if point.group == "first"} == {method}, curves.notes
    assert any("seen through another" in note for note in curves.notes) == outside
    assert_equals_plain(curves, model, INPUTS)


class LooksAtValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.first(x)).mean((2, 3))
        return self.head(x * 2 if float(x.sum()) > 0 else x)


def test_a_forward_that_looks_at_values_is_measured_whole_and_said() -> None:
    torch.manual_seed(0)
    model = LooksAtValues().eval()
    curves = measured(model, INPUTS)
    assert {point.method for point in curves.points.values()} == {"whole"}
    assert any("looks at values" in note for note in curves.notes)
    assert_equals_plain(curves, model, INPUTS)


class KnowsItsLayout(nn.Module):
    """Sees its pictures through memory: another layout gives an error."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = self.second(x.view(x.shape[0], x.shape[1], -1).view(x.shape))
        return self.head(x.view(x.shape[0], x.shape[1], -1).mean(2))


def test_a_forward_that_insists_on_a_layout_is_replayed_in_it() -> None:
    torch.manual_seed(0)
    model = KnowsItsLayout().eval()
    curves = measured(model, INPUTS)
    assert {point.method for point in curves.points.values()} == {"replay"}, curves.notes
    assert_equals_plain(curves, model, INPUTS)


def test_keyword_inputs_and_outputs_in_mappings_are_replayed() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, *, a, b):
            hidden = torch.relu(self.left(a) + self.right(b))
            return {"logits": self.head(hidden), "others": [hidden.sum(1)]}

    torch.manual_seed(0)
    model, inputs = Named().eval(), {"a": torch.randn(3, 6), "b": torch.randn(3, 4)}
    curves = measured(model, inputs)
    assert {point.method for point in curves.points.values()} == {"replay"}, curves.notes
    assert_equals_plain(curves, model, inputs)


@pytest.mark.parametrize("metric", ["top1", "loss"])
def test_classification_metrics_equal_those_of_pruned_copies(metric: str) -> None:
    workload = tiny_workload()
    curves = measured(workload.model, workload.example_inputs, batches=workload.val, task=workload.task, metric=metric)
    assert_equals_plain(curves, workload.model, workload.example_inputs, batches=workload.val, task=workload.task)


def test_a_loss_without_a_metric_of_its_name_is_weighted_by_samples() -> None:
    model = block()
    batches = [(torch.randn(5, 3, 8, 8),), (torch.randn(2, 3, 8, 8),)]
    curves = measured(model, INPUTS, batches=batches, metric="loss", include="wide")
    assert_equals_plain(curves, model, INPUTS, batches=batches)
    assert not curves.higher_is_better


def test_replay_and_whole_forwards_agree() -> None:
    model = block()
    replayed, whole = measured(model, INPUTS), measured(model, INPUTS, replay=False)
    assert {point.method for point in whole.points.values()} == {"whole"}
    assert {key: point.value for key, point in replayed.points.items()} == pytest.approx(
        {key: point.value for key, point in whole.points.items()}, rel=2e-5
    )


def test_little_memory_changes_nothing_but_the_last_digits() -> None:
    model = block()
    few, many = measured(model, INPUTS, memory=1), measured(model, INPUTS)
    assert {key: point.value for key, point in few.points.items()} == pytest.approx(
        {key: point.value for key, point in many.points.items()}, rel=2e-5
    )


def test_training_mode_gradients_and_generators_are_left_alone() -> None:
    model = block().train()
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    before, state = fingerprint(model), torch.get_rng_state()
    measured(model, INPUTS)
    assert differences(before, fingerprint(model)) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.stem.weight.grad, torch.ones_like(model.stem.weight))
    model(INPUTS[0]).sum().backward()  # nothing was left in inference mode


def test_positions_of_heads_are_measured_where_they_are_preferred() -> None:
    """Batches of another size than the example inputs are analysed anew, in the same way."""
    model, inputs = build("vit_head_dim", width=32)
    batches = [tuple(torch.cat([tensor] * 3) for tensor in batch) for batch in hand.batches_like(inputs)]
    curves = measured(model, inputs, batches=batches, include="blocks.0.attn.*", prefer="head_dim")
    assert curves["blocks.0.attn.qkv"].units == 8
    assert {point.method for point in curves.points.values()} == {"replay"}
    many = measured(model, inputs, batches=batches, include="blocks.0.attn.*")
    assert many["blocks.0.attn.qkv"].units == 4
