"""The promises that every technique, replayer and importance criterion makes."""

from __future__ import annotations

import dataclasses

import prune_hand as hand
import pytest

from slim_core.testing.contracts import (
    ImportanceContract,
    ReplayCase,
    ReplayerContract,
    TechniqueCase,
    TechniqueContract,
)
from slim_core.testing.contracts.importance import Surroundings
from slim_prune import importance as importances
from slim_prune.context import Context
from slim_prune.importance.magnitude import l1, l2
from slim_prune.importance.random import random
from slim_prune.importance.slimming_step import SlimmingTraining
from slim_prune.plugin import IMPORTANCES
from slim_prune.record import ChannelsReplayer
from slim_prune.technique import UniformPruning


class TestUniformPruning(TechniqueContract):
    @pytest.fixture
    def case(self) -> TechniqueCase:
        return TechniqueCase(UniformPruning, config={"budget": {"macs": 0.5}, "round_to": 4})


class TestUniformPruningWithFineTuning(TechniqueContract):
    @pytest.fixture
    def case(self) -> TechniqueCase:
        fit = {"epochs": 1, "lr": 0.01, "device": "cpu"}
        return TechniqueCase(UniformPruning, config={"budget": {"params": 0.5}, "round_to": 1, "fit": fit})


class TestSlimmingTraining(TechniqueContract):
    @pytest.fixture
    def case(self) -> TechniqueCase:
        fit = {"epochs": 1, "lr": 0.01, "device": "cpu"}
        return TechniqueCase(SlimmingTraining, config={"strength": 0.01, "exclude": ["norm"], "fit": fit})


class TestChannelsReplayer(ReplayerContract):
    @pytest.fixture
    def case(self) -> ReplayCase:
        plan = hand.plan()
        return ReplayCase(ChannelsReplayer(), plan.transform(), hand.HandNet, hand.INPUTS, plan.apply(hand.net()))


class TestL1(ImportanceContract):
    @pytest.fixture
    def importance(self):
        return l1


class TestL2(ImportanceContract):
    @pytest.fixture
    def importance(self):
        return l2


class TestRandom(ImportanceContract):
    reads_weights = False

    @pytest.fixture
    def importance(self):
        return random


RANDOM = "random"
OTHERS = [name for name in IMPORTANCES if name not in ("l1", "l2", "hessian", RANDOM)]
VARIANTS: list[dict[str, object]] = [
    {"name": "taylor", "joint": "member", "normalize": "mean", "aggregate": "max"},
    {"name": "taylor", "joint": "weight", "power": "absolute", "per": "sample"},
    {"name": "fisher", "joint": "group", "normalize": "lamp"},
    {"name": "fisher", "per": "batch", "aggregate": "first"},
    {"name": "activation", "statistic": "std", "normalize": "minmax"},
    {"name": "fpgm", "distance": "cosine"},
    {"name": "lp", "p": 0.5, "aggregate": "prod"},
    {"name": "bn_scale", "norms": "any", "otherwise": "error"},
]


class TestEveryCriterion(ImportanceContract):
    """Every other criterion that is registered, with its defaults and in other variants."""

    @pytest.fixture(params=[*OTHERS, *VARIANTS], ids=str)
    def importance(self, request):
        return importances.resolve(request.param)[1]


class TestHessian(ImportanceContract):
    estimates = True

    @pytest.fixture(params=["hessian", {"name": "hessian", "normalize": "mean", "aggregate": "first"}], ids=str)
    def importance(self, request):
        return importances.resolve(request.param)[1]


class TestRandomByName(ImportanceContract):
    reads_weights = False

    @pytest.fixture
    def importance(self):
        return importances.resolve(RANDOM)[1]


def test_the_contract_gives_what_a_context_has() -> None:
    """Core cannot import the context, so that its stand-in has the same names."""
    methods = {name for name in vars(Context) if not name.startswith("_") and callable(getattr(Context, name))}
    fields = {item.name for item in dataclasses.fields(Context)}
    given = {item.name for item in dataclasses.fields(Surroundings)} | set(vars(Surroundings))
    assert methods | fields <= given
