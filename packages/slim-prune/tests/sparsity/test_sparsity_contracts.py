"""The promises that every technique and replayer makes, for sparsity."""

from __future__ import annotations

import pytest

from slim_core.testing.contracts import ReplayCase, ReplayerContract, TechniqueCase, TechniqueContract
from slim_core.testing.workloads import TinyNet, tiny_workload
from slim_prune import sparsity
from slim_prune.sparsity.record import SparseReplayer
from slim_prune.sparsity.technique import SparsityPruning

FIT = {"epochs": 1, "lr": 0.01, "device": "cpu"}


class TestUnstructured(TechniqueContract):
    @pytest.fixture
    def case(self) -> TechniqueCase:
        return TechniqueCase(SparsityPruning, config={"sparsity": 0.5})


class TestBlocksWithTraining(TechniqueContract):
    @pytest.fixture
    def case(self) -> TechniqueCase:
        config = {"scheme": {"name": "block", "shape": [2, 2]}, "ratios": {"*": 0.5}, "fit": FIT}
        return TechniqueCase(SparsityPruning, config=config)


class TestPermutedNofM(TechniqueContract):
    @pytest.fixture
    def case(self) -> TechniqueCase:
        return TechniqueCase(SparsityPruning, config={"scheme": {"name": "2:4", "permute": True}})


class TestGradual(TechniqueContract):
    @pytest.fixture
    def case(self) -> TechniqueCase:
        return TechniqueCase(SparsityPruning, config={"sparsity": 0.8, "schedule": "gmp", "fit": FIT})


class TestSparseReplayer(ReplayerContract):
    @pytest.fixture
    def case(self) -> ReplayCase:
        workload = tiny_workload()
        plan = sparsity.plan(workload.model, sparsity=0.5)
        applied = plan.apply(workload.model)
        return ReplayCase(SparseReplayer(), plan.transform(), TinyNet, workload.example_inputs, applied)
