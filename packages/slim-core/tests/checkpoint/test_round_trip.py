"""Saving and loading give back every bit, and saving again gives the same file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import checkpoint_kit as kit
import pytest
import safetensors.torch
import torch
from torch import nn

from slim_core.checkpoint import inspect, load, load_into, parity_error, save, verify
from slim_core.errors import CheckpointError
from slim_core.workload import BuilderRef, Transform, Workload, call


class Tokens(nn.Module):
    """Integer and optional inputs by keyword; a dictionary as output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)

    def forward(self, ids, mask=None, scale=1.0, extra=None):
        x = self.embedding(ids) * scale
        if mask is not None:
            x = x * mask[..., None]
        return {"hidden": x, "pooled": x.mean(1), "count": ids.shape[0]}


def tokens() -> Workload:
    torch.manual_seed(0)
    inputs = {"ids": torch.randint(0, 11, (3, 5)), "mask": torch.ones(3, 5, dtype=torch.bool), "scale": 2.0,
              "extra": [None, (torch.ones(3),)]}  # fmt: skip
    return Workload(Tokens(), inputs, builder=BuilderRef("test/tokens"))


def half(dtype: torch.dtype) -> Workload:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype)
    return Workload(model, (torch.ones(2, 4, dtype=dtype),))


def shared_buffers() -> Workload:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    model[1].running_mean = model[0].running_mean
    return Workload(model, (torch.ones(2, 4),))


def channels_last() -> Workload:
    made = kit.workload()
    made.model.to(memory_format=torch.channels_last)
    return made


def empty() -> Workload:
    return Workload(nn.Identity(), (torch.ones(2, 2),))


def twice_the_same_module() -> Workload:
    inner = nn.Linear(4, 4)
    return Workload(nn.Sequential(inner, nn.ReLU(), inner), (torch.ones(1, 4),))


def recurrent() -> Workload:
    return Workload(nn.LSTM(4, 3, num_layers=2, batch_first=True), (torch.ones(2, 5, 4),))


def build_shared() -> nn.Module:
    return shared_buffers().model


def build_twice() -> nn.Module:
    return twice_the_same_module().model


CASES: dict[str, tuple[Callable[[], Workload], Callable[[], nn.Module] | None]] = {
    "plain": (kit.workload, None),
    "pruned": (kit.pruned, None),
    "quantized": (kit.rich, None),
    "mapping inputs": (tokens, Tokens),
    "shared buffers": (shared_buffers, build_shared),
    "the same module twice": (twice_the_same_module, build_twice),
    "bfloat16": (lambda: half(torch.bfloat16), lambda: half(torch.bfloat16).model),
    "float16": (lambda: half(torch.float16), lambda: half(torch.float16).model),
    "float64": (lambda: half(torch.float64), lambda: half(torch.float64).model),
    "channels last": (channels_last, None),
    "no tensors": (empty, nn.Identity),
    "recurrent": (recurrent, lambda: nn.LSTM(4, 3, num_layers=2, batch_first=True)),
}


@pytest.fixture(params=CASES)
def case(request):
    make, factory = CASES[request.param]
    return make(), factory


def test_every_bit_comes_back_and_the_outputs_are_equal(case, registry, tmp_path) -> None:
    workload, factory = case
    header = save(workload, tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors", registry=registry, factory=factory, check_parity=True)
    kit.same_state(workload.model, again.model)
    assert not any(module.training for module in again.model.modules())
    assert (again.task, again.train, again.val) == (None, None, None)
    assert inspect(tmp_path / "a.safetensors") == header
    assert verify(tmp_path / "a.safetensors").bytes == header.file_bytes - header.data_start
    assert parity_error(tmp_path / "a.safetensors", again.model) == 0.0
    workload.model.eval()
    with torch.no_grad():
        mine, other = (call(model, again.example_inputs) for model in (workload.model, again.model))
    for one, two in zip(_flat(mine), _flat(other), strict=True):
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def test_saving_what_was_loaded_gives_the_same_bytes(case, registry, tmp_path) -> None:
    workload, factory = case
    first = save(workload, tmp_path / "a.safetensors", recipe={"name": "r", "x": [1, 2.5]}, metrics={"m": 1})
    again = load(tmp_path / "a.safetensors", registry=registry, factory=factory)
    save(again, tmp_path / "b.safetensors", recipe=first.recipe, metrics=first.metrics, producers=first.producers)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_builder_and_transforms_come_back(registry, tmp_path) -> None:
    workload = kit.rich()
    save(workload, tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors", registry=registry)
    assert again.builder == workload.builder
    for mine, other in zip(workload.transforms, again.transforms, strict=True):
        assert (mine.kind, mine.schema, mine.data) == (other.kind, other.schema, other.data)
        assert {name: kit.bits(tensor) for name, tensor in mine.tensors.items()} == {
            name: kit.bits(tensor) for name, tensor in other.tensors.items()
        }


def test_mapping_inputs_keep_order_structure_and_integer_values(tmp_path) -> None:
    workload = tokens()
    save(workload, tmp_path / "a.safetensors")
    inputs = load(tmp_path / "a.safetensors", factory=Tokens).example_inputs
    assert list(inputs) == ["ids", "mask", "scale", "extra"]
    assert torch.equal(inputs["ids"], workload.example_inputs["ids"][:2])
    assert inputs["mask"].dtype == torch.bool
    assert inputs["scale"] == 2.0
    assert inputs["extra"][0] is None
    assert isinstance(inputs["extra"][1], tuple)


def test_the_header_describes_the_signature(tmp_path) -> None:
    header = save(tokens(), tmp_path / "a.safetensors")
    specs = {item.spec.name: item.spec for item in header.inputs.tensors}
    assert specs["ids"].shape == (None, 5)
    assert specs["ids"].dtype == "int64"
    assert specs["extra.1.0"].shape == (None,)
    assert header.inputs.batch == 2


def test_random_inputs_are_multiples_of_a_sixty_fourth_and_spread(tmp_path) -> None:
    save(kit.workload(), tmp_path / "a.safetensors")
    (x,) = load(tmp_path / "a.safetensors", registry=kit.registry()).example_inputs
    assert x.shape == (2, 3, 4, 4)
    assert torch.equal(x * 64, (x * 64).round())
    assert -2 <= x.min() < -1
    assert 1 < x.max() < 2


def test_large_inputs_are_stored_as_one_sample(tmp_path) -> None:
    workload = Workload(nn.Flatten(), (torch.ones(8, 3, 128, 128),))
    header = save(workload, tmp_path / "a.safetensors")
    assert header.inputs.batch == 1
    assert header.stored["slim:input/0"].nbytes == 3 * 128 * 128
    (output,) = header.parity.outputs
    assert header.stored["slim:output/0"].nbytes == 4 * -(-3 * 128 * 128 // output.step) <= 4 * 2**14


def test_a_model_that_needs_its_batch_size_keeps_it(tmp_path) -> None:
    class Fixed(nn.Module):
        def forward(self, x):
            return x.view(5, 4)

    header = save(Workload(Fixed(), (torch.ones(5, 2, 2),)), tmp_path / "a.safetensors")
    assert header.inputs.batch == 5


def test_given_inputs_are_stored_where_random_ones_give_no_finite_output(tmp_path) -> None:
    class Log(nn.Module):
        def forward(self, x):
            return torch.log(x)

    save(Workload(Log(), (torch.full((3, 2), 2.0),)), tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors", factory=Log, check_parity=True)
    assert torch.equal(again.example_inputs[0], torch.full((2, 2), 2.0))


def test_plain_safetensors_reads_the_tensors(tmp_path) -> None:
    workload = kit.workload()
    save(workload, tmp_path / "a.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "a.safetensors")
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("slim:")}
    fresh = kit.net(seed=5)
    fresh.load_state_dict({**own, "right.weight": own["left.weight"]})
    kit.same_state(fresh, workload.model)


def test_tied_tensors_are_stored_once(tmp_path) -> None:
    header = save(kit.workload(), tmp_path / "a.safetensors")
    assert header.ties == (("left.weight", "right.weight"),)
    assert "right.weight" not in header.tensors


def test_tensors_that_the_builder_ties_and_the_model_does_not_stay_apart(registry, tmp_path) -> None:
    workload = kit.workload()
    workload.model.right.weight = nn.Parameter(torch.zeros(5, 6))
    save(workload, tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors", registry=registry).model
    assert again.right.weight is not again.left.weight
    kit.same_state(workload.model, again)


def test_an_int8_file_is_about_a_quarter_of_the_float_one(tmp_path) -> None:
    model = nn.Linear(512, 512, bias=False)
    integers = torch.randint(-128, 128, (512, 512))
    model.weight = nn.Parameter(integers.float() * 0.5)
    workload = Workload(model, (torch.ones(1, 512),))
    plain = save(workload, tmp_path / "float.safetensors").file_bytes
    transform = Transform("test.grid", 1, {"schemes": {"weight": kit.scheme(granularity="per_tensor")}},
                          {"scale": torch.tensor(0.5)})  # fmt: skip
    packed = save(workload.with_model(model, transform), tmp_path / "int.safetensors").file_bytes
    assert 0.25 < packed / plain < 0.26
    stored = safetensors.torch.load_file(tmp_path / "int.safetensors")["weight"]
    assert torch.equal(stored, integers.to(torch.int8))


def test_a_model_in_training_is_saved_without_being_changed(tmp_path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.frozen = nn.Dropout().eval()
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, x):
            self.calls += 1
            return self.frozen(self.norm(x))

    model = Counting()
    model.train()
    model.frozen.eval()
    state = torch.get_rng_state()
    save(Workload(model, (torch.ones(3, 4),)), tmp_path / "a.safetensors")
    assert (model.training, model.norm.training, model.frozen.training) == (True, True, False)
    assert model.calls == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_leaves_the_random_state_alone(registry, tmp_path) -> None:
    save(kit.workload(), tmp_path / "a.safetensors")
    state = torch.get_rng_state()
    load(tmp_path / "a.safetensors", registry=registry, check_parity=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_builder_that_computes_with_values_is_run_for_real(tmp_path) -> None:
    class Rates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
            self.weight = nn.Parameter(torch.ones(3))
            self.tied = self.weight

        def forward(self, x):
            return x * self.weight * self.rates[1]

    model = Rates()
    model.weight.data.mul_(3)
    save(Workload(model, (torch.ones(2, 3),)), tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors", factory=Rates, check_parity=True).model
    assert again.rates == [0.0, 0.5, 1.0]
    assert again.tied is again.weight


def test_lists_of_weights_follow_the_loaded_weights(tmp_path) -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))
            self.all = {"weights": [self.weight]}
            self.table = [torch.arange(3.0)]

        def forward(self, x):
            return x * self.all["weights"][0] + self.table[0]

    save(Workload(Listed(), (torch.ones(2, 3),)), tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors", factory=Listed, check_parity=True).model
    assert again.all["weights"][0] is again.weight
    assert torch.equal(again.table[0], torch.arange(3.0))


def test_a_plain_tensor_that_cannot_be_built_again_is_named(tmp_path) -> None:
    calls = []

    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            calls.append(1)
            self.table = torch.zeros(len(calls))

        def forward(self, x):
            return x

    save(Workload(Growing(), (torch.ones(2, 3),)), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"tensors\.table: .*plain attribute") as caught:
        load(tmp_path / "a.safetensors", factory=Growing)
    assert "register_buffer" in caught.value.hint


def test_parametrized_modules_come_back(tmp_path) -> None:
    def build():
        return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))

    workload = Workload(build(), (torch.ones(1, 3),))
    save(workload, tmp_path / "a.safetensors")
    kit.same_state(workload.model, load(tmp_path / "a.safetensors", factory=build, check_parity=True).model)


def test_constants_of_an_exported_graph_come_back(tmp_path) -> None:
    from slim_core.graph.export import export_graph

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.table = torch.tensor([1.0, 2.0, 3.0])

        def forward(self, x):
            return self.linear(x) * torch.tensor([0.5, 1.0, 2.0]) + self.table

    inputs = (torch.ones(2, 3),)
    workload = Workload(export_graph(Constant(), inputs), inputs)
    save(workload, tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors", factory=lambda: export_graph(Constant(), inputs), check_parity=True)
    kit.same_state(workload.model, again.model)


def test_wrappers_are_left_out(tmp_path) -> None:
    workload = kit.workload(nn.DataParallel(kit.net()))
    assert "conv.weight" in save(workload, tmp_path / "a.safetensors").tensors


def test_load_into_fills_the_tensors_that_are_there(tmp_path) -> None:
    source, target = kit.pruned(), kit.keep(kit.net(seed=9), torch.tensor([1, 2, 3]))
    save(source, tmp_path / "a.safetensors")
    before = dict(target.named_parameters())
    load_into(tmp_path / "a.safetensors", target)
    assert all(before[name] is parameter for name, parameter in target.named_parameters())
    kit.same_state(source.model, target)


def test_load_into_refuses_another_model_and_leaves_it_unchanged(tmp_path) -> None:
    save(kit.workload(), tmp_path / "a.safetensors")
    target = kit.net(width=5, seed=3)
    state = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"conv\.weight is a parameter of float32"):
        load_into(tmp_path / "a.safetensors", target)
    assert all(torch.equal(tensor, state[name]) for name, tensor in target.state_dict().items())


def test_without_parity_the_model_is_not_run(tmp_path) -> None:
    class Never(nn.Module):
        def forward(self, x):
            raise AssertionError

    header = save(Workload(Never(), (torch.ones(3, 2), torch.arange(3))), tmp_path / "a.safetensors", parity=False)
    assert header.parity is None
    again = load(tmp_path / "a.safetensors", factory=Never)
    assert torch.equal(again.example_inputs[1], torch.arange(2))
    with pytest.raises(CheckpointError, match="parity"):
        parity_error(tmp_path / "a.safetensors", again.model)


def test_parity_finds_a_builder_that_computes_something_else(registry, tmp_path) -> None:
    class Other(kit.Net):
        def forward(self, x):
            return super().forward(x) * 1.001

    save(kit.workload(), tmp_path / "a.safetensors")
    load(tmp_path / "a.safetensors", factory=Other)
    with pytest.raises(CheckpointError, match=r"parity: .* differs from the stored one by 0\.001"):
        load(tmp_path / "a.safetensors", factory=Other, check_parity=True)


def test_another_process_writes_the_same_bytes(rich_file, tmp_path) -> None:
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    script += "import checkpoint_kit, pathlib; checkpoint_kit.save_rich(pathlib.Path(sys.argv[1]))"
    path = tmp_path / "a.safetensors"
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, env=environment, timeout=120)
    assert path.read_bytes() == rich_file.read_bytes()


def _flat(value) -> list:
    if isinstance(value, dict):
        return [item for inner in value.values() for item in _flat(inner)]
    if isinstance(value, tuple | list):
        return [item for inner in value for item in _flat(inner)]
    return [value]
