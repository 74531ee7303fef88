"""Options that the commands share: schemes, observers and what stays in float (``scheme_options``), as one value.

Model, data and task are core's (``slim_core.cli.options``). Not here: what a command does with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from slim_core.cli.options import bundled, named
from slim_core.errors import SlimError, close_match

if TYPE_CHECKING:
    from slim_quant.overrides import Override
    from slim_quant.schemes import Scheme

F = TypeVar("F", bound=Callable[..., Any])

_OPERATOR = "op:"
_EXAMPLE = "'layer4.*:weight_bits=4,weight_observer=mse'"
#: what may stand behind the glob of an override: for the scheme of the weight, of the activation, and the rest
_WEIGHT = {
    "weight_bits": "bits",
    "weight_symmetric": "symmetric",
    "granularity": "granularity",
    "group_size": "group_size",
}
_ACTIVATION = {"activation_bits": "bits", "activation_symmetric": "symmetric"}
_PLAIN = ("skip", "observer", "weight_observer")
_SETTINGS = (*_WEIGHT, *_ACTIVATION, *_PLAIN)


@dataclass(frozen=True, slots=True)
class SchemeRequest:
    """How to quantize, as it stands on the command line."""

    target: str
    weight_bits: int
    activation_bits: int
    granularity: str
    group_size: int | None
    weight_affine: bool
    activation_symmetric: bool
    observer: str | None
    weight_observer: str
    skip: tuple[str, ...]
    override: tuple[str, ...]
    samples: int

    @property
    def weight(self) -> Scheme:
        """The scheme of the weights.

        Raises:
            SlimError: the options contradict each other.
        """
        from slim_quant.schemes import Scheme

        granularity = self.granularity
        if self.group_size is not None and granularity == "per_channel":
            granularity = "per_group"
        return Scheme(self.weight_bits, not self.weight_affine, granularity, self.group_size)  # type: ignore[arg-type]

    @property
    def activation(self) -> Scheme:
        """The scheme of the activations."""
        from slim_quant.schemes import Scheme

        return Scheme(self.activation_bits, self.activation_symmetric, "per_tensor")

    def overrides(self) -> tuple[Override, ...]:
        """Return the settings of single layers.

        Raises:
            SlimError: one cannot be read.
        """
        weight, activation = self.weight, self.activation
        return tuple(read_override(text, weight, activation) for text in self.override)

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of :func:`slim_quant.quantize` that these options stand for.

        Raises:
            SlimError: an option cannot be read.
        """
        return {
            "target": self.target,
            "weight": self.weight,
            "activation": self.activation,
            "observer": named(self.observer or "mse", "--observer", "percentile:share=0.999"),
            "weight_observer": self.weight_observer,
            "overrides": self.overrides(),
            "skip": self.skip,
            "samples": self.samples,
        }

    def config(self) -> dict[str, Any]:
        """Return the same as settings of a technique (:class:`slim_quant.config.QuantConfig`).

        Raises:
            SlimError: an option cannot be read, or techniques have none of the kind.
        """
        if self.weight.granularity == "per_group":
            raise SlimError(
                "training has one scale per channel or per weight, not per group",
                where="--group-size" if self.group_size is not None else "--granularity",
                hint="leave it out, or use `slim quant weights`",
            )
        settings: dict[str, Any] = {
            "target": self.target,
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
            "weight_symmetric": not self.weight_affine,
            "activation_symmetric": self.activation_symmetric,
            "per_channel": self.granularity == "per_channel",
            "skip": list(self.skip),
            "overrides": [_plain(item) for item in self.overrides()],
            "samples": self.samples,
        }
        if self.observer is not None:
            settings["observer"] = named(self.observer, "--observer", "percentile:share=0.999")
        return settings


def read_override(text: str, weight: Scheme, activation: Scheme | None) -> Override:
    """Read ``GLOB:SETTING=VALUE,…`` or ``op:NAME:SETTING=VALUE,…``.

    Args:
        text: what stands behind ``--override``.
        weight: the scheme of weights, of which the override changes some settings.
        activation: that of activations; ``None``: they cannot be set.

    Raises:
        SlimError: it cannot be read, or sets what there is not.
    """
    from slim_quant.overrides import Override
    from slim_quant.schemes import Scheme

    operator = text.startswith(_OPERATOR)
    found = named(text.removeprefix(_OPERATOR), "--override", _EXAMPLE)
    if isinstance(found, str):
        raise SlimError(
            f"--override '{text}' sets nothing",
            hint=f"for example --override {_EXAMPLE}, or --skip '{text}' to leave these layers in float",
        )
    name = found.pop("name")
    known = _SETTINGS if activation is not None else (*_WEIGHT, "skip", "weight_observer")
    for key in found:
        if key not in known:
            hint = f"{close_match(key, known)} known: {', '.join(known)}".strip()
            raise SlimError(f"--override '{text}': there is no setting '{key}'", hint=hint)
    settings: dict[str, Any] = {key: found[key] for key in _PLAIN if key in found}
    for kind, base, keys in (("weight", weight, _WEIGHT), ("activation", activation, _ACTIVATION)):
        given = {keys[key]: found[key] for key in keys if key in found}
        if given and base is not None:
            settings[kind] = Scheme.from_json(_with_granularity({**base.to_json(), **given}, given))
    return Override(**({"op": name} if operator else {"match": name}), **settings)


def _plain(override: Override) -> dict[str, Any]:
    """Return an override as a technique's configuration has it."""
    schemes = {
        kind: scheme.to_json()
        for kind, scheme in (("weight", override.weight), ("activation", override.activation))
        if scheme is not None
    }
    rest = {key: getattr(override, key) for key in ("match", "op", "observer", "weight_observer")}
    return {**{key: value for key, value in rest.items() if value is not None}, **schemes, "skip": override.skip}


def _with_granularity(scheme: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Let a group size that is given alone mean "per group", and another granularity have none."""
    if "group_size" in given and "granularity" not in given:
        scheme["granularity"] = "per_group"
    if scheme["granularity"] != "per_group" and "group_size" not in given:
        scheme.pop("group_size", None)
    return scheme


#: where ``--observer`` stands among them
_OBSERVER = 7
_SCHEMES = (
    click.option(
        "--target",
        default="onnxruntime",
        show_default=True,
        metavar="NAME",
        help="The runtime that the file is for: onnxruntime, openvino, generic.",
    ),
    click.option(
        "--weight-bits", type=click.IntRange(2, 8), default=8, show_default=True, metavar="2-8", help="Bits of weights."
    ),
    click.option(
        "--activation-bits",
        type=click.IntRange(2, 8),
        default=8,
        show_default=True,
        metavar="2-8",
        help="Bits of activations.",
    ),
    click.option(
        "--granularity",
        type=click.Choice(["per_channel", "per_tensor", "per_group"]),
        default="per_channel",
        show_default=True,
        help="How many scales a weight has.",
    ),
    click.option(
        "--group-size", type=click.IntRange(min=1), metavar="N", help="Inputs that share a scale; means per_group."
    ),
    click.option("--weight-affine", is_flag=True, help="Give weights a zero point."),
    click.option("--activation-symmetric", is_flag=True, help="Give activations none."),
    click.option(
        "--weight-observer",
        default="abs_max",
        show_default=True,
        metavar="NAME",
        help="How those of weights are found.",
    ),
    click.option("--skip", multiple=True, metavar="GLOB|op:NAME", help="Layers that stay in float; may be repeated."),
    click.option(
        "--override",
        multiple=True,
        metavar="GLOB|op:NAME:SETTING=VALUE,…",
        help="Other settings for some layers: 'layer4.*:weight_bits=4'; may be repeated, later ones win.",
    ),
    click.option(
        "--samples",
        type=click.IntRange(min=1),
        default=256,
        show_default=True,
        metavar="N",
        help="Training samples to calibrate on.",
    ),
)


def scheme_options(command: F) -> F:
    """Add the options of :class:`SchemeRequest`; the command takes them as ``asked``."""
    return bundled(command, _with_observer("mse"), SchemeRequest, "asked")


def training_scheme_options(command: F) -> F:
    """Add the same options; what ``--observer`` is without being given depends on how scales are trained."""
    return bundled(command, _with_observer(None), SchemeRequest, "asked")


def _with_observer(default: str | None) -> tuple[Any, ...]:
    return (*_SCHEMES[:_OBSERVER], _observer(default), *_SCHEMES[_OBSERVER:])


def _observer(default: str | None) -> Callable[[F], F]:
    return click.option(
        "--observer",
        default=default,
        show_default=default is not None,
        metavar="NAME[:OPTION=VALUE,…]",
        help="How the ranges of activations are found.",
    )
