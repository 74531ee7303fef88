"""Families of architectures in small, written as their authors write them: what tests and benchmarks prune.

Nothing here was shaped for the analysis. :data:`FAMILIES` names them; :func:`build` makes one with random weights and
norms that matter. The oracle for them is in ``slim_core.testing.oracle``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slim_core.testing.families import convolutional, dense, mobile, odd, recurrent, transformers

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Family:
    """An architecture.

    Args:
        make: builds it from a base width.
        inputs: makes a batch of two.
        exact: whether no statistics are taken over channels that may go, so that removing equals masking.
        width: the base width for tests.
        scales: whether it can be built wider.
    """

    make: Callable[[int], nn.Module]
    inputs: Callable[[], Inputs]
    exact: bool = True
    width: int = 8
    scales: bool = True


def images() -> Inputs:
    return (torch.randn(2, 3, 32, 32),)


def words() -> Inputs:
    return (torch.randint(1, transformers.VOCABULARY, (2, 12)),)


def pairs_of_words() -> Inputs:
    return (*words(), *words())


def masked_words() -> Inputs:
    mask = torch.ones(2, 12)
    mask[1, 8:] = 0
    return (*words(), mask, torch.randint(0, 2, (2, 12)))


def padded_words() -> Inputs:
    (ids,) = words()
    ids[1, 7:] = 0
    return (ids,)


def signals() -> Inputs:
    return (torch.randn(2, 3, 16),)


def steps() -> Inputs:
    return (torch.randn(2, 6, 3),)


#: families by name
FAMILIES: dict[str, Family] = {
    "vgg": Family(convolutional.Vgg, images),
    "resnet": Family(convolutional.resnet, images),
    "resnext": Family(convolutional.resnext, images),
    "regnet": Family(convolutional.regnet, images, width=16),
    "densenet": Family(convolutional.densenet, images),
    "googlenet": Family(convolutional.GoogLeNet, images),
    "squeezenet": Family(convolutional.SqueezeNet, images),
    "mobilenet_v1": Family(mobile.mobilenet_v1, images),
    "mobilenet_v2": Family(mobile.mobilenet_v2, images),
    "mobilenet_v3": Family(mobile.MobileNetV3, images),
    "efficientnet": Family(mobile.efficientnet, images),
    "shufflenet_v2": Family(mobile.shufflenet_v2, images),
    "convnext": Family(mobile.ConvNeXt, images, exact=False),
    "convnext_v2": Family(mobile.convnext_v2, images, exact=False),
    "cbam_resnet": Family(mobile.cbam_resnet, images, exact=False),
    "eca_resnet": Family(mobile.eca_resnet, images, exact=False),
    "unet": Family(dense.UNet, images),
    "unet_bilinear": Family(dense.unet_bilinear, images),
    "fpn": Family(dense.FpnSegmenter, images),
    "yolo": Family(dense.Yolo, images),
    "deeplab": Family(dense.DeepLab, images),
    "super_resolution": Family(dense.SuperResolution, images),
    "vit": Family(transformers.ViT, images, exact=False, width=16),
    "vit_head_dim": Family(transformers.vit_head_dim, images, exact=False, width=16),
    "swin": Family(transformers.Swin, images, exact=False, width=16),
    "bert": Family(transformers.Bert, masked_words, exact=False, width=16),
    "gpt": Family(transformers.Gpt, words, exact=False, width=16),
    "llama": Family(transformers.Llama, words, exact=False, width=16),
    "torch_encoder": Family(transformers.TorchEncoder, words, exact=False, width=16),
    "torch_transformer": Family(transformers.TorchTransformer, pairs_of_words, exact=False, width=16),
    "cross_attention": Family(transformers.CrossAttention, images, exact=False, width=16),
    "lstm": Family(recurrent.LstmTagger, words),
    "gru": Family(recurrent.GruClassifier, signals),
    "seq2seq": Family(recurrent.Seq2Seq, pairs_of_words),
    "cells": Family(recurrent.CellLoop, steps),
    "projected_lstm": Family(recurrent.ProjectedLstm, steps),
    "packed_lstm": Family(recurrent.PackedLstm, padded_words),
    "weight_norm": Family(odd.WeightNormed, signals),
    "spectral_norm": Family(odd.SpectralNormed, images),
    "raw_parameters": Family(odd.RawParameters, images),
    "literal_view": Family(odd.Literal, images, scales=False),
    "branching": Family(odd.Branching, images),
    "reused": Family(odd.Reused, images),
    "sliced": Family(odd.Sliced, images),
    "glu": Family(odd.Glu, signals),
    "detector": Family(odd.Detector, images),
}


def build(name: str, width: int | None = None, seed: int = 0) -> tuple[nn.Module, Inputs]:
    """Return a family's model in eval mode, and a batch of inputs. The same arguments give the same bits.

    Args:
        name: which of :data:`FAMILIES`.
        width: base width (default: the family's own for tests).
        seed: seed of weights, running statistics and inputs; the global generator is left as it was.
    """
    family = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.make(family.width if width is None or not family.scales else width)
        randomise(model)
        return model.eval(), family.inputs()


def randomise(model: nn.Module) -> None:
    """Give what a fresh model has at zero or one random values, so that a forgotten bias or scale shows."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                assert module.running_var is not None  # noqa: S101
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
        for parameter in model.parameters():
            if parameter.dim() == 1 or bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter) * 0.2)
