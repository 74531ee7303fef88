"""What every quantization target promises, as tests that a plugin inherits. Needs pytest."""
# ruff: noqa: S101

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_core.graph.export import export_graph
from slim_quant.graph import op_name
from slim_quant.placement import place
from slim_quant.ptq.static import quantize
from slim_quant.record import StaticReplayer
from slim_quant.result import QuantResult
from slim_quant.targets import PASSING, Target

_SIZE = (4, 3, 12, 12)


class TargetNet(nn.Module):
    """Something of everything: residual sums, a concatenation, gates, pools, moved values, an attention's products."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.left = nn.Conv2d(8, 8, 1)
        self.right = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.query = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.left(x))
        y = F.hardswish(self.right(x))
        y = y * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(y, 1)))
        x = F.max_pool2d(torch.cat([x, y], 1), 2)
        tokens = self.up(x).flatten(2).transpose(1, 2)
        query = self.query(tokens)
        weights = torch.softmax(query @ tokens.transpose(1, 2), -1)
        result: Tensor = self.head((weights @ tokens).mean(1))
        return result


class TargetContract:
    """Inherit it and give ``target``."""

    @pytest.fixture
    def target(self) -> Target:
        """Return the target."""
        raise NotImplementedError

    @pytest.fixture
    def quantized(self, target: Target) -> QuantResult:
        torch.manual_seed(0)
        batches = [torch.randn(_SIZE) for _ in range(2)]
        return quantize(TargetNet().eval(), batches, example_inputs=(batches[0],), target=target, samples=8)

    def test_its_operators_are_full_names(self, target: Target) -> None:
        sets = [target.weighted, target.binary, target.matmul, target.pools, target.concat, target.float_results]
        names = frozenset().union(*sets, target.hard, target.unary)
        assert all(name.startswith("aten.") and name.count(".") == 2 for name in names)
        assert target.weighted, "a target without weighted operators quantizes nothing"

    def test_weights_of_what_it_computes_in_integers_are_quantized_and_no_others(
        self, target: Target, quantized: QuantResult
    ) -> None:
        graph = export_graph(TargetNet().eval(), (torch.randn(_SIZE),))
        count = sum(op_name(node) in target.weighted for node in graph.graph.nodes)
        assert len(quantized.report.layers) == count

    def test_nothing_is_quantized_twice_on_different_grids(self, target: Target) -> None:
        graph = export_graph(TargetNet().eval(), (torch.randn(_SIZE),))
        placement = place(graph, target)
        scales = {item.node: item.scale for item in placement.activations}
        for node in graph.graph.nodes:
            source = node.args[0] if node.args else None
            if op_name(node) in PASSING and node.name in scales and getattr(source, "name", "") in scales:
                assert scales[node.name] == scales[source.name]  # type: ignore[union-attr]

    def test_the_quantized_model_is_close_to_the_float_one(self, quantized: QuantResult) -> None:
        assert quantized.report.sqnr_db is not None
        assert quantized.report.sqnr_db > 15

    def test_its_record_builds_the_same_graph_again(self, quantized: QuantResult) -> None:
        with torch.device("meta"):
            model = TargetNet()
        again = StaticReplayer().replay(model, quantized.transform, (torch.empty(_SIZE, device="meta"),))
        assert again.code == quantized.model.code

    def test_it_trains(self, quantized: QuantResult) -> None:
        quantized.model(torch.randn(_SIZE)).square().sum().backward()
        assert all(item.grad is not None for item in quantized.model.parameters())
