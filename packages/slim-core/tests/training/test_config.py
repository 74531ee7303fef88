from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from slim_core.training import FitConfig


def test_what_yaml_gives_is_taken():
    config = FitConfig.model_validate({"epochs": 4, "lr": 1, "milestones": [0.3, 0.6], "warmup_epochs": 1})
    assert (config.lr, config.milestones) == (1.0, (0.3, 0.6))


def test_json_and_back():
    config = FitConfig(epochs=3, ema=0.9, milestones=(0.5,))
    assert FitConfig.model_validate_json(config.model_dump_json()) == config
    assert FitConfig.model_validate(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize(
    "wrong",
    [
        {"epoch": 3}, {"epochs": 0}, {"epochs": "3"}, {"lr": 0}, {"lr": "fast"}, {"optimizer": "adam"},
        {"momentum": 1.0}, {"ema": 1.0}, {"clip_norm": 0}, {"milestones": [1.5]}, {"epochs": 2, "warmup_epochs": 3},
        {"amp": "yes"}, {"mixup": -1}, {"eval_every": 0},
    ],
)  # fmt: skip
def test_nonsense_is_refused_and_named(wrong: dict[str, object]):
    with pytest.raises(ValidationError, match=list(wrong)[-1]):
        FitConfig.model_validate(wrong)


def test_every_field_is_documented():
    properties = FitConfig.model_json_schema()["properties"]
    assert [name for name, schema in properties.items() if "description" not in schema] == []


def test_the_configuration_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        FitConfig().epochs = 3  # type: ignore[misc]
