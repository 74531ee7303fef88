"""The promises that every technique, replayer and importance criterion makes."""

from __future__ import annotations

import prune_hand as hand
import pytest

from slim_core.testing.contracts import (
    ImportanceContract,
    ReplayCase,
    ReplayerContract,
    TechniqueCase,
    TechniqueContract,
)
from slim_prune.importance.magnitude import l1, l2
from slim_prune.importance.random import random
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
