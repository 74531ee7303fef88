"""Training and evaluation mode of models: switching it, and giving every module back the mode that it had.

A module whose class or instance has a ``train`` of its own keeps more than a flag there (an exported graph has the mode
in its operators); it gets its mode through that method, every other module by its flag.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def set_mode(model: nn.Module, training: bool) -> None:
    """Put a model into training or evaluation mode, also where it is or holds a module that refuses.

    A module from ``torch.export`` has its mode compiled in, and its ``train`` and ``eval`` raise: it is left as it is.
    """
    try:
        model.train(training)
    except NotImplementedError:
        for child in model.children():
            set_mode(child, training)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold a model in evaluation mode for a while; then every submodule gets back the mode that it had."""
    with kept_modes(model):
        if any(module.training for module in model.modules()):
            set_mode(model, False)
        yield


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Give every submodule back the mode that it had, at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:  # outer modules first: theirs reaches the inner ones, which then get their own
            if module.training != mode and _switches_itself(module):
                set_mode(module, mode)
        for module, mode in modes:
            module.training = mode


def _switches_itself(module: nn.Module) -> bool:
    return "train" in vars(module) or type(module).train is not nn.Module.train
