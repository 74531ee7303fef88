"""Parameters, bytes, memory and the rows, on graphs small enough to count on paper."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slim_core.graph import Graph, Node, Ref, Value, record
from slim_core.graph.cost import (
    BytesCost,
    CostModel,
    MacsCost,
    MemoryCost,
    ParamsCost,
    cost,
    count_macs,
    peak_activation_bytes,
)
from slim_core.plugins import load_plugins
from slim_core.testing.contracts import CostModelContract


class Drawn:
    """A graph drawn by hand. Every tensor is float32; sizes are numbers of elements."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.nodes: list[Node] = []

    def tensor(self, size: int, kind: Any = "intermediate", base: int | None = None) -> int:
        index = len(self.values)
        storage = index if base is None else self.values[base].storage
        self.values.append(Value(index, (size,), "float32", kind, (), storage))
        return index

    def op(self, inputs: list[int], outputs: list[int], name: str = "aten.relu.default") -> None:
        args = {"tensors": tuple(Ref(index) for index in inputs)}
        self.nodes.append(Node(len(self.nodes), name, args, tuple(outputs), "", None))

    def peak(self, inputs: list[int], outputs: list[int]) -> float:
        graph = Graph(tuple(self.nodes), tuple(self.values), tuple(inputs), tuple(outputs), "meta", "Drawn")
        return peak_activation_bytes(graph) / 4


class TestPeakMemory:
    def test_a_chain_holds_two_neighbours_and_the_input(self) -> None:
        g = Drawn()
        x, a, b, c = g.tensor(10, "input"), g.tensor(100), g.tensor(30), g.tensor(5)
        g.op([x], [a])
        g.op([a], [b])
        g.op([b], [c])
        assert g.peak([x], [c]) == 10 + 100 + 30  # x is the caller's; a dies after b is made

    def test_the_input_lives_to_the_end(self) -> None:
        g = Drawn()
        x, a, b, c = g.tensor(1000, "input"), g.tensor(1), g.tensor(50), g.tensor(60)
        g.op([x], [a])
        g.op([a], [b])
        g.op([b], [c])
        assert g.peak([x], [c]) == 1000 + 50 + 60

    def test_a_residual_lives_until_it_is_added(self) -> None:
        g = Drawn()
        x, a, b, c, d = g.tensor(1, "input"), g.tensor(20), g.tensor(40), g.tensor(20), g.tensor(20)
        g.op([x], [a])
        g.op([a], [b])
        g.op([b], [c])
        g.op([a, c], [d], "aten.add.Tensor")
        assert g.peak([x], [d]) == 1 + 20 + 40 + 20  # while c is made out of b, a waits

    def test_an_in_place_operator_takes_nothing(self) -> None:
        g = Drawn()
        x, a = g.tensor(10, "input"), g.tensor(20)
        b = g.tensor(20, base=a)
        c = g.tensor(5)
        g.op([x], [a])
        g.op([a], [b], "aten.relu_.default")
        g.op([b], [c])
        assert g.peak([x], [c]) == 10 + 20 + 5

    def test_a_view_takes_nothing_and_keeps_its_base_alive(self) -> None:
        g = Drawn()
        x, a = g.tensor(1, "input"), g.tensor(20)
        view = g.tensor(20, base=a)
        b, c = g.tensor(7), g.tensor(3)
        g.op([x], [a])
        g.op([a], [view], "aten.view.default")
        g.op([x], [b])
        g.op([view, b], [c])
        assert g.peak([x], [c]) == 1 + 20 + 7 + 3

    def test_an_expanded_view_is_no_larger_than_its_base(self) -> None:
        g = Drawn()
        x, a = g.tensor(1, "input"), g.tensor(2)
        wide = g.tensor(2000, base=a)
        b = g.tensor(4)
        g.op([x], [a])
        g.op([a], [wide], "aten.expand.default")
        g.op([wide], [b])
        assert g.peak([x], [b]) == 1 + 2 + 4

    def test_outputs_live_to_the_end(self) -> None:
        g = Drawn()
        x, early, a, b = g.tensor(1, "input"), g.tensor(50), g.tensor(10), g.tensor(10)
        g.op([x], [early])
        g.op([x], [a])
        g.op([a], [b])
        assert g.peak([x], [early, b]) == 1 + 50 + 10 + 10

    def test_what_nobody_reads_dies_at_once(self) -> None:
        g = Drawn()
        x, out, unused, a, b = g.tensor(1, "input"), g.tensor(10), g.tensor(90), g.tensor(30), g.tensor(2)
        g.op([x], [out, unused])
        g.op([out], [a])
        g.op([a], [b])
        assert g.peak([x], [b]) == 1 + 10 + 90

    def test_parameters_buffers_and_constants_are_not_activations(self) -> None:
        g = Drawn()
        x, w = g.tensor(1, "input"), g.tensor(1000, "parameter")
        k = g.tensor(500, "constant")
        turned, a = g.tensor(1000, base=w), g.tensor(4)
        g.op([w], [turned], "aten.t.default")
        g.op([x, turned, k], [a])
        assert g.peak([x], [a]) == 1 + 4

    def test_a_recorded_network(self) -> None:
        # x 3x8x8, conv 4x8x8, relu in place, flatten is a view, linear 2
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(256, 2))
        report = cost(record(model, (torch.zeros(1, 3, 8, 8),)))
        assert report.peak_activation_bytes == 4 * (3 * 64 + 4 * 64 + 2)

    def test_the_same_without_in_place_holds_both(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))
        report = cost(record(model, (torch.zeros(1, 3, 8, 8),)))
        assert report.peak_activation_bytes == 4 * (3 * 64 + 4 * 64 + 4 * 64)

    def test_half_precision_takes_half(self) -> None:
        model = nn.Linear(8, 8, bias=False)
        full = cost(record(model, (torch.zeros(4, 8),)))
        half = cost(record(model.half(), (torch.zeros(4, 8, dtype=torch.float16),)))
        assert full.peak_activation_bytes == 2 * half.peak_activation_bytes == 4 * (32 + 32)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(x)))  # type: ignore[no-any-return]


class TestParameters:
    def test_tied_ones_count_once_and_unused_ones_count(self) -> None:
        report = cost(record(Tied(), (torch.zeros(2, 3, dtype=torch.int64),)))
        assert report.params == 40 + (16 + 4) + (9 + 3)
        assert report.bytes == 4 * report.params

    def test_a_row_has_the_parameters_that_it_reads_first(self) -> None:
        report = cost(record(Tied(), (torch.zeros(2, 3, dtype=torch.int64),)))
        readers = [(row.module, row.params) for row in report.nodes if row.params]
        assert readers == [("embed", 40), ("mix", 20)]

    def test_a_tied_parameter_belongs_to_the_module_of_its_first_name(self) -> None:
        report = cost(record(Tied(), (torch.zeros(2, 3, dtype=torch.int64),)))
        assert {row.path: row.own_params for row in report.modules} == {
            "": 0, "embed": 40, "mix": 20, "head": 0, "unused": 12,
        }  # fmt: skip

    def test_buffers_are_apart(self) -> None:
        report = cost(record(nn.BatchNorm2d(5), (torch.zeros(1, 5, 2, 2),)))
        assert report.params == 10
        assert report.buffer_bytes == 4 * (5 + 5) + 8  # mean, variance, and one int64 counter

    def test_double_precision_takes_twice_the_bytes(self) -> None:
        report = cost(record(nn.Linear(3, 2).double(), (torch.zeros(1, 3, dtype=torch.float64),)))
        assert (report.params, report.bytes) == (8, 64)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.two = nn.Conv2d(4, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(x))  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


STEM, BLOCK, HEAD = 4 * 64 * 27, 4 * 64 * (36 + 4), 40


class TestModules:
    def report(self) -> Any:
        return cost(record(Net(), (torch.zeros(1, 3, 8, 8),)))

    def test_parents_come_before_children_in_the_order_of_the_forward(self) -> None:
        assert [row.path for row in self.report().modules] == [
            "", "stem", "blocks", "blocks.0", "blocks.0.one", "blocks.0.two", "blocks.1", "blocks.1.one",
            "blocks.1.two", "head",
        ]  # fmt: skip

    def test_a_module_contains_its_children(self) -> None:
        report = self.report()
        assert report.macs == report.module("").macs == STEM + 2 * BLOCK + HEAD
        assert report.module("blocks").macs == 2 * BLOCK
        assert report.module("blocks.0").macs == BLOCK
        assert report.module("blocks.0.one").macs == 4 * 64 * 36
        assert report.module("blocks").params == 2 * (4 * 36 + 16)

    def test_its_own_figures_leave_the_children_out(self) -> None:
        block = self.report().module("blocks.0")
        assert (block.own_macs, block.own_ops, block.own_params) == (0, 1, 0)  # the addition
        assert (block.ops, block.shape, block.depth) == (3, (1, 4, 8, 8), 2)

    def test_own_figures_add_up_to_the_total(self) -> None:
        report = self.report()
        assert sum(row.own_macs for row in report.modules) == report.macs
        assert sum(row.own_params for row in report.modules) == report.params
        assert sum(row.own_ops for row in report.modules) == len(report.nodes)

    def test_activations_of_a_module(self) -> None:
        assert self.report().module("blocks.0").activation_bytes == 4 * 3 * (4 * 64)

    def test_what_is_alive_while_each_operator_runs(self) -> None:
        x, wide, pooled, out = 4 * 3 * 64, 4 * 4 * 64, 4 * 4, 4 * 10  # bytes; x is the caller's and stays
        block = [
            ("one", x + 2 * wide),  # its input is added later, and stays
            ("two", x + 3 * wide),
            ("", x + 3 * wide),  # the addition: both operands and the sum
        ]
        expected = [("stem", x + wide)]
        expected += [(f"blocks.{n}.{name}".rstrip("."), alive) for n in (0, 1) for name, alive in block]
        expected += [("", x + wide + pooled), ("head", x + pooled + out)]
        report = self.report()
        assert [(row.module, row.live_bytes) for row in report.nodes] == expected
        assert {path: report.module(path).peak_activation_bytes for path in ("", "stem", "blocks.1.one", "head")} == {
            "": x + 3 * wide, "stem": x + wide, "blocks.1.one": x + 2 * wide, "head": x + pooled + out
        }  # fmt: skip
        assert report.module("blocks.0").peak_activation_bytes == report.peak_activation_bytes == x + 3 * wide

    def test_the_peak_of_the_model_is_that_of_its_dearest_operator(self) -> None:
        report = self.report()
        assert report.peak_activation_bytes == max(row.live_bytes for row in report.nodes)

    def test_an_operator_has_its_inputs_and_its_parameters_names(self) -> None:
        rows = {row.module: row for row in self.report().nodes}
        assert (rows["stem"].inputs, rows["stem"].param_names) == (((1, 3, 8, 8), (4, 3, 3, 3)), ("stem.weight",))
        assert rows["head"].inputs == ((1, 4), (10, 4), (10,))
        assert rows["head"].param_names == ("head.weight", "head.bias")
        assert (rows["blocks.1"].inputs, rows["blocks.1"].param_names) == (((1, 4, 8, 8), (1, 4, 8, 8)), ())

    def test_a_tied_parameter_is_named_wherever_it_is_read(self) -> None:
        rows = {row.module: row for row in cost(record(Tied(), (torch.zeros(2, 3, dtype=torch.int64),))).nodes}
        assert rows["embed"].param_names == rows["head"].param_names == ("embed.weight",)
        assert (rows["embed"].params, rows["head"].params) == (40, 0)

    def test_a_module_that_did_not_run_is_not_there(self) -> None:
        with pytest.raises(KeyError):
            self.report().module("nowhere")

    def test_the_report_is_plain_json(self) -> None:
        data = json.loads(json.dumps(self.report().to_json(), allow_nan=False))
        assert data["macs"] == STEM + 2 * BLOCK + HEAD
        assert data["nodes"][0]["op"].startswith("aten.conv")
        assert data["modules"][1]["path"] == "stem"


def separable(size: int, stride: int, out: int) -> list[nn.Module]:
    return [
        nn.Conv2d(size, size, 3, stride, 1, groups=size, bias=False), nn.BatchNorm2d(size), nn.ReLU(),
        nn.Conv2d(size, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
    ]  # fmt: skip


class TestPublishedFigures:
    """Figures that the papers and model zoos print, at 224x224."""

    def test_vgg16(self) -> None:
        layers: list[nn.Module] = []
        size = 3
        for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(count):
                layers += [nn.Conv2d(size, width, 3, padding=1, device="meta"), nn.ReLU()]
                size = width
            layers.append(nn.MaxPool2d(2))
        layers += [nn.Flatten()]
        for before, after in ((25088, 4096), (4096, 4096), (4096, 1000)):
            layers.append(nn.Linear(before, after, device="meta"))
        report = cost(record(nn.Sequential(*layers), (torch.zeros(1, 3, 224, 224),)))
        assert report.params == 138_357_544
        assert report.macs == 15_470_264_320

    def test_mobilenet_v1(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        for size, stride, out in (
            (32, 1, 64), (64, 2, 128), (128, 1, 128), (128, 2, 256), (256, 1, 256), (256, 2, 512),
            *[(512, 1, 512)] * 5, (512, 2, 1024), (1024, 1, 1024),
        ):  # fmt: skip
            layers += separable(size, stride, out)
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 1000)]
        report = cost(record(nn.Sequential(*layers), (torch.zeros(1, 3, 224, 224),)))
        assert report.macs == 568_740_352  # "569 million mult-adds" (Howard et al. 2017, arXiv:1704.04861)
        assert report.params == 4_231_976


class TestCostModels:
    @pytest.mark.parametrize(
        ("name", "expected"), [("macs", 4 * 8 * 6), ("params", 54), ("bytes", 216), ("memory", 4 * 4 * (8 + 6))]
    )
    def test_they_are_registered_and_agree_with_the_report(self, name: str, expected: int) -> None:
        model = load_plugins().registry.get("cost_models", name)()
        assert isinstance(model, CostModel)
        graph = record(nn.Linear(8, 6), (torch.zeros(4, 8),))
        report = cost(graph)
        of_report = {
            "macs": report.macs, "params": report.params, "bytes": report.bytes, "memory": report.peak_activation_bytes
        }  # fmt: skip
        assert model.total(graph) == of_report[name] == expected

    def test_a_batch_of_two_doubles_work_and_memory_but_not_the_model(self) -> None:
        one, two = (record(Net(), (torch.zeros(batch, 3, 8, 8),)) for batch in (1, 2))
        assert count_macs(two) == 2 * count_macs(one)
        assert peak_activation_bytes(two) == 2 * peak_activation_bytes(one)
        assert cost(two).params == cost(one).params


class TestMacsContract(CostModelContract):
    @pytest.fixture
    def cost_model(self) -> Any:
        return MacsCost()


class TestParamsContract(CostModelContract):
    @pytest.fixture
    def cost_model(self) -> Any:
        return ParamsCost()


class TestBytesContract(CostModelContract):
    @pytest.fixture
    def cost_model(self) -> Any:
        return BytesCost()


class TestMemoryContract(CostModelContract):
    @pytest.fixture
    def cost_model(self) -> Any:
        return MemoryCost()


class Asks(nn.Module):
    """Reads a value, so that it can only be recorded with real tensors, whose memory is used again."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.asks = asks
        self.layers = nn.Sequential(nn.Linear(8, 100), nn.Linear(100, 30), nn.Linear(30, 300), nn.Linear(300, 5))

    def forward(self, x: Tensor) -> Tensor:
        if self.asks and bool(x.sum() < 0):
            return x
        return self.layers(x)  # type: ignore[no-any-return]


def test_a_recording_with_real_tensors_has_the_memory_of_one_without() -> None:
    inputs = (torch.ones(4, 8),)
    without, real = record(Asks(False), inputs), record(Asks(True), inputs)
    assert (without.device_kind, real.device_kind) == ("meta", "real")
    assert peak_activation_bytes(real) == peak_activation_bytes(without) == 4 * 4 * (8 + 30 + 300)


def test_lines_of_whoever_asks_for_the_recording_are_not_the_models() -> None:
    own = cost(record(Net(), (torch.zeros(1, 3, 8, 8),)))
    assert all(row.source is not None and row.source.file == __file__ for row in own.nodes)
    foreign = cost(record(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (torch.zeros(1, 4),)))
    assert [row.source for row in foreign.nodes] == [None, None]
