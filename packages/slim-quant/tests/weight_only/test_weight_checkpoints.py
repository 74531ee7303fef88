"""Packed models in checkpoints and recipes, and records that somebody altered."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from weight_nets import Encoder, Sequence, encoder, tokens

from slim_core import Workload, checkpoint, load_plugins
from slim_core.errors import CheckpointError, DataError
from slim_core.technique import Run
from slim_core.workload import Transform
from slim_quant import PackedResult, quantize_dynamic, quantize_weights
from slim_quant.dynamic.record import DynamicReplayer
from slim_quant.dynamic.technique import DynamicConfig, DynamicTechnique
from slim_quant.weight_only.record import WeightOnlyReplayer
from slim_quant.weight_only.technique import WeightOnlyConfig, WeightOnlyTechnique


def saved(result: PackedResult, path: Path) -> checkpoint.Header:
    workload = Workload(encoder(), (tokens(),)).with_model(result.model, result.transform)
    return checkpoint.save(workload, path)


@pytest.mark.parametrize("options", [{"bits": 4}, {"bits": 3, "group_size": 20}, {"bits": 8, "symmetric": False}, {}])
def test_a_loaded_model_computes_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    result = quantize_weights(encoder(), (tokens(),), **options)
    saved(result, tmp_path / "m.safetensors")
    loaded = checkpoint.load(tmp_path / "m.safetensors", factory=encoder, check_parity=True).model
    with torch.no_grad():
        assert torch.equal(loaded(tokens()), result.model(tokens()))
    assert isinstance(loaded, Encoder)
    assert loaded.words.weight_packed is loaded.head.weight_packed


@pytest.mark.parametrize("activations", ["per_tensor", "per_token"])
def test_a_loaded_dynamic_model_computes_the_same(tmp_path: Path, activations: Any) -> None:
    result = quantize_dynamic(encoder(), (tokens(),), activations=activations)
    saved(result, tmp_path / "m.safetensors")
    loaded = checkpoint.load(tmp_path / "m.safetensors", factory=encoder, check_parity=True).model
    with torch.no_grad():
        assert torch.equal(loaded(tokens()), result.model(tokens()))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_loaded_recurrent_model_computes_the_same(tmp_path: Path, kind: str) -> None:
    def build() -> Sequence:
        torch.manual_seed(0)
        return Sequence(kind, num_layers=2, bidirectional=True).eval()

    x = torch.randn(2, 5, 12)
    result = quantize_dynamic(build(), (x,))
    checkpoint.save(Workload(build(), (x,)).with_model(result.model, result.transform), tmp_path / "m.safetensors")
    loaded = checkpoint.load(tmp_path / "m.safetensors", factory=build, check_parity=True).model
    with torch.no_grad():
        assert torch.equal(loaded(x), result.model(x))


def test_an_int4_checkpoint_is_a_seventh_of_the_float_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Encoder(256).eval(), tokens()
    checkpoint.save(Workload(net, (x,)), tmp_path / "float.safetensors", parity=False)
    result = quantize_weights(net, (x,), bits=4)
    done = Workload(net, (x,)).with_model(result.model, result.transform)
    checkpoint.save(done, tmp_path / "int4.safetensors", parity=False)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("int4", "float")]
    assert sizes[0] <= 0.16 * sizes[1]


@pytest.fixture(scope="module")
def transforms() -> dict[str, Transform]:
    x = torch.randn(2, 5, 12)
    return {
        "weights": quantize_weights(encoder(), (tokens(),), bits=4).transform,
        "dynamic": quantize_dynamic(encoder(), (tokens(),)).transform,
        "recurrent": quantize_dynamic(Sequence(), (x,)).transform,
    }


BUILD = {"weights": encoder, "dynamic": encoder, "recurrent": Sequence}
REPLAY = {"weights": WeightOnlyReplayer, "dynamic": DynamicReplayer, "recurrent": DynamicReplayer}
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**30,
    5.5,
    "",
    "a b",
    "../x",
    "a..b",
    "a" * 100_000,
    [],
    {},
    ["x"],
    {"x": 1},
)


def replay(kind: str, transform: Transform) -> None:
    with torch.device("meta"):
        model = BUILD[kind]()
    REPLAY[kind]().replay(model, transform, (tokens().to("meta"),))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def altered(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    found = copy.deepcopy(data)
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return found


@pytest.mark.parametrize("kind", ["weights", "dynamic", "recurrent"])
def test_records_with_a_wrong_value_are_refused_or_fit(transforms: dict[str, Transform], kind: str) -> None:
    given = transforms[kind]
    replay(kind, given)
    refused = 0
    for path in places(given.data):
        for value in WRONG:
            data = altered(given.data, path, value)
            try:
                replay(kind, Transform(given.kind, given.schema, data))
            except CheckpointError:
                refused += 1
                continue
            # only an emptied list, or another value that the format allows, may pass
            assert value in ([], True), f"{path} = {value!r} was read"
    assert refused > 100


@pytest.mark.parametrize("kind", ["weights", "dynamic"])
def test_unknown_and_missing_keys_are_refused(transforms: dict[str, Transform], kind: str) -> None:
    given = transforms[kind]
    for key in given.data:
        data = {name: value for name, value in given.data.items() if name != key}
        with pytest.raises(CheckpointError, match=key):
            replay(kind, Transform(given.kind, given.schema, data))
    with pytest.raises(CheckpointError, match="code"):
        replay(kind, Transform(given.kind, given.schema, {**given.data, "code": "x"}))
    with pytest.raises(CheckpointError, match="schema 2"):
        replay(kind, Transform(given.kind, 2, given.data))


def test_names_of_weights_that_are_not_tied_are_refused(transforms: dict[str, Transform]) -> None:
    data = copy.deepcopy(dict(transforms["weights"].data))
    data["weights"][0]["names"].append("layer.linear1.bias")
    with pytest.raises(CheckpointError, match="not one tensor"):
        replay("weights", Transform("quant.weight_only", 1, data))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(folder=tmp_path, seed=0, registry=load_plugins().registry)


def test_both_are_registered(run: Run) -> None:
    assert run.registry.get("techniques", "quant.weight_only") is WeightOnlyTechnique
    assert run.registry.get("techniques", "quant.dynamic") is DynamicTechnique
    assert run.registry.get("transforms", "quant.weight_only") is WeightOnlyReplayer
    assert run.registry.get("transforms", "quant.dynamic") is DynamicReplayer


def test_steps_give_packed_workloads_and_leave_the_given_one(run: Run) -> None:
    given = Workload(encoder(), (tokens(),), train=[(tokens(4), torch.zeros(4))])
    weights = WeightOnlyConfig.model_validate(
        {"bits": 4, "correction": "gptq", "samples": 4, "overrides": [{"match": "head", "weight": {"bits": 8}}]}
    )
    for technique, config in ((WeightOnlyTechnique(), weights), (DynamicTechnique(), DynamicConfig())):
        technique.check(config, run.registry)  # type: ignore[arg-type]
        technique.rehearse(given, config, run)  # type: ignore[arg-type]
        result = technique.run(given, config, run)  # type: ignore[arg-type]
        assert not given.transforms
        assert [item.kind for item in result.workload.transforms] == [technique.name]
        assert result.details["state_bytes"]["quantized"] < 0.4 * result.details["state_bytes"]["float"]
        assert {"name", "bits", "sqnr_db"} <= set(result.details["layers"][0])


def test_a_correction_without_training_data_is_refused_early(run: Run) -> None:
    with pytest.raises(DataError, match="training data"):
        WeightOnlyTechnique().rehearse(Workload(encoder(), (tokens(),)), WeightOnlyConfig(correction="gptq"), run)
