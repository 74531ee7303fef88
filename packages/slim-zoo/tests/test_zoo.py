from __future__ import annotations

import subprocess
import sys

import pytest

import slim_zoo
import slim_zoo.models
from slim_core.errors import SlimError, UnknownNameError
from slim_core.plugins import load_plugins
from slim_zoo.names import MODELS


def test_models_are_listed_by_glob_with_and_without_prefix():
    assert slim_zoo.list_models("resnet*") == [f"zoo/resnet{depth}" for depth in (18, 20, 34, 50, 56)]
    assert slim_zoo.list_models("zoo/vgg1[69]_bn") == ["zoo/vgg16_bn", "zoo/vgg19_bn"]
    assert slim_zoo.list_models("alexnet") == []
    assert len(slim_zoo.list_models()) == len(MODELS) == 17


def test_the_names_are_sorted_functions_of_the_models_module():
    assert list(MODELS) == sorted(MODELS)
    assert all(callable(getattr(slim_zoo.models, name)) for name in MODELS)
    assert {name for name in slim_zoo.models.__all__ if name.islower()} == set(MODELS)


def test_create_model_takes_both_names():
    one = slim_zoo.create_model("zoo/resnet20", num_classes=3)
    two = slim_zoo.create_model("resnet20", num_classes=3)
    assert type(one) is type(two)
    assert one.classifier.out_features == 3


def test_an_unknown_model_gets_a_close_match():
    with pytest.raises(UnknownNameError, match="did you mean 'mobilenet_v1'"):
        slim_zoo.create_model("mobilenetv1")


def test_an_unknown_option_gets_a_close_match():
    with pytest.raises(SlimError, match="did you mean 'width'"):
        slim_zoo.create_model("resnet18", widht=0.5)
    with pytest.raises(SlimError, match="it takes: width"):
        slim_zoo.create_model("resnet18", colour="red")


def test_everything_is_registered_through_the_host():
    registry = load_plugins().registry
    assert set(slim_zoo.list_models()) <= set(registry.names("models"))
    assert {"digits", "fashion-mnist"} <= set(registry.names("datasets"))
    model = registry.get("models", "zoo/mobilenet_v1")(width=0.25, num_classes=4, in_channels=1, input_size=32)
    assert model.classifier.out_features == 4
    assert registry.get("datasets", "digits")(limit=8).num_classes == 10


def test_importing_the_package_and_the_plugin_imports_no_torch():
    code = "import slim_zoo, slim_zoo.plugin, sys; assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
