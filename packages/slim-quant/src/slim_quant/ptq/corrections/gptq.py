"""GPTQ: rounding column by column, where the columns to come make up for the error (Frantar et al., 2022)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from slim_core.errors import SlimError
from slim_quant.graph import get_tensor
from slim_quant.preparation import Calibrated, CalibrationData, Prepared
from slim_quant.ptq.corrections.base import CorrectionContext, Stage
from slim_quant.ptq.corrections.columns import input_columns, is_product
from slim_quant.ptq.corrections.units import layer_units, left_out
from slim_quant.ptq.corrections.walk import BATCH, MEMORY_MIB, SAMPLES, Walk, put
from slim_quant.schemes import Scheme, spread


class GPTQ:
    """Rounds each layer's weight to the least squared error of its output (Frantar et al., 2022, arXiv 2210.17323).

    Works on linear layers and on convolutions of one and two dimensions, grouped ones too; others are rounded to
    nearest. The scales are those of the calibration, per channel or per group. A row whose error is no smaller than
    with nearest rounding keeps nearest.

    Args:
        damping: share of the mean of the Hessian's diagonal that is added to it.
        block: columns whose errors are gathered before the rest of the matrix is changed.
        order: ``"activation"``: the columns of the largest inputs first; ``"natural"``: from left to right.
        samples: calibration samples that the Hessian is summed over, at most.
        batch: samples that are run at once.
        memory_mib: memory for the inputs of a layer, in MiB; where it is too little, fewer samples serve.

    Raises:
        SlimError: a value is out of its range.
    """

    stage: ClassVar[Stage] = "rounding"

    def __init__(
        self, damping: float = 0.01, block: int = 128, order: str = "activation", samples: int = SAMPLES,
        batch: int = BATCH, memory_mib: int = MEMORY_MIB,
    ) -> None:  # fmt: skip
        if damping <= 0 or block < 1 or min(samples, batch, memory_mib) < 1:
            raise SlimError("damping, block, samples, batch and memory_mib must be above 0")
        if order not in ("activation", "natural"):
            raise SlimError(f"unknown order '{order}'", hint="known: activation, natural")
        self.damping, self.block, self.order = damping, block, order
        self.samples, self.batch, self.memory_mib = samples, batch, memory_mib

    def __call__(
        self, prepared: Prepared, calibrated: Calibrated | None, data: CalibrationData, context: CorrectionContext
    ) -> None:
        if calibrated is None:
            raise ValueError("gptq runs after the calibration")
        units = [unit for unit in layer_units(prepared, activations=False) if is_product(unit.nodes[0])]
        walk = Walk(prepared, calibrated, data, context, samples=self.samples, batch=self.batch,
                    memory_mib=self.memory_mib)  # fmt: skip
        for place in left_out(prepared, units):
            put(prepared, place.name, walk.nearest(place))
            context.notes.append(f"gptq: {place.name} is rounded to nearest: it is shared, or no matrix of its inputs")
        before = after = 0.0
        with context.progress.track("gptq: rounding", len(units)) as track:
            for unit, chunks in walk.run(units):
                node, place = unit.nodes[0], unit.weights[0]
                weight = get_tensor(prepared.graph, place.name).detach()
                inputs = (input_columns(node, chunk.quantized, weight) for chunk in chunks)
                hessian = summed_hessian(inputs)
                scheme, groups = prepared.weights[place.name], len(hessian)
                scale, zero_point = (
                    spread(item, weight, place.along(scheme), scheme.group_size).expand(weight.shape).reshape(
                        groups, weight.shape[0] // groups, -1)
                    for item in calibrated.weights[place.name]
                )  # fmt: skip
                rows = weight.reshape(groups, weight.shape[0] // groups, -1)
                result, nearest = self.rounded(rows, hessian, scale, zero_point, scheme)
                before += float(squared_error(nearest - rows, hessian).sum())
                after += float(squared_error(result - rows, hessian).sum())
                put(prepared, place.name, result.reshape(weight.shape))
                track.advance(1)
        share = 100 * after / before if before else 100.0
        context.notes.append(
            f"gptq: the squared error of {len(units)} layers' outputs falls to {share:.1f} % of nearest rounding's"
        )

    def rounded(
        self, rows: Tensor, hessian: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme
    ) -> tuple[Tensor, Tensor]:
        """Return the weight rounded by GPTQ (by row no worse than nearest) and rounded to nearest.

        Args:
            rows: weight, (groups, outputs, inputs).
            hessian: (groups, inputs, inputs), float64.
            scale: in the shape of ``rows``.
            zero_point: in the shape of ``rows``.
            scheme: bits and symmetry.
        """
        exact, steps, zeros = rows.double(), scale.double(), zero_point.double()
        nearest = _on_grid(exact, steps, zeros, scheme)
        found = gptq(exact, hessian, steps, zeros, scheme, damping=self.damping, block=self.block,
                     by_size=self.order == "activation")  # fmt: skip
        better = squared_error(found - exact, hessian) < squared_error(nearest - exact, hessian)
        integers = torch.where(better.unsqueeze(-1), found, nearest) / steps
        return (integers.round().to(rows.dtype) * scale), _on_grid(rows, scale, zero_point.to(rows.dtype), scheme)


def gptq(
    rows: Tensor, hessian: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, *,
    damping: float = 0.01, block: int = 128, by_size: bool = False,
) -> Tensor:  # fmt: skip
    """Round a weight column by column; the columns after each take up its error.

    Args:
        rows: weight, (groups, outputs, inputs), float64.
        hessian: of the squared output error, (groups, inputs, inputs), float64; an input that is always zero has a
            row of zeros, and its weights go to zero.
        scale: in the shape of ``rows``.
        zero_point: in the shape of ``rows``.
        scheme: bits and symmetry.
        damping: share of the mean of the diagonal that is added to it.
        block: columns whose errors are gathered before the rest of the matrix is changed.
        by_size: take columns in the order of falling diagonal.
    """
    count = rows.shape[-1]
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    dead = diagonal == 0
    matrix = hessian + torch.diag_embed(dead.to(hessian.dtype) + damping * diagonal.mean(-1, keepdim=True))
    work = torch.where(dead.unsqueeze(1), torch.zeros_like(rows), rows)
    order = torch.argsort(diagonal, dim=-1, descending=True, stable=True) if by_size else None
    if order is not None:
        wide = order.unsqueeze(1).expand_as(work)
        work, scale, zero_point = work.gather(2, wide), scale.gather(2, wide), zero_point.gather(2, wide)
        matrix = matrix.gather(1, order.unsqueeze(2).expand_as(matrix)).gather(2, order.unsqueeze(1).expand_as(matrix))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    upper = torch.linalg.cholesky(inverse, upper=True)
    result = torch.zeros_like(work)
    for start in range(0, count, block):
        end = min(start + block, count)
        part, errors = work[:, :, start:end].clone(), torch.zeros_like(work[:, :, start:end])
        for column in range(end - start):
            at = start + column
            value = part[:, :, column]
            rounded = _on_grid(value, scale[:, :, at], zero_point[:, :, at], scheme)
            error = (value - rounded) / upper[:, at, at].unsqueeze(1)
            part[:, :, column:] -= error.unsqueeze(2) * upper[:, at, at:end].unsqueeze(1)
            result[:, :, at], errors[:, :, column] = rounded, error
        work[:, :, end:] -= errors @ upper[:, start:end, end:]
    if order is not None:
        result = torch.zeros_like(result).scatter(2, order.unsqueeze(1).expand_as(result), result)
    return result


def summed_hessian(inputs: Iterable[Tensor]) -> Tensor:
    """Return ``2 / n * X X^T`` over batches of columns, (groups, inputs, inputs), float64.

    Args:
        inputs: iterable of (groups, inputs, columns); n is the number of all columns.
    """
    total: Tensor | None = None
    count = 0
    for columns in inputs:
        wide = columns.float()
        product = (wide @ wide.transpose(1, 2)).double()
        total = product if total is None else total + product
        count += columns.shape[2]
    assert total is not None  # noqa: S101 - a walk has at least one batch
    return total * (2.0 / max(count, 1))


def squared_error(change: Tensor, hessian: Tensor) -> Tensor:
    """Return the mean squared error that a change of the weight makes in each output: (groups, outputs)."""
    wide = change.double()
    return ((wide @ hessian) * wide).sum(-1) / 2


def _on_grid(values: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> Tensor:
    integers = torch.clamp(torch.round(values / scale) + zero_point, scheme.qmin, scheme.qmax)
    return (integers - zero_point) * scale
