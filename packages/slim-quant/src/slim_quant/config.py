"""Settings that the techniques of slim-quant share: target, schemes, overrides. As recipes write them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from slim_core.technique import StrictConfig
from slim_quant.overrides import Override
from slim_quant.schemes import ACTIVATION, WEIGHT, Scheme


class SchemeConfig(StrictConfig):
    """A scheme; what is not said is as in the technique's own settings.

    Attributes:
        bits: 2 to 8.
        symmetric: signed with zero point 0, or unsigned with a zero point.
        granularity: ``per_tensor``; of weights also ``per_channel`` and, of matrices, ``per_group``.
        group_size: neighbours along the input axis that share a scale; with ``per_group`` only.
    """

    bits: int | None = Field(default=None, ge=2, le=8)
    symmetric: bool | None = None
    granularity: Literal["per_tensor", "per_channel", "per_group"] | None = None
    group_size: int | None = Field(default=None, ge=1)

    def over(self, scheme: Scheme) -> Scheme:
        """Return the scheme that this makes of ``scheme``.

        Raises:
            SlimError: there is no such scheme.
        """
        granularity = self.granularity or ("per_group" if self.group_size is not None else scheme.granularity)
        return Scheme(
            scheme.bits if self.bits is None else self.bits,
            scheme.symmetric if self.symmetric is None else self.symmetric,
            granularity,
            (self.group_size or scheme.group_size) if granularity == "per_group" else self.group_size,
        )


class OverrideConfig(StrictConfig):
    """Settings for the layers that match; see :class:`slim_quant.overrides.Override`."""

    match: str | None = None
    op: str | None = None
    weight: SchemeConfig | None = None
    activation: SchemeConfig | None = None
    skip: bool = False
    observer: str | dict[str, Any] | None = None
    weight_observer: str | None = None


class QuantConfig(StrictConfig):
    """What all techniques that quantize weights and activations can be told.

    Attributes:
        target: runtime that the quantizers are placed for.
        weight_bits: bits of the weights, 2 to 8.
        activation_bits: bits of the activations, 2 to 8.
        weight_symmetric: signed weights with zero point 0; otherwise unsigned ones with a zero point.
        activation_symmetric: the same for activations.
        per_channel: one scale per output channel of a weight; otherwise one per weight.
        skip: globs over layer names, or ``op:`` and an operator (``op:add``); these layers stay in float.
        overrides: settings for single layers; later ones win.
    """

    target: str = "onnxruntime"
    weight_bits: int = Field(default=8, ge=2, le=8)
    activation_bits: int = Field(default=8, ge=2, le=8)
    weight_symmetric: bool = True
    activation_symmetric: bool = False
    per_channel: bool = True
    skip: list[str] = Field(default_factory=list)
    overrides: list[OverrideConfig] = Field(default_factory=list)

    def weight_scheme(self) -> Scheme:
        """Return the scheme of weights without an override."""
        granularity = WEIGHT.granularity if self.per_channel else "per_tensor"
        return Scheme(self.weight_bits, self.weight_symmetric, granularity)

    def activation_scheme(self) -> Scheme:
        """Return the scheme of activations without an override."""
        return Scheme(self.activation_bits, self.activation_symmetric, ACTIVATION.granularity)

    def all_overrides(self) -> list[Override]:
        """Return the overrides.

        Raises:
            SlimError: one matches by nothing, sets nothing, or a scheme that there is not.
        """
        return [
            Override(
                match=item.match, op=item.op, skip=item.skip, observer=item.observer,
                weight=None if item.weight is None else item.weight.over(self.weight_scheme()),
                activation=None if item.activation is None else item.activation.over(self.activation_scheme()),
                weight_observer=item.weight_observer,
            )
            for item in self.overrides
        ]  # fmt: skip
