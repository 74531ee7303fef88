"""The checkpoint transform: the same graph from the record alone, and files that give back every bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from quant_nets import Residual
from torch import Tensor, nn

from slim_core import Workload, load_plugins
from slim_core.checkpoint import load, save
from slim_core.errors import CheckpointError
from slim_quant import Override, QuantResult, Scheme, calibrate, finish, prepare, quantize
from slim_quant.edits import add_bias
from slim_quant.record import StaticReplayer

SCHEMES = {
    "int8": Scheme(8, True, "per_channel"),
    "int4": Scheme(4, True, "per_channel"),
    "6 bits": Scheme(6, True, "per_channel"),
    "per tensor": Scheme(8, True, "per_tensor"),
    "affine": Scheme(8, False, "per_channel"),
}


def meta_net() -> nn.Module:
    with torch.device("meta"):
        return Residual()


def test_groups_single_schemes_and_added_biases_come_back(x: Tensor, tmp_path: Path) -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, bias=False)
            self.head = nn.Linear(4, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.conv(x)).mean((2, 3)))

    torch.manual_seed(0)
    net = Bare().eval()
    overrides = [
        Override(op="linear", weight=Scheme(4, True, "per_group", 3), activation=Scheme(6, False)),
    ]
    prepared = prepare(net, (x,), overrides=overrides)
    for layer in ("conv2d", "linear"):
        prepared.edits.append(add_bias(prepared.graph, layer))
    with torch.no_grad():
        prepared.graph.get_parameter("conv.bias").fill_(0.25)
    result = finish(calibrate(prepared, [x], samples=4))
    save(Workload(net, (x,)).with_model(result.model, result.transform), tmp_path / "q.safetensors")
    again = load(tmp_path / "q.safetensors", registry=load_plugins().registry, factory=Bare)
    with torch.no_grad():
        assert torch.equal(again.model(x), result.model(x))
    assert float(again.model.get_parameter("conv.bias").detach().mean()) == pytest.approx(0.25, abs=0.01)


@pytest.fixture
def result(net: nn.Module, x: Tensor) -> QuantResult:
    return quantize(net, [x], example_inputs=(x,))


@pytest.mark.parametrize("kind", SCHEMES)
def test_the_replayed_graph_has_the_same_code_names_shapes_and_dtypes(net: nn.Module, x: Tensor, kind: str) -> None:
    result = quantize(net, [x], example_inputs=(x,), weight=SCHEMES[kind])
    replayed = StaticReplayer().replay(meta_net(), result.transform, (torch.empty(2, 3, 16, 16, device="meta"),))

    def forms(model: nn.Module) -> list[tuple[object, ...]]:
        named = [*model.named_parameters(), *model.named_buffers()]
        return [(name, tensor.shape, tensor.dtype) for name, tensor in named]

    assert replayed.code == result.model.code
    assert forms(replayed) == forms(result.model)
    assert all(tensor.is_meta for tensor in replayed.state_dict().values())


@pytest.mark.parametrize("kind", SCHEMES)
def test_a_loaded_checkpoint_gives_the_same_bits(net: nn.Module, x: Tensor, tmp_path: Path, kind: str) -> None:
    result = quantize(net, [x], example_inputs=(x,), weight=SCHEMES[kind])
    workload = Workload(net, (x,)).with_model(result.model, result.transform)
    save(workload, tmp_path / "q.safetensors")
    again = load(tmp_path / "q.safetensors", registry=load_plugins().registry, factory=Residual)
    with torch.no_grad():
        assert torch.equal(again.model(x), result.model(x))
    save(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "q.safetensors").read_bytes()


def test_int8_weights_take_a_byte_each(result: QuantResult, net: nn.Module, x: Tensor, tmp_path: Path) -> None:
    header = save(Workload(net, (x,)).with_model(result.model, result.transform), tmp_path / "q.safetensors")
    weights = {name: parameter for name, parameter in result.model.named_parameters() if parameter.dim() > 1}
    for name, parameter in weights.items():
        stored = header.stored[name]
        assert stored.stop - stored.start == parameter.numel()


def test_a_model_that_does_not_fit_is_named(result: QuantResult) -> None:
    other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).to("meta")
    with pytest.raises(CheckpointError, match=r"quant\.static: does not fit the model"):
        StaticReplayer().replay(other, result.transform, (torch.empty(2, 3, 16, 16, device="meta"),))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("placement", {}),
        ("placement", {"activations": [["x"]], "weights": []}),
        ("activation", {"bits": 99, "symmetric": False, "granularity": "per_tensor"}),
        ("placement", {"activations": ["nope"], "weights": []}),
        ("placement", {"activations": [7], "weights": []}),
        ("placement", {"activations": [["x", "y", "z"]], "weights": []}),
        ("placement", {"activations": "x", "weights": 3}),
        ("schemes", {"stem.weight": {"bits": 8, "symmetric": True, "granularity": "nope"}}),
        ("schemes", {}),
        ("schemes", []),
    ],
)
def test_malformed_records_are_checkpoint_errors(result: QuantResult, key: str, value: object) -> None:
    spoiled = replace(result.transform, data={**result.transform.data, key: value})
    with pytest.raises(CheckpointError):
        StaticReplayer().replay(meta_net(), spoiled, (torch.empty(2, 3, 16, 16, device="meta"),))


def test_a_newer_schema_says_to_upgrade(result: QuantResult) -> None:
    with pytest.raises(CheckpointError, match="schema 9 is not known") as caught:
        StaticReplayer().replay(meta_net(), replace(result.transform, schema=9), ())
    assert "upgrade" in str(caught.value.hint)
