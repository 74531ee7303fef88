"""The zoo's models, one module per family. Each model's name is a function here."""

from __future__ import annotations

from slim_zoo.models.mobilenet_v1 import MobileNetV1, mobilenet_v1
from slim_zoo.models.mobilenet_v2 import MobileNetV2, mobilenet_v2
from slim_zoo.models.mobilenet_v3 import MobileNetV3, mobilenet_v3_large, mobilenet_v3_small
from slim_zoo.models.resnet import CifarResNet, ResNet, resnet18, resnet20, resnet34, resnet50, resnet56
from slim_zoo.models.vgg import VGG, vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn

__all__ = [
    "VGG",
    "CifarResNet",
    "MobileNetV1",
    "MobileNetV2",
    "MobileNetV3",
    "ResNet",
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
]
