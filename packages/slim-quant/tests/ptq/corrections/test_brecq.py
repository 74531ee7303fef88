"""BRECQ and QDrop: blocks from the graph, errors that fall, scales that are learned, the contract of corrections."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from correction_nets import Encoder, Separable, calibrated, correct, images, uneven

from slim_core.errors import SlimError, UnknownNameError
from slim_core.plugins import load_plugins
from slim_quant import Scheme, quantize
from slim_quant.preparation import prepare
from slim_quant.ptq.corrections import CorrectionContext, make_correction, make_corrections
from slim_quant.ptq.corrections.units import block_units, layer_units
from slim_quant.schemes import on_grid


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(torch.relu(self.one(x))) + self.skip(x))


class Residual(nn.Module):
    """A stem, two residual blocks, one without an addition of the same class, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stage = nn.Sequential(Block(4, 4), Block(4, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(torch.relu(self.stem(x))).mean((2, 3)))


def names(model: nn.Module, x: Tensor, **options: int) -> list[tuple[str, int]]:
    units = block_units(prepare(model.eval(), (x,), target="generic"), **options)
    return [(unit.name, len(unit.layers)) for unit in units]


def test_residual_blocks_are_found_and_the_rest_is_single_layers() -> None:
    assert names(Residual(), images(2)) == [("stem", 1), ("stage.0", 2), ("stage.1", 3), ("head", 1)]


def test_a_block_with_too_many_layers_is_taken_apart() -> None:
    found = names(Residual(), images(2), most_layers=2)
    assert found[:2] == [("stem", 1), ("stage.0", 2)]
    assert [count for _, count in found[2:]] == [1, 1, 1, 1]


def test_depthwise_separable_convolutions_are_blocks() -> None:
    found = names(uneven(Separable(blocks=2)), images(2))
    assert found == [("features.0.0", 1), ("features.1", 2), ("features.2", 2), ("head", 1)]


def test_encoder_layers_are_blocks() -> None:
    found = names(Encoder(), torch.randn(4, 5, 6))
    assert found == [("embed", 1), ("layers.0", 4), ("layers.1", 4), ("head", 1)]


def test_a_unit_has_one_output_and_knows_what_it_reads() -> None:
    prepared = prepare(Residual().eval(), (images(2),), target="generic")
    for unit in [*block_units(prepared), *layer_units(prepared)]:
        assert len(unit.outputs) == 1
        assert len(unit.inputs) == 1
    layers = [layer for unit in block_units(prepared) for layer in unit.layers]
    assert sorted(layers) == sorted(layer for unit in layer_units(prepared) for layer in unit.layers)


@pytest.mark.parametrize("name", ["brecq", "qdrop"])
def test_blocks_come_closer_to_the_float_network_and_weights_are_on_their_grids(name: str) -> None:
    torch.manual_seed(0)
    model, x = Residual().eval(), images(64)
    scheme = Scheme(3, True, "per_channel")
    options = {"activation": Scheme(4, False)}
    found = calibrated(model, x, scheme, **options)
    context = CorrectionContext()
    correction = make_correction({"name": name, "iterations": 150})
    correction(found.prepared, found, found.data, context)
    learned = correction.learned  # type: ignore[attr-defined]
    assert [item.unit for item in learned] == ["stem", "stage.0", "stage.1", "head"]
    assert all(item.error <= item.nearest for item in learned)
    assert sum(item.error < 0.95 * item.nearest for item in learned) >= 2
    for place in found.prepared.placement.weights:
        weight = found.prepared.graph.state_dict()[place.name]
        assert torch.equal(on_grid(weight, *found.weights[place.name], scheme, place.along(scheme)), weight)


def test_scales_inside_a_block_are_learned_and_others_are_not() -> None:
    torch.manual_seed(0)
    model, x = Residual().eval(), images(64)
    found = calibrated(model, x, activation=Scheme(4, False))
    before = dict(found.activations)
    correct("brecq", found, iterations=60, scale_lr=0.01)
    inside = {node for unit in block_units(found.prepared) if len(unit.layers) > 1
              for node in (item.name for item in unit.nodes if item not in unit.outputs)}  # fmt: skip
    changed = {name for name in before if not torch.equal(before[name][0], found.activations[name][0])}
    assert changed
    assert changed <= inside
    assert all(float(found.activations[name][0]) > 0 for name in changed)

    again = calibrated(model, x, activation=Scheme(4, False))
    correct("brecq", again, iterations=60, scale_lr=0.0)
    assert all(torch.equal(before[name][0], again.activations[name][0]) for name in before)


def test_qdrop_is_the_same_for_the_same_seed() -> None:
    torch.manual_seed(0)
    model, x = Residual().eval(), images(32)

    def weights(seed: int) -> list[Tensor]:
        found = calibrated(model, x, activation=Scheme(4, False))
        correct("qdrop", found, seed=seed, iterations=20, lr=0.1)
        return [tensor.clone() for tensor in found.prepared.graph.state_dict().values()]

    one, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_network_with_few_bits_is_repaired() -> None:
    torch.manual_seed(0)
    model, x = Residual().eval(), images(128)
    options = {"example_inputs": (x,), "weight": Scheme(3, True, "per_channel"), "samples": 128, "target": "generic"}
    plain = quantize(model, [x], **options).report.sqnr_db
    assert (
        quantize(model, [x], corrections=[{"name": "brecq", "iterations": 200}], **options).report.sqnr_db > plain + 3
    )


@pytest.mark.parametrize("options", [{"name": "qdrop", "drop": 1.0}, {"name": "brecq", "most_layers": 0}])
def test_options_out_of_range_are_errors(options: dict[str, object]) -> None:
    with pytest.raises(SlimError):
        make_correction(options)


def test_an_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(SlimError, match="no option 'iteration'"):
        make_correction({"name": "brecq", "iteration": 5})


def test_an_unknown_name_names_the_close_one() -> None:
    with pytest.raises(UnknownNameError, match="unknown correction 'adarond'") as caught:
        make_correction("adarond")
    assert "adaround" in str(caught.value)


def test_corrections_are_sorted_by_stage() -> None:
    found = make_corrections(["bias_correction", "gptq", "equalization", "bias_absorption"])
    assert [type(item).__name__ for item in found["float"]] == ["Equalization", "BiasAbsorption"]
    assert [type(item).__name__ for item in found["rounding"]] == ["GPTQ"]
    assert [type(item).__name__ for item in found["bias"]] == ["BiasCorrection"]


def test_every_built_in_correction_is_registered_with_a_stage() -> None:
    registry = load_plugins().registry
    names_ = registry.names("corrections")
    assert set(names_) >= {
        "adaround", "bias_absorption", "bias_correction", "bias_correction_analytic", "brecq", "equalization", "gptq",
        "qdrop", "smoothquant",
    }  # fmt: skip
    for name in names_:
        assert make_correction(name, registry).stage in ("float", "rounding", "bias")
