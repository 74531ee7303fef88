"""Fake-quantizers of activations, as modules of a prepared model: with fixed, averaged, learned or dynamic scales.

A quantizer knows its scale and what it has seen. When it quantizes and observes is said elsewhere, in ``phases.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from slim_core.named import Named
from slim_quant.observers import Observer, make_observer
from slim_quant.qat.functions import LEAST_SCALE, Clip, FakeQuantize, LearnedFakeQuantize, Relative
from slim_quant.schemes import Scheme, qparams

#: of the moving averages of a batch's extremes: the share of the old value that stays (PaddleSlim's default)
DECAY = 0.9
INF = float("inf")


class ActivationQuantizer(nn.Module):
    """Base of the quantizers of activations.

    Args:
        scheme: bits and symmetry; one scale for the tensor.
    """

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        self.quantizing = self.observing = True
        self.collector: Observer | None = None
        self.current: tuple[Tensor, Tensor] | None = None

    def forward(self, values: Tensor, observe: bool = True, low: float | None = None, high: float = INF) -> Tensor:
        """Return the representable values.

        Args:
            values: any shape; what is not float32 (under autocast) becomes float32.
            observe: does this place show what the scale is for? One that only repeats values does not.
            low: the lower end of a ReLU before the quantizer, which it does in the same pass; ``None``: there is none.
            high: its upper end.
        """
        values = values.float()
        clip = None if low is None else (low, high)
        if self.collector is not None:
            values = _clipped(values, clip)
            if observe:
                self.collector.update(values)
            return values
        if observe and self.training and self.observing:
            self.see(values.detach(), clip)
        return self.quantized(values, clip) if self.quantizing else self.idle(_clipped(values, clip))

    def see(self, values: Tensor, clip: Clip) -> None:
        """Take in a batch while training, as ``clip`` makes it."""

    def idle(self, values: Tensor) -> Tensor:
        """Return the values as they are, before quantization begins."""
        return values

    def quantized(self, values: Tensor, clip: Clip) -> Tensor:
        """Return the representable values, as ``clip`` makes them; keeps gradients."""
        scale, zero_point = self.current or self.scale_and_zero_point()
        result: Tensor = FakeQuantize.apply(values, scale, zero_point, self.scheme.qmin, self.scheme.qmax, clip)  # type: ignore[no-untyped-call]
        return result

    def scale_and_zero_point(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, 0-dimensional and in float32, as they are now; without gradients."""
        raise NotImplementedError

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Begin with a scale for values between ``low`` and ``high``."""
        raise NotImplementedError

    def collect(self, observer: Named | None) -> None:
        """Watch through ``observer`` and quantize nothing; ``None``: end that, and begin with what was seen.

        Raises:
            ValueError: what was seen is not finite, or nothing was.
        """
        if observer is not None:
            self.collector = make_observer(observer)
        elif self.collector is not None:
            watched, self.collector = self.collector, None
            self.set_range(*watched.range(self.scheme))

    def extra_repr(self) -> str:
        return f"bits={self.scheme.bits}, symmetric={self.scheme.symmetric}"


class MovingAverageQuantizer(ActivationQuantizer):
    """The range is a moving average of the batches' extremes; a batch is quantized with the range of those before it.

    So all processes that share a run quantize alike, and what they saw is exchanged once per step, for all quantizers.

    Args:
        scheme: bits and symmetry.
        device: where its tensors are.
        decay: share of the old range that stays at each batch.
    """

    low: Tensor
    high: Tensor

    def __init__(self, scheme: Scheme, device: torch.device, decay: float = DECAY) -> None:
        super().__init__(scheme)
        self.decay = decay
        self.register_buffer("low", torch.zeros((), device=device))
        self.register_buffer("high", torch.zeros((), device=device))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def see(self, values: Tensor, clip: Clip) -> None:
        if values.numel():
            low, high = values.aminmax()
            self.seen.append((_clipped(low, clip), _clipped(high, clip)))

    def scale_and_zero_point(self) -> tuple[Tensor, Tensor]:
        scale, zero_point = qparams(self.low, self.high, self.scheme)
        return scale, zero_point.float()

    def set_range(self, low: Tensor, high: Tensor) -> None:
        with torch.no_grad():
            self.low.copy_(low)
            self.high.copy_(high)


class LearnedQuantizer(ActivationQuantizer):
    """The scale is learned (LSQ: Esser et al., 2020, arXiv 1902.08153); the zero point stays as calibrated.

    The scale's gradient is multiplied by ``1 / sqrt(N qmax)``, where ``N`` is the number of values per sample. It is a
    parameter relative to where it began; see :class:`slim_quant.qat.functions.Relative`.

    Args:
        scheme: bits and symmetry.
        device: where its tensors are.
    """

    start: Tensor
    zero_point: Tensor

    def __init__(self, scheme: Scheme, device: torch.device) -> None:
        super().__init__(scheme)
        self.ratio = nn.Parameter(torch.ones((), device=device))
        self.register_buffer("start", torch.ones((), device=device))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32, device=device))

    def quantized(self, values: Tensor, clip: Clip) -> Tensor:
        scale, zero_point, offset = self.learned()
        result: Tensor = LearnedFakeQuantize.apply(  # type: ignore[no-untyped-call]
            values, scale, offset, zero_point, self.scheme.qmin, self.scheme.qmax, self.factor(values), True, clip
        )
        return result

    def idle(self, values: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return values
        return values + 0.0 * sum(self.parameters())  # data parallelism waits for a gradient of every parameter

    def learned(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return scale, zero point and offset with their gradients."""
        return positive(self.ratio, self.start), self.zero_point.float(), None

    def factor(self, values: Tensor) -> float:
        """Return what the gradient of the scale is multiplied by."""
        return gradient_factor(values.numel() // max(1, values.shape[0] if values.dim() else 1), self.scheme)

    def scale_and_zero_point(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            scale, zero_point, _ = self.learned()
            return scale, zero_point

    def set_range(self, low: Tensor, high: Tensor) -> None:
        scale, zero_point = qparams(low, high, self.scheme)
        with torch.no_grad():
            self.ratio.fill_(1)
            self.start.copy_(scale)
            self.zero_point.copy_(zero_point)


class LearnedOffsetQuantizer(LearnedQuantizer):
    """Scale and offset are learned (LSQ+: Bhalgat et al., 2020, arXiv 2004.09576).

    The offset is a parameter in units of the range that training began with. The zero point is the offset in whole
    steps, so that zero itself stays representable, which runtimes ask for. A symmetric scheme has none, and is LSQ's.
    """

    def __init__(self, scheme: Scheme, device: torch.device) -> None:
        super().__init__(scheme, device)
        del self.zero_point
        self.shift = nn.Parameter(torch.zeros((), device=device))

    def learned(self) -> tuple[Tensor, Tensor, Tensor | None]:
        scale, scheme = positive(self.ratio, self.start), self.scheme
        if scheme.symmetric:
            return scale, torch.zeros_like(self.start), None
        offset: Tensor = Relative.apply(self.shift, self.start * (scheme.qmax - scheme.qmin))  # type: ignore[no-untyped-call]
        with torch.no_grad():
            zero_point = torch.round(scheme.qmin - offset / scale).clamp(scheme.qmin, scheme.qmax)
        return scale, zero_point, offset

    def set_range(self, low: Tensor, high: Tensor) -> None:
        scale, zero_point = qparams(low, high, self.scheme)
        with torch.no_grad():
            self.ratio.fill_(1)
            self.start.copy_(scale)
            self.shift.copy_((self.scheme.qmin - zero_point) / (self.scheme.qmax - self.scheme.qmin))


class ClippingQuantizer(LearnedQuantizer):
    """The clipping value is learned (PACT: Choi et al., 2018, arXiv 1805.06085).

    The range is ``[0, alpha]`` where calibration saw no negative value, else ``[-alpha, alpha]``. ``alpha`` has the
    gradient of the values that are clipped, and is drawn to zero by a penalty of its own
    (:func:`slim_quant.qat.clipping_penalty`).
    """

    def quantized(self, values: Tensor, clip: Clip) -> Tensor:
        scale, zero_point, _ = self.learned()
        result: Tensor = LearnedFakeQuantize.apply(  # type: ignore[no-untyped-call]
            values, scale, None, zero_point, self.scheme.qmin, self.scheme.qmax, 1.0, False, clip
        )
        return result

    def alpha(self) -> Tensor:
        """Return the clipping value, with gradients."""
        return positive(self.ratio, self.start)

    def learned(self) -> tuple[Tensor, Tensor, Tensor | None]:
        qmin, qmax = self.scheme.qmin, self.scheme.qmax
        steps = torch.where(self.zero_point == qmin, float(qmax - qmin), (qmax - qmin) / 2)
        return (self.alpha() / steps).clamp(min=LEAST_SCALE), self.zero_point.float(), None

    def set_range(self, low: Tensor, high: Tensor) -> None:
        largest = torch.maximum(-low, high)
        one_sided = bool(low >= 0) and not self.scheme.symmetric
        _, zero_point = qparams(torch.zeros_like(largest) if one_sided else -largest, largest, self.scheme)
        with torch.no_grad():
            self.ratio.fill_(1)
            self.start.copy_(torch.where(largest > 0, largest, torch.ones_like(largest)))
            self.zero_point.copy_(zero_point)


class BatchQuantizer(ActivationQuantizer):
    """The scale is that of the batch at hand, in training and after it (the dynamic strategy). It has no state."""

    def __init__(self, scheme: Scheme, device: torch.device) -> None:
        super().__init__(scheme)

    def quantized(self, values: Tensor, clip: Clip) -> Tensor:
        values = _clipped(values, clip)
        low, high = values.detach().aminmax() if values.numel() else (values.new_zeros(()),) * 2
        scale, zero_point = qparams(low, high, self.scheme)
        qmin, qmax = self.scheme.qmin, self.scheme.qmax
        result: Tensor = FakeQuantize.apply(values, scale, zero_point.float(), qmin, qmax, None)  # type: ignore[no-untyped-call]
        return result

    def collect(self, observer: Named | None) -> None:
        pass


def _clipped(values: Tensor, clip: Clip) -> Tensor:
    return values if clip is None else values.clamp(*clip)


def gradient_factor(values: int, scheme: Scheme) -> float:
    """Return LSQ's ``1 / sqrt(N qmax)``.

    Args:
        values: ``N``, how many values share the scale.
        scheme: gives ``qmax``.
    """
    return float((max(1, values) * scheme.qmax) ** -0.5)


def positive(ratio: Tensor, start: Tensor) -> Tensor:
    """Return ``ratio * start``, at least :data:`LEAST_SCALE`; the gradient passes below too: it can come back."""
    value: Tensor = Relative.apply(ratio, start)  # type: ignore[no-untyped-call]
    return value + (value.detach().clamp(min=LEAST_SCALE) - value.detach())


def make_quantizer(quantizer: str, scheme: Scheme, device: torch.device, decay: float = DECAY) -> ActivationQuantizer:
    """Return a fresh quantizer of activations.

    Args:
        quantizer: ``"moving_average"``, ``"lsq"``, ``"lsq+"``, ``"pact"`` or ``"batch"``.
        scheme: bits and symmetry.
        device: where its tensors are.
        decay: of moving averages.
    """
    if quantizer == "moving_average":
        return MovingAverageQuantizer(scheme, device, decay)
    makers: dict[str, Callable[[Scheme, torch.device], ActivationQuantizer]] = {
        "lsq": LearnedQuantizer,
        "lsq+": LearnedOffsetQuantizer,
        "pact": ClippingQuantizer,
        "batch": BatchQuantizer,
    }
    return makers[quantizer](scheme, device)
