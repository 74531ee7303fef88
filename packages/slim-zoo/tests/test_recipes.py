"""The shipped recipes, as far as this package alone can check them: steps and runtimes come from other packages."""

import pytest

from slim_core.plugins import load_plugins
from slim_core.recipe import load_recipe
from slim_core.recipe.build import prepare
from slim_core.recipe.load import find_source
from slim_zoo.names import RECIPES

ALONE = ("steps=[]", "measure=null")


@pytest.fixture(scope="module")
def registry():
    return load_plugins().registry


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_are_valid(registry, name):
    recipe = load_recipe(name, registry, overrides=ALONE)
    assert recipe.name == name
    assert recipe.description


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_prune_quantize_export_and_measure(registry, name):
    data = find_source(name, registry).data
    *pruning, quantization = data["steps"]
    assert [step["kind"].split(".")[0] for step in pruning] == (
        [] if name == "mobilenet_v2-fashion-mnist-qat" else ["prune"]
    )
    assert all(step["budget"]["macs"] <= 0.5 for step in pruning)
    expected = {"qat": "quant.qat", "mixed": "quant.mixed"}.get(name.rpartition("-")[2], "quant.ptq")
    assert quantization["kind"] == expected
    assert quantization["target"] == "onnxruntime"
    # hard-swish and squeeze-and-excitation are slower as integers on this runtime
    assert quantization.get("never_slower", False) == ("mobilenet_v3" in name)
    assert data["export"] == {"format": "onnx"}
    assert data["measure"] == {"backends": ["onnxruntime"], "batch": [1, 32]}


def test_the_model_of_a_recipe_fits_its_data(registry):
    recipe = load_recipe("mobilenet_v1-digits", registry, overrides=(*ALONE, "workload.data_kwargs.limit=32"))
    prepared = prepare(recipe, registry, None)
    assert dict(prepared.workload.builder.kwargs) == {
        "num_classes": 10,
        "in_channels": 1,
        "input_size": 32,
        "width": 0.5,
    }
    assert prepared.metrics[0].name == "top1"
