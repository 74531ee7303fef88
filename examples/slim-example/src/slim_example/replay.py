"""Rebuilding the compressed model's structure from a checkpoint's header, before its weights are read."""

from __future__ import annotations

from slim_core.errors import CheckpointError
from slim_core.workload import Inputs, Transform
from torch import nn

KIND = "example.lowrank"
SCHEMA = 1


def two_layers(layer: nn.Linear, rank: int) -> tuple[nn.Linear, nn.Linear]:
    """Return the layers that replace ``layer``, on its device; their weights are not meaningful yet."""
    device, dtype = layer.weight.device, layer.weight.dtype
    first = nn.Linear(layer.in_features, rank, bias=False, device=device, dtype=dtype)
    second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None, device=device, dtype=dtype)
    return first, second


class LowRankReplayer:
    """Edits shapes and nothing else. What a file says is checked: files come from anywhere."""

    def replay(self, model: nn.Module, transform: Transform, example_inputs: Inputs) -> nn.Module:
        if transform.schema != SCHEMA:
            raise CheckpointError(f"schema {transform.schema} is not known", field=KIND, hint="update slim-example")
        ranks = transform.data.get("ranks")
        if not isinstance(ranks, dict):
            raise CheckpointError("'ranks' is missing", field=KIND)
        layers = dict(model.named_modules())
        for path, rank in ranks.items():
            layer = layers.get(path)
            if not path or type(layer) is not nn.Linear:
                raise CheckpointError(f"the model has no linear layer '{path}'", field=KIND)
            if type(rank) is not int or not 1 <= rank <= min(layer.weight.shape):
                raise CheckpointError(f"rank {rank!r} is not possible for '{path}'", field=KIND)
            model.set_submodule(path, nn.Sequential(*two_layers(layer, rank)))
        return model
