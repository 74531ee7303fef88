from __future__ import annotations

import pytest
import torch
from torch import nn

import slim_zoo
from slim_core.errors import SlimError
from slim_zoo.models.common import fitted_strides, scaled

#: published parameter counts at 224x224, 1000 classes; the CIFAR family's are computed below
PUBLISHED = {
    "vgg11": 132_863_336, "vgg11_bn": 132_868_840, "vgg13": 133_047_848, "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544, "vgg16_bn": 138_365_992, "vgg19": 143_667_240, "vgg19_bn": 143_678_248,
    "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032,
    "mobilenet_v1": 4_231_976, "mobilenet_v2": 3_504_872,
    "mobilenet_v3_large": 5_483_032, "mobilenet_v3_small": 2_542_856,
}  # fmt: skip


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def build(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return slim_zoo.create_model(name, **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_are_as_many_as_published(name: str):
    assert parameters(build(name)) == PUBLISHED[name]


@pytest.mark.parametrize("depth", [20, 56])
def test_the_cifar_family_has_the_parameters_of_its_description(depth: int):
    """Stem, three stages of (depth - 2) / 6 blocks of two 3x3 convolutions, two 1x1 shortcuts, one linear layer."""
    blocks = (depth - 2) // 6
    total = 3 * 16 * 9 + 2 * 16 + 64 * 10 + 10
    for inputs, channels in ((16, 16), (16, 32), (32, 64)):
        total += 9 * inputs * channels + (2 * blocks - 1) * 9 * channels**2 + 2 * blocks * 2 * channels
        total += inputs * channels + 2 * channels if inputs != channels else 0
    assert parameters(build(f"resnet{depth}")) == total
    assert total == pytest.approx({20: 0.27e6, 56: 0.85e6}[depth], rel=0.015)  # table 6 of the paper


@pytest.mark.parametrize("name", slim_zoo.list_models())
def test_small_pictures_with_one_channel_give_finite_logits_and_gradients_everywhere(name: str):
    torch.manual_seed(0)
    model = slim_zoo.create_model(name, width=0.25, num_classes=7, in_channels=1, input_size=32)
    logits = model(torch.randn(4, 1, 32, 32))
    assert logits.shape == (4, 7)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def last_map(model: nn.Module, size: int) -> int:
    """The width of the last feature map, seen by the pooling layer."""
    seen: list[int] = []
    handle = model.pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    model.eval()(torch.empty(1, 3, size, size, device="meta"))
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", {224: 7, 128: 4, 64: 4, 32: 4, 28: 4, 8: 4}),
        ("resnet20", {224: 56, 32: 8, 8: 2, 4: 2}),
        ("mobilenet_v1", {224: 7, 64: 2, 32: 2, 28: 2, 8: 2}),
        ("mobilenet_v2", {224: 7, 64: 2, 32: 2}),
        ("mobilenet_v3_small", {224: 7, 64: 2, 32: 2}),
        ("mobilenet_v3_large", {224: 7, 64: 2, 32: 2}),
        ("vgg11_bn", {224: 7, 32: 1, 28: 1, 8: 1}),
    ],
)
def test_the_last_feature_map_is_as_wide_as_documented(name: str, expected: dict[int, int]):
    assert {size: last_map(build(name, input_size=size), size) for size in expected} == expected


def test_a_small_resnet_is_the_usual_one_of_cifar():
    model = build("resnet18", num_classes=10, input_size=32)
    assert parameters(model) == 11_173_962
    assert isinstance(model.stem[0][0], nn.Conv2d)
    assert (model.stem[0][0].kernel_size, len(model.stem)) == ((3, 3), 1)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_large", "resnet18", "vgg16_bn"])
def test_width_scales_the_parameters_about_quadratically(name: str):
    full, half = (parameters(build(name, width=width, input_size=32, num_classes=10)) for width in (1.0, 0.5))
    assert 0.2 < half / full < 0.32


def test_every_channel_count_is_a_multiple_of_eight():
    for name in slim_zoo.list_models():
        model = build(name, width=0.35, input_size=32, num_classes=8)
        outputs = {module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)}
        assert {channels % 8 for channels in outputs} == {0}, name


def test_rounding_of_widths():
    assert [scaled(channels) for channels in (1, 8, 11, 12, 20, 27)] == [8, 8, 16, 16, 24, 32]
    assert all(scaled(channels) >= 0.9 * channels for channels in range(1, 500))


def test_strides_are_taken_away_from_the_front():
    assert fitted_strides((2, 1, 2, 2), 224, 4) == [2, 1, 2, 2]
    assert fitted_strides((2, 1, 2, 2), 16, 4) == [1, 1, 2, 2]
    assert fitted_strides((2, 1, 2, 2), 8, 4) == [1, 1, 1, 2]
    assert fitted_strides((2, 1, 2, 2), 1, 4) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "wrong",
    [{"width": 0}, {"num_classes": 0}, {"in_channels": 0}, {"input_size": 0}, {"dropout": 1.0}],
)
@pytest.mark.parametrize(
    "name", ["vgg11_bn", "resnet18", "resnet20", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"]
)
def test_options_that_make_no_sense_are_named(name: str, wrong: dict[str, float]):
    with pytest.raises(SlimError, match=next(iter(wrong))):
        build(name, **wrong)


def test_the_initial_weights_are_a_function_of_the_seed():
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(slim_zoo.create_model("mobilenet_v2", width=0.25, input_size=32))
    for one, two in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(one, two)
