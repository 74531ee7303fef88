"""The names of the zoo's models, readable without importing torch."""

from __future__ import annotations

#: Prefix under which the models are registered: ``"zoo/resnet18"``.
PREFIX = "zoo/"

#: Every model, without the prefix; each is a function of :mod:`slim_zoo.models`.
MODELS = (
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet56",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
)

#: Recipes, as files in ``recipes/``.
RECIPES: tuple[str, ...] = (
    "mobilenet_v1-digits",
    "mobilenet_v1-digits-qat",
    "mobilenet_v1-fashion-mnist",
    "mobilenet_v2-fashion-mnist",
    "mobilenet_v2-fashion-mnist-qat",
    "mobilenet_v3_small-fashion-mnist",
    "resnet18-fashion-mnist",
    "resnet20-fashion-mnist",
    "resnet20-fashion-mnist-mixed",
    "resnet50-fashion-mnist",
    "resnet56-fashion-mnist",
    "vgg16_bn-fashion-mnist",
)
