"""Second-order criterion: half the Hessian's diagonal times the squared weight.

LeCun et al. 1989, "Optimal Brain Damage", with the diagonal estimated as in Bekas et al. 2007, "An estimator for the
diagonal of a matrix": the mean of ``z * Hz`` over random signs ``z``.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from slim_core.data import batch_size, generator
from slim_core.errors import ModelError, SlimError
from slim_core.graph.source import first_line
from slim_core.graph.types import ChannelGroup
from slim_prune.importance import Importance
from slim_prune.importance.aggregate import Aggregate, Normalize, check_names
from slim_prune.importance.passes import Reading, batches, losses, require
from slim_prune.importance.sums import MemberSums

if TYPE_CHECKING:
    from slim_prune.context import Context


class Hessian:
    """Half the Hessian's diagonal times the squared weight: the change of the loss at a minimum, ``(units,)``.

    The diagonal is estimated by random probes (Hutchinson), one product of Hessian and vector each; for a loss whose
    Hessian is diagonal, one probe is exact. Scores may be negative: the loss is expected to fall then. Needs a task and
    training data. The model runs in evaluation mode.

    Args:
        probes: random sign vectors per batch; the error falls with the root of probes times batches.
        samples: at most so many training samples are looked at.
        batches: at most so many batches are read.
        normalize: one of mean, max, sum, minmax, gaussian, lamp, none; ``"none"`` keeps the scores comparable over
            groups.
        aggregate: one of mean, sum, max, prod, first: how the members' scores become one.
    """

    label: ClassVar[str] = "hessian"
    needs: ClassVar[tuple[str, ...]] = ("task", "train")

    def __init__(
        self,
        *,
        probes: int = 4,
        samples: int | None = 512,
        batches: int | None = None,
        normalize: Normalize = "none",
        aggregate: Aggregate = "sum",
    ) -> None:
        check_names(normalize, aggregate)
        if probes < 1:
            raise SlimError(f"importance 'hessian': probes must be at least 1, not {probes}")
        self._probes, self._reading = probes, Reading(samples, batches).check(self.label)
        self._normalize, self._aggregate = normalize, aggregate

    def prepare(self, context: Context) -> Importance:
        """Run the model forward and twice backward on training data.

        Raises:
            PlanError: task or training data are missing, or the loss is not finite.
            ModelError: an operator of the model has no second derivative.
        """
        require(context, self.label, *self.needs)
        sums = MemberSums(context.coupling.groups, "weight")
        with closing(self._passes(context)) as passes:
            for samples, values in passes:
                sums.add(samples, values)

        def importance(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
            return sums.scores(group, normalize=self._normalize, aggregate=self._aggregate, signed=True)

        return importance

    def _passes(self, context: Context) -> Generator[tuple[int, dict[str, Tensor]]]:
        """Yield samples and half of ``z * Hz * w * w`` for every probe of every batch."""
        assert context.train is not None  # noqa: S101  `require` comes first
        signs = generator(context.seed, 1)
        # attention's fused kernels have no second derivative either
        with (
            _TwiceDifferentiable(),
            sdpa_kernel(SDPBackend.MATH),
            losses(context, self.label) as (loss_of, parameters),
            closing(batches(context, context.train, self._reading, self.label)) as source,
        ):
            for batch in source:
                first = torch.autograd.grad(
                    loss_of(batch), list(parameters.values()), create_graph=True, allow_unused=True
                )
                used = [
                    (name, parameters[name], gradient)
                    for name, gradient in zip(parameters, first, strict=True)
                    if gradient is not None and gradient.requires_grad
                ]
                samples = batch_size(batch)
                for probe in range(self._probes if used else 0):
                    yield samples, self._half_diagonal(used, signs, keep=probe + 1 < self._probes)
                if not used:  # the gradient is constant: so is the Hessian, at zero
                    yield samples, {name: torch.zeros_like(p) for name, p in parameters.items()}

    def _half_diagonal(
        self, used: Sequence[tuple[str, Tensor, Tensor]], signs: torch.Generator, *, keep: bool
    ) -> dict[str, Tensor]:
        vectors = [_signs(parameter, signs) for _, parameter, _ in used]
        try:
            products = torch.autograd.grad(
                [gradient for _, _, gradient in used],
                [parameter for _, parameter, _ in used],
                vectors,
                retain_graph=keep,
                allow_unused=True,
            )
        except (RuntimeError, NotImplementedError) as error:
            raise ModelError(
                f"importance 'hessian': the model has an operator without second derivative: {first_line(error)}",
                hint="take importance='fisher', which needs first derivatives only",
            ) from error
        return {
            name: 0.5 * vector * product * parameter.detach().square()
            for (name, parameter, _), vector, product in zip(used, vectors, products, strict=True)
            if product is not None
        }


class _TwiceDifferentiable(TorchFunctionMode):
    """Takes operators apart that PyTorch has no second derivative of."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("hardsigmoid", "hardsigmoid_"):
            return (args[0] / 6 + 0.5).clamp(0, 1)
        return func(*args, **(kwargs or {}))


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return random signs of the shape of ``like``, drawn on the CPU, so that every device sees the same."""
    drawn = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(device=like.device, dtype=like.dtype)
