"""Every recipe that the packages ship is read and rehearsed with its own model, on a few pictures of random noise."""

import gzip
import struct

import pytest
import torch

from slim_core.errors import SlimError
from slim_core.plugins import load_plugins
from slim_core.recipe import load_recipe
from slim_core.recipe.build import prepare
from slim_core.recipe.rehearsal import rehearse
from slim_zoo.names import RECIPES


@pytest.fixture(scope="module")
def registry():
    return load_plugins().registry


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Fashion-MNIST's four files, with the wrong pictures in them: a rehearsal looks at shapes only."""
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "t10k"):
        noise = torch.randint(0, 256, (64, 28, 28), dtype=torch.uint8, generator=generator)
        labels = torch.arange(64, dtype=torch.uint8) % 10
        for name, array in (("images-idx3", noise), ("labels-idx1", labels)):
            head = struct.pack(f">BBBB{array.dim()}I", 0, 0, 8, array.dim(), *array.shape)
            (tmp_path / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.numpy().tobytes()))
    monkeypatch.setenv("SLIM_DATA", str(tmp_path))


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_can_be_rehearsed(registry, name):
    recipe = load_recipe(name, registry)
    rehearse(recipe, registry, prepare(recipe, registry, None).workload)


@pytest.mark.usefixtures("pictures")
def test_a_rehearsal_finds_a_budget_out_of_reach(registry):
    recipe = load_recipe("resnet20-fashion-mnist", registry, overrides=("steps[0].budget.macs=0.0001",))
    with pytest.raises(SlimError, match="cannot be reached"):
        rehearse(recipe, registry, prepare(recipe, registry, None).workload)
