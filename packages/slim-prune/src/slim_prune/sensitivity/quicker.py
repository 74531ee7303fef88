"""Making a program quick without changing what it computes, beyond the last digits: fewer passes over memory.

* A batch norm behind a convolution becomes a part of its weights, as in deployment.
* An activation or an addition works in place where nobody else sees its input.
* On a CPU, pictures are held with their channels last: convolutions are several times faster so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slim_prune.sensitivity.program import Place, Program, Step, plan_frees

aten = torch.ops.aten

_CONVOLUTIONS = {"aten.conv1d.default": 3, "aten.conv2d.default": 4, "aten.conv3d.default": 5}
_BATCH_NORM = "aten.batch_norm.default"
#: operators whose result is a tensor of its own
_FRESH = frozenset({*_CONVOLUTIONS, _BATCH_NORM, "aten.linear.default", "aten.add.Tensor", "aten.mul.Tensor"})
_IN_PLACE = {
    "aten.relu.default": aten.relu_.default,
    "aten.hardtanh.default": aten.hardtanh_.default,
    "aten.hardswish.default": aten.hardswish_.default,
    "aten.hardsigmoid.default": aten.hardsigmoid_.default,
    "aten.silu.default": aten.silu_.default,
    "aten.sigmoid.default": aten.sigmoid_.default,
    "aten.leaky_relu.default": aten.leaky_relu_.default,
}


def make_quicker(program: Program, shapes: dict[int, tuple[int, ...]], device: torch.device) -> Program:
    """Improve a program in place, and return it.

    Args:
        program: as compiled.
        shapes: of the values that it computes, with the channels that it keeps.
        device: where it will run.
    """
    _fold_norms(program)
    _work_in_place(program, shapes)
    if device.type == "cpu":
        _channels_last(program)
    plan_frees(program)
    return program


def _uses(program: Program) -> dict[int, int]:
    uses: dict[int, int] = dict.fromkeys(program.outputs, 1)
    for step in program.steps:
        for index in step.reads:
            uses[index] = uses.get(index, 0) + 1
    return uses


def _fold_norms(program: Program) -> None:
    uses = _uses(program)
    makers = {index: step for step in program.steps for index in step.outputs}
    left: list[Step] = []
    for step in program.steps:
        maker = makers.get(step.arguments[0].value) if step.op == _BATCH_NORM else None
        if maker is None or maker.op not in _CONVOLUTIONS or uses[maker.outputs[0]] != 1 or not _fold(
            program, maker, step
        ):  # fmt: skip
            left.append(step)
    program.steps = left


def _fold(program: Program, convolution: Step, norm: Step) -> bool:
    """Take a batch norm into the convolution before it; returns whether that was possible."""
    _, weight, bias, mean, variance, training, _, epsilon, _ = norm.arguments
    parts = [convolution.arguments[1], convolution.arguments[2], weight, bias, mean, variance]
    if training or mean is None or variance is None or not isinstance(parts[0], Place):
        return False
    if any(part is not None and part.value not in program.state for part in parts):
        return False
    kernel, offset, scale, shift, centre, spread = (
        None if part is None else program.state[part.value].double() for part in parts
    )
    assert kernel is not None  # noqa: S101  for the type checker
    assert centre is not None  # noqa: S101
    assert spread is not None  # noqa: S101
    factor = (spread + epsilon).rsqrt()
    if scale is not None:
        factor = factor * scale
    added = -centre if offset is None else offset - centre
    added = added * factor
    if shift is not None:
        added = added + shift
    dtype = program.state[parts[0].value].dtype
    new = -1 - convolution.outputs[0]  # numbers below 0 are nobody else's
    program.state[2 * new] = (kernel * factor.view(-1, *[1] * (kernel.dim() - 1))).to(dtype)
    program.state[2 * new - 1] = added.to(dtype)
    convolution.arguments[1], convolution.arguments[2] = Place(2 * new), Place(2 * new - 1)
    convolution.reads = (convolution.arguments[0].value, 2 * new, 2 * new - 1)
    convolution.outputs = norm.outputs
    return True


def _work_in_place(program: Program, shapes: dict[int, tuple[int, ...]]) -> None:
    uses = _uses(program)
    fresh: set[int] = set()

    def own(item: Any) -> bool:
        return isinstance(item, Place) and item.value in fresh and uses[item.value] == 1

    for step in program.steps:
        first = step.arguments[0] if step.arguments else None
        if step.op in _IN_PLACE and own(first):
            step.function = _IN_PLACE[step.op]
            fresh.update(step.outputs)
        elif step.op == "aten.add.Tensor" and not step.keywords and isinstance(first, Place):
            second = step.arguments[1]
            if not own(first) and own(second):
                first, second = second, first
            same = own(first) and isinstance(second, Place) and shapes[first.value] == shapes[step.outputs[0]]
            if same and first.value != getattr(second, "value", None):
                step.function, step.arguments = aten.add_.Tensor, [first, second]
            fresh.update(step.outputs)
        elif step.op in _FRESH:
            fresh.update(step.outputs)


def _channels_last(program: Program) -> None:
    kernels = {
        step.arguments[1].value
        for step in program.steps
        if step.op == "aten.conv2d.default" and isinstance(step.arguments[1], Place)
    } & program.state.keys()
    if kernels:
        program.channels_last = True
        for index in kernels:
            program.state[index] = _last(program.state[index])


def _last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
