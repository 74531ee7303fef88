"""The contracts of Slim, and what is special about this technique."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from slim_core import Registry, load_plugins
from slim_core.errors import CheckpointError, PatternError
from slim_core.technique import Run
from slim_core.testing.contracts import ReplayCase, ReplayerContract, TechniqueCase, TechniqueContract
from slim_core.testing.workloads import TinyNet, tiny_workload
from slim_core.workload import Transform
from torch import nn

from slim_example.replay import KIND, LowRankReplayer
from slim_example.technique import LowRank, LowRankConfig, factorize


class TestTechnique(TechniqueContract):
    @pytest.fixture
    def case(self) -> TechniqueCase:
        return TechniqueCase(LowRank, config={"keep": 0.25})


class TestReplayer(ReplayerContract):
    @pytest.fixture
    def case(self, tmp_path: Path) -> ReplayCase:
        result = LowRank().run(tiny_workload(), LowRankConfig(keep=0.25), Run(tmp_path, seed=0, registry=Registry()))
        workload = result.workload
        return ReplayCase(LowRankReplayer(), workload.transforms[-1], TinyNet, workload.example_inputs, workload.model)


def test_the_plugin_loads() -> None:
    (outcome,) = [outcome for outcome in load_plugins().outcomes if outcome.distribution == "slim-example"]
    assert (outcome.status, outcome.reason, outcome.notes) == ("ok", None, ())


def test_full_rank_is_the_same_layer() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 7).double(), torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(factorize(layer, 7)(x), layer(x), rtol=1e-10, atol=1e-10)


def test_the_error_is_the_one_that_theory_gives() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 7).double()
    first, second = factorize(layer, 3)
    error = torch.linalg.norm(layer.weight - second.weight @ first.weight)
    left_out = torch.linalg.svdvals(layer.weight)[3:]
    torch.testing.assert_close(error, torch.linalg.norm(left_out))


def test_a_layer_that_would_not_shrink_is_left_alone_and_noted(tmp_path: Path) -> None:
    result = LowRank().run(tiny_workload(), LowRankConfig(keep=1.0), Run(tmp_path, seed=0, registry=Registry()))
    assert [note.split(":")[0] for note in result.notes] == ["hidden", "head"]
    assert result.details == {"layers": []}


def test_a_glob_without_a_match_names_close_ones(tmp_path: Path) -> None:
    with pytest.raises(PatternError, match="did you mean 'hidden'"):
        LowRank().run(tiny_workload(), LowRankConfig(include=["hiden"]), Run(tmp_path, seed=0, registry=Registry()))


@pytest.mark.parametrize("keep", [0, 1.5, "half"])
def test_an_impossible_share_is_refused(keep: object) -> None:
    with pytest.raises(ValidationError):
        LowRankConfig.model_validate({"keep": keep})


@pytest.mark.parametrize(
    "ranks", [{"stem": 2}, {"": 2}, {"hidden": 0}, {"hidden": 10**9}, {"hidden": True}, {"nope": 2}]
)
def test_a_hostile_record_is_refused(ranks: dict[str, int]) -> None:
    with pytest.raises(CheckpointError):
        LowRankReplayer().replay(TinyNet().to("meta"), Transform(KIND, 1, {"ranks": ranks}), ())
