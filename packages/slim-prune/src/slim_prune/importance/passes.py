"""Running the user's model on batches without leaving a trace in it: what criteria that look at data share.

:func:`borrowed` stands in for parameters and buffers, :func:`batches` reads a bounded number of samples, and
:func:`gradients` puts both together: one dictionary of gradients after the other, each gone before the next is made.
Not here: what is made of the gradients (``gradients.py``, ``hessian.py``), activations (``activation.py``).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from slim_core.data import batch_size, check_reiterable, generator, generators_of, length, slice_batch, to_device
from slim_core.errors import DataError, ModelError, SlimError
from slim_core.graph.isolate import isolated, quiet_torch, state_of, unwrap, walk
from slim_core.graph.source import first_line
from slim_core.training.evaluate import device_of
from slim_core.training.rng import kept_generators, seed_epoch
from slim_core.workload import DataSource, call
from slim_prune import importance as importances
from slim_prune.errors import PlanError

if TYPE_CHECKING:
    from slim_prune.context import Context

Per = Literal["batch", "sample"]


@dataclass(frozen=True, slots=True)
class Reading:
    """How much data a criterion looks at.

    Args:
        samples: at most so many samples, the last batch cut to fit; ``None``: no bound.
        batches: at most so many batches; ``None``: no bound.
        per: ``"batch"``: batches as they come; ``"sample"``: cut into single samples.
    """

    samples: int | None = None
    batches: int | None = None
    per: Per = "batch"

    def check(self, label: str) -> Reading:
        """Raise ``SlimError`` for bounds that let nothing through, else return this."""
        for name, value in (("samples", self.samples), ("batches", self.batches)):
            if value is not None and value < 1:
                raise SlimError(f"importance '{label}': {name} must be at least 1, not {value!r}")
        return self

    def passes(self, source: DataSource) -> int | None:
        """Return how many passes there will be at most, as far as it can be known."""
        known = [length(source), self.batches]
        if self.samples is not None:
            size = getattr(source, "batch_size", None)
            known.append(self.samples if self.per == "sample" else ceil(self.samples / size) if size else None)
        if self.per == "sample":
            return self.samples
        bounds = [bound for bound in known if bound is not None]
        return min(bounds) if bounds else None


def require(context: Context, label: str, *names: str) -> None:
    """Check that the plan was given what a criterion needs, and a model with weights.

    Raises:
        PlanError: task or data is missing, or the model is on the meta device.
    """
    missing = [name for name in names if getattr(context, name) is None]
    if missing:
        raise importances.no_data(label, missing)
    if any(tensor.is_meta for tensor in context.tensors.values()):
        raise importances.no_weights(label)


def batches(context: Context, source: DataSource, reading: Reading, label: str) -> Generator[Any]:
    """Yield batches of ``source`` without augmentation, on the model's device, up to the bounds of ``reading``.

    Random order is drawn from the plan's seed; the generators, the source's own among them, get their state back.

    Raises:
        DataError: there is no batch, or the source can be read only once.
    """
    check_reiterable(source, "training")
    plain = source.plain() if hasattr(source, "plain") else source
    device = device_of(context.model)
    left = reading.samples
    seen = False
    with (
        collecting(),
        kept_generators(*generators_of(plain)),
        context.progress.track(f"importance {label}", reading.passes(plain)) as track,
    ):
        seed_epoch(context.seed, 0)
        for own in generators_of(plain):
            own.manual_seed(generator(context.seed, 0).initial_seed())
        for batch in islice(plain, reading.batches):
            size = batch_size(batch)
            if left is not None and size > left:
                batch, size = slice_batch(batch, 0, left), left
            batch = to_device(batch, device)
            parts = [batch] if reading.per == "batch" else (slice_batch(batch, n, n + 1) for n in range(size))
            for part in parts:
                seen = True
                yield part
                track.advance(1)
            left = None if left is None else left - size
            if left == 0:
                break
    if not seen:
        raise DataError(f"importance '{label}' found no batch in the data")


@contextmanager
def collecting() -> Iterator[None]:
    """Let Python's cycle collector run, which a plan holds back: forwards and copies of models may leave cycles."""
    enabled = gc.isenabled()
    gc.enable()
    try:
        yield
    finally:
        if not enabled:
            gc.disable()


@contextmanager
def borrowed(model: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """Run the user's model for a while, in evaluation mode, on stand-ins that share its weights but nothing else.

    Yields the stand-ins of all floating-point parameters, by first state-dict name. They want gradients, whatever the
    user's parameters want. Buffers are copies. Modules, modes, gradients and global generators are as before at the
    end.
    """
    model = unwrap(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(quiet_torch(model))
        if any(isinstance(module, nn.RNNBase) for _, module in walk(model)):  # cuDNN's gradients want training mode
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        state = state_of(model)
        twins = stack.enter_context(isolated(model, _stand_in, state))
        yield {
            item.names[0]: twins[id(item.tensor)]  # type: ignore[misc]
            for item in state
            if item.kind == "parameter" and item.tensor.is_floating_point()
        }


def _stand_in(name: str, tensor: Tensor) -> Tensor:
    data = tensor.detach()
    if isinstance(tensor, nn.Parameter):
        data = data.clone() if data.is_inference() else data
        return nn.Parameter(data, requires_grad=tensor.is_floating_point())
    return data.clone()


Loss = Callable[[Any], Tensor]


@contextmanager
def losses(context: Context, label: str) -> Iterator[tuple[Loss, dict[str, nn.Parameter]]]:
    """Yield a function from a batch to the task's loss, and the parameters that it depends on, by name.

    The function raises a ``SlimError`` that names the criterion for a forward that fails and for a loss that is no
    finite scalar.
    """
    task = context.task
    assert task is not None  # noqa: S101  `require` comes first
    model = unwrap(context.model)
    with borrowed(model) as parameters:

        def loss_of(batch: Any) -> Tensor:
            inputs = task.inputs(batch)
            try:
                outputs = call(model, inputs)
            except SlimError:
                raise
            except Exception as error:
                raise ModelError(
                    f"importance '{label}': the forward of {type(model).__name__} fails on the training data: "
                    f"{first_line(error)}",
                    hint="check that the task splits batches into the inputs that the model takes",
                ) from error
            loss = task.loss(outputs, batch)
            if loss.ndim:
                raise SlimError(f"the task's loss has shape {tuple(loss.shape)}; it must be a scalar")
            if not torch.isfinite(loss):
                raise PlanError(
                    f"importance '{label}': the loss on the training data is {float(loss.detach())}",
                    hint="look for NaN or infinity in the weights and in the data",
                )
            if not loss.requires_grad:
                raise PlanError(
                    f"importance '{label}': the task's loss does not depend on the model's parameters",
                    hint="a forward under torch.no_grad(), or a loss that detaches, gives no gradients",
                )
            return loss

        yield loss_of, parameters


def gradients(
    context: Context, reading: Reading, label: str
) -> Generator[tuple[int, Mapping[str, Tensor], dict[str, Tensor]]]:
    """Yield samples, weights and gradients of the task's loss, pass by pass.

    Both mappings go by first state-dict name and hold what the loss depends on. That of the gradients is emptied before
    the next are made. Close the iterator when stopping early.
    """
    assert context.train is not None  # noqa: S101  `require` comes first
    with (
        losses(context, label) as (loss_of, parameters),
        closing(batches(context, context.train, reading, label)) as source,
    ):
        names, wanted = list(parameters), list(parameters.values())
        weights = {name: parameter.detach() for name, parameter in parameters.items()}
        for batch in source:
            loss = loss_of(batch)
            found = torch.autograd.grad(loss, wanted, allow_unused=True)
            del loss
            present = {
                name: gradient.to_dense() if gradient.is_sparse else gradient
                for name, gradient in zip(names, found, strict=True)
                if gradient is not None
            }
            del found
            yield batch_size(batch), weights, present
            present.clear()  # before the next are made, whoever holds the dictionary
