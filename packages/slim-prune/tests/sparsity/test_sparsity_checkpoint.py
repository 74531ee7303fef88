"""Sparse models as files: smaller on disk, bit for bit the same, after structured pruning and before quantization."""

from __future__ import annotations

import pytest
import sparsity_nets as nets
import torch
from torch import nn

import slim_prune
from slim_core.checkpoint import inspect, load, save
from slim_core.plugins import load_plugins
from slim_core.testing.workloads import TinyNet, tiny_workload
from slim_core.workload import Transform, Workload, call
from slim_prune import sparsity
from slim_prune.sparsity import NM, Block, SparsityMasks, Unstructured
from slim_prune.sparsity.selecting import is_n_of_m


class Large(nn.Module):
    """Two layers that dwarf the header."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(32, 128, 3, padding=1)
        self.head = nn.Linear(128, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def registry():
    return load_plugins(select=["slim-prune"], strict=True).registry


@pytest.fixture(scope="module")
def large() -> Workload:
    torch.manual_seed(0)
    return Workload(Large().eval(), (torch.randn(2, 32, 4, 4),))


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("arguments", "packing", "share"),
    [
        ({"scheme": Unstructured("layer"), "sparsity": 0.5}, "bitmap", 0.5 + 1 / 32),
        ({"scheme": Unstructured("layer"), "sparsity": 0.8}, "bitmap", 0.2 + 1 / 32),
        ({"scheme": Unstructured("layer"), "sparsity": 0.95}, "gaps", 0.05 * (1 + 8 / 32)),
        ({"scheme": "2:4"}, "n_m", 0.5 + 0.75 / 32),
        ({"scheme": "1:4"}, "n_m", 0.25 + 0.5 / 32),
        ({"scheme": Block((8, 8), scope="layer"), "sparsity": 0.75}, "blocks", 0.25 + 1 / 64 / 32),
    ],
)
def test_files_are_as_small_as_the_closed_form_says(arguments, packing, share, large, registry, tmp_path) -> None:
    plan = sparsity.plan(large.model, **arguments)
    sparse = large.with_model(plan.apply(large.model), plan.transform())
    save(large, tmp_path / "dense.safetensors")
    save(sparse, tmp_path / "sparse.safetensors")
    header = inspect(tmp_path / "sparse.safetensors")
    dense = stored = 0
    for name, mask in plan.masks.items():
        assert header.tensors[name].sparse.packing == packing
        dense += 4 * mask.numel()
        stored += header.stored[name].nbytes
    assert stored == pytest.approx(share * dense, rel=0.01)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("dense", "sparse")]
    assert sizes[1] < sizes[0] - (1 - share) * dense * 0.98 + 2000
    again = load(tmp_path / "sparse.safetensors", registry=registry, factory=Large, check_parity=True)
    assert bits(again.model) == bits(sparse.model)
    assert SparsityMasks.of(again.model) == plan.masks
    assert [(t.kind, t.data) for t in again.transforms] == [(t.kind, t.data) for t in sparse.transforms]


def test_a_plan_without_zeros_makes_no_larger_file(large, tmp_path) -> None:
    plan = sparsity.plan(large.model, sparsity=0.0)
    save(large.with_model(plan.apply(large.model), plan.transform()), tmp_path / "a.safetensors")
    header = inspect(tmp_path / "a.safetensors")
    assert all(record.sparse is None for record in header.tensors.values())


def test_sparsity_after_structured_pruning_and_structured_pruning_after_sparsity(registry, tmp_path) -> None:
    work = tiny_workload()
    channels = slim_prune.plan(work.model, work.example_inputs, {"macs": 0.5}, round_to=4)
    small = work.with_model(channels.apply(work.model), channels.transform())
    plan = sparsity.plan(small.model, sparsity=0.6)
    both = small.with_model(plan.apply(small.model), plan.transform())
    assert plan.masks.violations(both.model) == 0
    again = slim_prune.plan(both.model, work.example_inputs, {"macs": 0.7}, round_to=4)
    thrice = both.with_model(again.apply(both.model), again.transform())
    for name, result in (("both", both), ("thrice", thrice)):
        path = tmp_path / f"{name}.safetensors"
        save(result, path)
        loaded = load(path, registry=registry, factory=TinyNet, check_parity=True)
        assert bits(loaded.model) == bits(result.model)
    assert SparsityMasks.of(thrice.model).sparsity > 0.3  # most of the zeros were in channels that stay


@pytest.mark.parametrize("bits_", [8, 4])
@pytest.mark.parametrize("scheme", ["unstructured", "2:4"])
def test_zeros_stay_zeros_under_symmetric_quantization_and_the_file_shrinks_twice(
    bits_, scheme, large, registry, tmp_path
) -> None:
    class Grid:
        def replay(self, model, transform, example_inputs):
            return model

    registry = load_plugins(select=["slim-prune"], strict=True).registry
    registry.register("transforms", "test.grid", Grid(), plugin="test")
    plan = sparsity.plan(large.model, scheme=scheme, **({} if scheme == "2:4" else {"sparsity": 0.75}))
    model = plan.apply(large.model)
    schemes, scales = {}, {}
    high = 2 ** (bits_ - 1) - 1
    with torch.no_grad():
        for name in plan.masks:
            weight = model.get_parameter(name)
            scale = weight.abs().flatten(1).amax(1) / high
            zero = torch.zeros(len(scale), dtype=torch.int32)
            weight.copy_(torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -high - 1, high))
            scales[f"{name}.scale"] = scale
            schemes[name] = {
                "bits": bits_, "symmetric": True, "granularity": "per_channel", "axis": 0, "packing": f"int{bits_}",
                "scale": f"{name}.scale", "zero_point": None,
            }  # fmt: skip
    assert plan.masks.violations(model) == 0  # 0 is on every symmetric grid
    if scheme == "2:4":
        for name in plan.masks:
            assert is_n_of_m((model.get_parameter(name) != 0).detach().numpy(), 1, NM())
    quantized = large.with_model(model, plan.transform(), Transform("test.grid", 1, {"schemes": schemes}, scales))
    save(quantized, tmp_path / "q.safetensors")
    header = inspect(tmp_path / "q.safetensors")
    for name, mask in plan.masks.items():
        assert header.tensors[name].sparse is not None
        index = 0.75 if header.tensors[name].sparse.packing == "n_m" else 1.0
        most = (mask.numel() * index + int(mask.sum()) * bits_) / 8
        assert header.stored[name].nbytes <= most + 2
        assert header.stored[name].nbytes < 0.75 * mask.numel() * bits_ / 8
    again = load(tmp_path / "q.safetensors", registry=registry, factory=Large, check_parity=True)
    assert bits(again.model) == bits(model)
    with torch.no_grad():
        assert torch.equal(call(again.model, large.example_inputs), call(model, large.example_inputs))


def test_every_kind_of_weight_comes_back(registry, tmp_path) -> None:
    model = nets.mixed()
    plan = sparsity.plan(model, scheme=Block((4, 1), "channels"), sparsity=0.9, include=["conv", "up", "left"])
    work = Workload(plan.apply(model), (torch.randn(2, 3, 5, 5),), transforms=(plan.transform(),))
    save(work, tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors", registry=registry, factory=nets.Mixed, check_parity=True)
    assert bits(again.model) == bits(work.model)
    assert again.model.right.weight is again.model.left.weight
