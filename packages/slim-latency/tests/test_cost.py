"""Cost models of devices: the core's contract, sums by hand, and what pruning asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slim_core.budget import parse_budget
from slim_core.errors import MeasureError, UnknownNameError
from slim_core.graph import analyse, record, resize_graph
from slim_core.graph.cost import CostModel
from slim_core.graph.resize import new_sizes
from slim_core.plugins import load_plugins
from slim_core.testing.contracts import CostModelContract
from slim_core.testing.workloads import TinyNet, tiny_workload
from slim_latency.cost import LatencyCost
from slim_latency.devices import VARIABLE, device, find_devices, target_folder
from slim_latency.lowering import kernels_of
from slim_latency.predict import Predictor, fit
from slim_latency.table import DeviceTable, TableError, with_model, write_table

Make = Callable[..., DeviceTable]


@pytest.fixture(scope="module")
def table(make_table: Make) -> DeviceTable:
    found = make_table(30)
    return with_model(found, fit(found, trees=False))


@pytest.fixture
def cost(table: DeviceTable) -> LatencyCost:
    return LatencyCost(table)


class TestContract(CostModelContract):
    @pytest.fixture
    def cost_model(self, table: DeviceTable) -> CostModel:
        """Without packed layouts: with them a narrower layer may be slower, here as on the device."""
        return LatencyCost(dataclasses.replace(table, header={**table.header, "layout_block": 0}))


@pytest.mark.parametrize("name", sorted(find_devices()))
class TestShipped(CostModelContract):
    @pytest.fixture
    def cost_model(self, name: str) -> CostModel:
        found: CostModel = find_devices()[name]()
        return found


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3))
        return y


class TestTotal:
    def test_it_is_the_sum_of_the_kernels(self, cost: LatencyCost, table: DeviceTable) -> None:
        graph = record(Net(), (torch.rand(1, 3, 16, 16),))
        keys, _ = kernels_of(graph, 16)
        predictor = Predictor.of(table)
        assert cost.total(graph) == pytest.approx(predictor.total_ms(keys))
        scale = predictor.model["scale"]
        by_hand = (
            scale["factor"] * predictor.micros(keys).sum() + scale["fixed_us"] + scale["per_kernel_us"] * len(keys)
        )
        assert cost.total(graph) == pytest.approx(by_hand / 1e3)
        assert cost.estimate(graph).value_ms == pytest.approx(cost.total(graph))

    def test_all_ways_of_asking_agree(self, cost: LatencyCost, table: DeviceTable) -> None:
        coupling = analyse(Net(), (torch.rand(1, 3, 16, 16),))
        kept = [{group.name: np.arange(width) for group in coupling.groups} for width in (4, 8, 16, 24)]
        graphs = [resize_graph(coupling, one) for one in kept]
        single = [LatencyCost(table).total(graph) for graph in graphs]
        assert cost.totals(graphs) == pytest.approx(single)
        shapes = [cost.total_of_shapes(coupling.graph, new_sizes(coupling, one)) for one in kept]
        assert shapes == pytest.approx(single)
        assert single == sorted(single)

    def test_an_architecture_is_worked_out_once(self, cost: LatencyCost) -> None:
        coupling = analyse(Net(), (torch.rand(1, 3, 16, 16),))
        for width in (4, 8, 16):
            cost.total(resize_graph(coupling, {coupling.groups[0].name: np.arange(width)}))
        assert len(cost._plans) == 1
        cost.total(record(TinyNet(), tiny_workload().example_inputs))
        assert len(cost._plans) == 2

    def test_operators_that_nothing_is_known_about_cost_something(self, cost: LatencyCost) -> None:
        class Odd(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.fft.fft(x).real

        graph = record(Odd(), (torch.rand(1, 4096),))
        assert cost.total(graph) > 0
        assert cost.estimate(graph).partial

    def test_channels_that_the_runtime_pads_cost_the_same(self, cost: LatencyCost) -> None:
        class Two(nn.Module):
            def __init__(self, width: int) -> None:
                super().__init__()
                self.a, self.b = nn.Conv2d(16, width, 1), nn.Conv2d(width, 32, 1)

            def forward(self, x: Tensor) -> Tensor:
                y: Tensor = self.b(self.a(x))
                return y

        inputs = (torch.rand(1, 16, 8, 8),)
        narrow, wide, wider = (cost.total(record(Two(width), inputs)) for width in (20, 32, 36))
        assert narrow == wide < wider

    def test_a_table_of_whole_blocks_gives_none(self, table: DeviceTable) -> None:
        other = dataclasses.replace(table, header={**table.header, "runtime": {"name": "ofa", "version": ""}})
        with pytest.raises(TableError, match="is of ofa"):
            LatencyCost(other)


class TestDevices:
    @pytest.fixture(autouse=True)
    def folders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        (tmp_path / "mine").mkdir()
        monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
        return iter((tmp_path,))

    def test_every_table_is_registered_as_a_cost_model(self, table: DeviceTable, tmp_path: Path) -> None:
        named = dataclasses.replace(table, name="my-phone")
        write_table(named, tmp_path / "mine" / "my-phone.table.json")
        registry = load_plugins().registry
        assert "latency:my-phone" in registry.names("cost_models")
        cost = registry.get("cost_models", "latency:my-phone")()
        assert isinstance(cost, CostModel)
        graph = record(Net(), (torch.rand(1, 3, 16, 16),))
        assert cost.total(graph) == pytest.approx(LatencyCost(named).total(graph))
        bound = parse_budget({"latency:my-phone": "4.0ms"})[0]
        assert (bound.cost, bound.limit(10.0)) == ("latency:my-phone", 4.0)

    def test_the_users_table_comes_before_one_of_the_same_name(self, table: DeviceTable, tmp_path: Path) -> None:
        (tmp_path / "data" / "slim" / "devices").mkdir(parents=True)
        for folder in (tmp_path / "mine", tmp_path / "data" / "slim" / "devices"):
            write_table(dataclasses.replace(table, name="board"), folder / "board.table.json")
        assert device("board").path.parent == tmp_path / "mine"
        assert target_folder() == tmp_path / "mine"

    def test_a_broken_table_hinders_nobody_until_it_is_used(self, tmp_path: Path) -> None:
        (tmp_path / "mine" / "broken.table.json").write_text("nonsense")
        registry = load_plugins().registry
        factory = registry.get("cost_models", "latency:broken")
        with pytest.raises(TableError, match="not a device table"):
            factory()

    def test_unknown_devices_name_the_close_match_and_the_commands(self, table: DeviceTable, tmp_path: Path) -> None:
        write_table(dataclasses.replace(table, name="my-phone"), tmp_path / "mine" / "my-phone.table.json")
        with pytest.raises(MeasureError, match="no table of a device 'my-fone'") as caught:
            device("my-fone")
        assert "my-phone" in (caught.value.hint or "")
        assert "slim latency bundle" in (caught.value.hint or "")
        with pytest.raises(UnknownNameError, match="latency:my-fone"):
            load_plugins().registry.get("cost_models", "latency:my-fone")

    def test_a_path_names_a_table_too(self, table: DeviceTable, tmp_path: Path) -> None:
        path = write_table(dataclasses.replace(table, name="else"), tmp_path / "else.table.json")
        assert device(str(path)).path == path
