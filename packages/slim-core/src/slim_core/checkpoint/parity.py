"""The stored output for the stored example: computing it when saving, comparing with it after loading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from slim_core.checkpoint.examples import Example, Values, dtype_name, put_together, record_of, values_for
from slim_core.checkpoint.header import ROLES, OutputRecord, ParityRecord
from slim_core.errors import CheckpointError
from slim_core.modes import evaluating
from slim_core.workload import Inputs, call, tensors_of

#: Largest number of elements of one stored output; of larger ones every n-th is stored.
MAX_OUTPUT = 2**14
TOLERANCE = 1e-4
TOLERANCE_HALF = 2e-2  # float16 and bfloat16 keep 11 and 8 bits
TOLERANCE_QUANTIZED = 0.1  # another CPU may round to the neighbouring step


def choose(model: nn.Module, example: Example) -> tuple[int, Values, list[Tensor]]:
    """Return batch size and values of an example that the model runs on, and its outputs.

    Pseudo-random values of one or two samples where the model takes them and answers with finite numbers; else the
    given batch size, else the given values.

    Raises:
        CheckpointError: the model runs on none of them, or returns no tensor.
    """
    failure: Exception | None = None
    fallback: tuple[int, Values, list[Tensor]] | None = None
    for random in (True, False):
        for size in example.sizes():
            values = values_for(example, size, random=random)
            record = record_of(example, values, size)
            inputs = put_together(
                record, dict(zip([item.tensor for item in record.tensors], values.stored, strict=True))
            )
            try:
                outputs = outputs_of(model, inputs)
            except Exception as error:  # noqa: BLE001 - a user's forward may raise anything
                failure = failure or error
                continue
            if all(bool(torch.isfinite(item).all()) for item in outputs if item.dtype.is_floating_point):
                return size, values, outputs
            fallback = (size, values, outputs)
    if fallback is not None:
        return fallback
    first = str(failure).strip().splitlines()[0] if str(failure).strip() else ""
    raise CheckpointError(
        f"the model fails on its example inputs: {type(failure).__name__}: {first}",
        field="parity",
        hint="check example_inputs; parity=False saves without running the model",
    ) from failure


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run the model in eval mode without leaving a trace in it; return the tensors of its output, on the CPU."""
    device = next((item.device for item in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
    cards = range(torch.cuda.device_count())  # manual_seed seeds all of them
    with untouched(model), torch.random.fork_rng(devices=cards), torch.no_grad():
        torch.manual_seed(0)
        outputs = call(model, _moved(inputs, device))
        return [item.detach().cpu().clone() for item in tensors_of(outputs)]


def record_outputs(outputs: Sequence[Tensor], *, quantized: bool) -> tuple[ParityRecord, dict[str, Tensor]]:
    """Return the record of some outputs, and what is stored of them.

    Raises:
        CheckpointError: the model returned no tensor.
    """
    if not outputs:
        raise CheckpointError(
            "the model's output holds no tensor", field="parity", hint="parity=False saves without an output"
        )
    records, stored = [], {}
    half = False
    for index, output in enumerate(outputs):
        name = f"{ROLES['output']}{index}"
        step = max(1, -(-output.numel() // MAX_OUTPUT))
        stored[name] = output.reshape(-1)[::step].contiguous()
        dtype = dtype_name(output, f"parity.outputs[{index}]")
        half = half or dtype in ("float16", "bfloat16")
        records.append(OutputRecord(name, dtype, tuple(output.shape), step))
    tolerance = TOLERANCE_QUANTIZED if quantized else TOLERANCE_HALF if half else TOLERANCE
    return ParityRecord(tuple(records), tolerance), stored


def largest_error(record: ParityRecord, stored: Mapping[str, Tensor], outputs: Sequence[Tensor]) -> float:
    """Return the largest difference from the stored outputs, relative to each one's largest absolute value.

    Raises:
        CheckpointError: number, shapes or dtypes of the outputs differ.
    """
    if len(outputs) != len(record.outputs):
        raise CheckpointError(
            f"the model returned {len(outputs)} tensors, the file holds {len(record.outputs)}", field="parity"
        )
    worst = 0.0
    for item, output in zip(record.outputs, outputs, strict=True):
        if tuple(output.shape) != item.shape or dtype_name(output, "parity") != item.dtype:
            raise CheckpointError(
                f"the model returned {output.dtype} {list(output.shape)}, the file holds {item.dtype} "
                f"{list(item.shape)}",
                field="parity",
            )
        expected = stored[item.tensor].double()
        actual = output.reshape(-1)[:: item.step].double()
        if not torch.equal(torch.isfinite(expected), torch.isfinite(actual)):
            return float("inf")
        finite = torch.isfinite(expected)
        if bool(finite.any()):
            difference = (actual - expected)[finite].abs().max()
            largest = expected[finite].abs().max().clamp(min=1e-12)
            worst = max(worst, float(difference / largest))
    return worst


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run the block with ``model`` in eval mode; afterwards modes and buffers are what they were."""
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with evaluating(model):
            yield
    finally:
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


def _moved(inputs: Inputs, device: torch.device) -> Inputs:
    from torch.utils import _pytree as pytree

    if device.type == "cpu":
        return inputs
    moved: Inputs = pytree.tree_map_only(Tensor, lambda item: item.to(device), inputs)
    return moved
