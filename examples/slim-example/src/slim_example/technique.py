"""A technique: each linear layer becomes two thin ones, by a truncated singular value decomposition."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from pydantic import Field
from slim_core.errors import PatternError, close_match
from slim_core.technique import Run, StepResult, StrictConfig
from slim_core.workload import Transform, Workload
from torch import nn

from slim_example.replay import KIND, SCHEMA, two_layers


class LowRankConfig(StrictConfig):
    """The step's keys in a recipe. ``slim recipe schema`` shows the descriptions in editors."""

    keep: float = Field(0.5, gt=0, le=1, description="share of each layer's singular values to keep")
    include: list[str] = Field(["*"], min_length=1, description="globs over module paths: the layers to work on")


class LowRank:
    """``W (O, I)`` becomes ``A (O, r) @ B (r, I)``, the best approximation of rank ``r`` (Eckart and Young, 1936).

    A layer that would not get smaller is left alone, with a note.
    """

    name: ClassVar[str] = KIND
    Config: ClassVar[type[LowRankConfig]] = LowRankConfig

    def run(self, workload: Workload, config: LowRankConfig, run: Run) -> StepResult:
        model = copy.deepcopy(workload.model)  # the given workload stays as it is
        layers = dict(_linear_layers(model))
        chosen = {path: layer for path, layer in layers.items() if _matches(path, config.include)}
        if not chosen:
            hint = close_match(config.include[0], layers) or f"linear layers: {', '.join(layers) or 'none'}"
            raise PatternError(f"no linear layer matches {config.include}", hint=hint)

        ranks: dict[str, int] = {}
        rows: list[dict[str, Any]] = []
        notes: list[str] = []
        with run.progress.track("factorizing", len(chosen)) as track:
            for path, layer in chosen.items():
                track.advance()
                outputs, inputs = layer.weight.shape
                rank = max(1, round(config.keep * min(outputs, inputs)))
                before, after = outputs * inputs, rank * (outputs + inputs)
                if after >= before:
                    notes.append(f"{path}: rank {rank} would not make it smaller; left alone")
                    continue
                model.set_submodule(path, factorize(layer, rank))
                ranks[path] = rank
                rows.append({"name": path, "rank": rank, "weights_before": before, "weights_after": after})

        # What a checkpoint needs to rebuild the model: no code, only which layers and which ranks.
        transform = Transform(KIND, SCHEMA, {"ranks": ranks})
        return StepResult(workload.with_model(model, transform), details={"layers": rows}, notes=tuple(notes))


@torch.no_grad()
def factorize(layer: nn.Linear, rank: int) -> nn.Sequential:
    """Return two linear layers whose product is the best approximation of ``layer`` with ``rank``."""
    first, second = two_layers(layer, rank)
    u, s, vh = torch.linalg.svd(layer.weight.double(), full_matrices=False)  # (O, k), (k,), (k, I)
    root = s[:rank].sqrt()
    first.weight.copy_(root[:, None] * vh[:rank])  # (rank, I)
    second.weight.copy_(u[:, :rank] * root)  # (O, rank)
    if layer.bias is not None:
        second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).train(layer.training)


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers that can be replaced: not the model itself, and none whose weight is used elsewhere."""
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    for path, module in model.named_modules():
        if type(module) is nn.Linear and path and uses[id(module.weight)] == 1:
            yield path, module


def _matches(path: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)
