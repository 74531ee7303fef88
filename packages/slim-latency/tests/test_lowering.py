"""The kernels that a recorded graph becomes, against those of the runtime's own optimised graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slim_core.export import to_onnx
from slim_core.graph import analyse, record, resize_graph, shrink
from slim_core.graph.types import Graph
from slim_latency import agent, calibration
from slim_latency.kernels import parse_key
from slim_latency.lowering import Plan, kernels_of
from slim_latency.reading import kernels_of_file


@pytest.fixture(scope="module")
def block() -> int:
    return agent.layout_block()


class Mixed(nn.Module):
    """What convolutions meet: gates, pools, concatenation of branches, a residual, two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = calibration.conv(3, width, 3, 2, act="hardswish")
        self.left, self.right = calibration.conv(width, width, 3), calibration.conv(width, width, 1, act="relu6")
        self.squeeze, self.excite = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)
        self.pool = nn.MaxPool2d(2)
        self.last = calibration.conv(width, 2 * width, 3)
        self.hidden, self.head = nn.Linear(2 * width, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.left(x) + self.right(x)
        gate = torch.relu(self.squeeze(nn.functional.adaptive_avg_pool2d(x, 1)))
        x = self.pool(x * nn.functional.hardsigmoid(self.excite(gate)))
        x = self.last(x).mean((2, 3))
        y: Tensor = self.head(torch.relu(self.hidden(x)))
        return y


def assert_same(graph: Graph, path: Path, block: int) -> None:
    mine, unknown = kernels_of(graph, block)
    real = Counter(kernels_of_file(path))
    assert not unknown
    assert Counter(mine) - real == Counter()
    assert real - Counter(mine) == Counter()


@pytest.mark.parametrize("width", [20, *(pytest.param(width, marks=pytest.mark.slow) for width in (16, 24, 64))])
def test_every_kernel_is_the_runtimes(width: int, block: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Mixed(width).eval(), (torch.rand(1, 3, 32, 32),)
    path = to_onnx(model, inputs, tmp_path / "m.onnx", check=False).path
    assert_same(record(model, inputs), path, block)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*calibration.names(3, 40), "mobilenet-003", "resnet-005"])
def test_every_kernel_of_random_networks(name: str, block: int, tmp_path: Path) -> None:
    model, inputs = calibration.network(name), calibration.picture(64)
    path = to_onnx(model, inputs, tmp_path / "m.onnx", check=False).path
    assert_same(record(model, inputs), path, block)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet-001", "resnet-002"])
def test_resized_graphs_become_what_pruned_models_become(name: str, block: int, tmp_path: Path) -> None:
    model, inputs = calibration.network(name), calibration.picture(64)
    coupling = analyse(model, inputs)
    draw = np.random.default_rng(0)
    kept = {group.name: np.arange(max(4, 4 * int(draw.integers(1, group.units // 4 + 1)))) for group in coupling.groups}
    kept = {name: units for name, units in kept.items() if len(units) < coupling.group(name).units}
    graph = resize_graph(coupling, kept)
    path = to_onnx(shrink(model, coupling, kept), inputs, tmp_path / "m.onnx", check=False).path
    assert_same(graph, path, block)


@pytest.mark.slow
def test_transformers_are_close(tmp_path: Path) -> None:
    """Products and norms are the runtime's; what it makes of reshapes and transposes is not followed."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0).eval()
    inputs = (torch.rand(1, 10, 32),)
    path = to_onnx(model, inputs, tmp_path / "m.onnx", check=False).path
    mine, unknown = kernels_of(record(model, inputs), 16)
    real = kernels_of_file(path)
    assert not unknown
    assert sum(parse_key(key).macs for key in mine) == sum(parse_key(key).macs for key in real)


class TestPlan:
    def test_one_plan_serves_all_widths_of_an_architecture(self) -> None:
        coupling = analyse(Mixed(32).eval(), (torch.rand(1, 3, 32, 32),))
        plan = Plan(coupling.graph)
        group = max(coupling.groups, key=lambda item: item.units)
        assert plan.fits(resize_graph(coupling, {group.name: np.arange(4)}))

    def test_another_stride_is_another_architecture(self) -> None:
        inputs = (torch.rand(1, 3, 16, 16),)
        one, two = (record(nn.Conv2d(3, 8, 3, stride), inputs) for stride in (1, 2))
        assert Plan(one).fits(one)
        assert not Plan(one).fits(two)
        assert not Plan(one).fits(record(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), inputs))

    def test_without_packing_convolutions_stay_plain(self) -> None:
        graph = record(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (torch.rand(1, 3, 16, 16),))
        keys, _ = kernels_of(graph, 0)
        assert keys == ["FusedConv.microsoft f32[1,3,16,16] f32[8,3,3,3] -> f32[1,8,14,14] {activation=Relu}"]

    def test_narrow_devices_pad_to_their_own_block(self) -> None:
        graph = record(nn.Conv2d(3, 12, 1), (torch.rand(1, 3, 4, 4),))
        assert kernels_of(graph, 8)[0] == [
            "Conv.nchwc f32[1,3,4,4] f32[16,3,1,1] -> f32[1,16,4,4]",
            "ReorderOutput.nchwc f32[1,16,4,4] -> f32[1,12,4,4]",
        ]
        assert kernels_of(graph, 0)[0] == ["Conv f32[1,3,4,4] f32[12,3,1,1] -> f32[1,12,4,4]"]

    def test_unknown_operators_are_named_with_their_count(self) -> None:
        class Odd(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.fft.fft(torch.fft.fft(x).real).real

        _, unknown = kernels_of(record(Odd(), (torch.rand(1, 8),)), 16)
        assert sum(unknown.values()) >= 2
        assert all(name.startswith("aten.") for name in unknown)
