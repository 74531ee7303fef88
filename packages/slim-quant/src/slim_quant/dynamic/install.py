"""Gives the modules of a model the classes that compute in int8; used by the quantization and by replaying it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from slim_core.errors import ModelError
from slim_quant.dynamic.linear import DynamicEmbedding, DynamicLinear, DynamicScope, plain_linear
from slim_quant.dynamic.recurrent import recurrent_mixin, recurrent_obstacle
from slim_quant.dynamic.rounding import Activations
from slim_quant.weight_only.packed import PackedWeight, become, hold, looks_up, obstacle


def install_products(model: nn.Module, names: Sequence[str], weight: PackedWeight, activations: Activations) -> None:
    """Put an int8 weight in the place of the parameter with these (tied) names; its products round their input.

    Raises:
        ModelError: a module cannot hold it.
    """
    for full in names:
        path, _, name = full.rpartition(".")
        module = model.get_submodule(path)
        reason = obstacle(module, name)
        if reason is not None:
            raise ModelError(f"the weight '{full}' cannot be packed: {reason}")
        if "_packed_layouts" not in module.__dict__:
            if plain_linear(module) and name == "weight":
                mixin: type = DynamicLinear
            else:
                mixin = DynamicEmbedding if looks_up(module, name, weight.layout) else DynamicScope
            become(module, mixin)
        module.__dict__["_dynamic_activations"] = activations
        hold(module, name, weight)


def install_scopes(model: nn.Module, paths: Iterable[str]) -> None:
    """Let the forwards of these modules, and of those around them that skip their children, compute marked products.

    The modules around are the fused encoder layers of ``torch.nn``, which read their children's weights themselves.
    """
    wanted = set(paths)
    for path, module in model.named_modules():
        if isinstance(module, DynamicLinear | DynamicScope):
            continue
        fused = isinstance(module, nn.TransformerEncoderLayer | nn.TransformerEncoder)
        inside = fused and any(isinstance(child, DynamicLinear | DynamicScope) for child in module.modules())
        if path in wanted or inside:
            become(module, DynamicScope)


def recurrent_weights(module: nn.RNNBase) -> list[str]:
    """Return the names of a recurrent layer's matrices."""
    return [name for name in module._parameters if name.startswith("weight_")]


def install_recurrent(module: nn.RNNBase, weights: dict[str, PackedWeight]) -> None:
    """Put int8 weights in the place of a recurrent layer's.

    Raises:
        ModelError: the layer cannot have them.
    """
    reason = recurrent_obstacle(module)
    if reason is not None:
        raise ModelError(f"a recurrent layer cannot be quantized: {reason}")
    module._flat_weights_names = []  # the list that the fused kernel reads: it would keep the float weights
    module._flat_weights = []
    become(module, recurrent_mixin(module))
    for name, weight in weights.items():
        hold(module, name, weight)
