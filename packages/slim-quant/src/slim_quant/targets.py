"""What each runtime computes in integers: one ``Target`` per runtime. Data only; ``placement.py`` reads it.

A plugin adds a target with the hook ``slim_register_quant_targets``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim_core.errors import SlimError, UnknownNameError

if TYPE_CHECKING:
    from slim_core.registry import Registry

CONVOLUTIONS = frozenset({
    "aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default",
    "aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding",
})  # fmt: skip
TRANSPOSED = frozenset({"aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input"})
LINEAR = frozenset({"aten.linear.default"})
#: activations that the runtime does as part of the operator before, by saturation of its output
CLIPPING = frozenset({
    "aten.relu.default", "aten.relu6.default", "aten.hardtanh.default", "aten.clamp.default", "aten.clamp_min.default",
})  # fmt: skip
#: operators that only move, repeat or choose values: they work on the integers with the scale of their input
PASSING = frozenset({
    "aten.max_pool1d.default", "aten.max_pool2d.default", "aten.flatten.using_ints", "aten.view.default",
    "aten.reshape.default", "aten.permute.default", "aten.transpose.int", "aten.squeeze.dim", "aten.squeeze.dims",
    "aten.squeeze.default", "aten.unsqueeze.default", "aten.slice.Tensor", "aten.split.Tensor", "aten.chunk.default",
    "aten.split_with_sizes.default", "getitem", "aten.contiguous.default", "aten.clone.default", "aten.expand.default",
    "aten.dropout.default", "aten.feature_dropout.default", "aten.upsample_nearest2d.vec",
})  # fmt: skip
#: activations that are a line between two ends: of integers, the same integers read with another scale
HARD_SIGMOID = "aten.hardsigmoid.default"
HARD = frozenset({HARD_SIGMOID, "aten.hardswish.default"})
#: where those ends lie
HARD_END = 3.0


@dataclass(frozen=True, slots=True)
class Target:
    """What a runtime computes in integers, and what it needs quantized around it to do so.

    Args:
        name: the name that configurations use.
        weighted: operators with a weight that run in int8.
        binary: element-wise operators of two activations.
        matmul: products of two activations.
        pools: operators with a scale of their own for the result.
        concat: operators whose inputs and output share one scale.
        outputs: must the result of a weighted operator be quantized for it to run in integers?
        float_results: weighted operators that run in integers though their result is float; used where the result is
            the model's output.
        integer_bias: is the bias added to the integer product, as an int32 in steps of input times weight scale?
        hard: which of :data:`HARD` are done in integers. What they read gets a scale of which -3 and 3 are multiples.
        unary: other functions of one activation that have an integer kernel, with a scale of their own for the result.
        fuses_sums: does a weighted operator add the other side of a sum to its float result before it rounds? Then its
            own result is not quantized first.
    """

    name: str
    weighted: frozenset[str]
    binary: frozenset[str]
    matmul: frozenset[str]
    pools: frozenset[str]
    concat: frozenset[str]
    outputs: bool = True
    float_results: frozenset[str] = frozenset()
    integer_bias: bool = False
    hard: frozenset[str] = frozenset()
    unary: frozenset[str] = frozenset()
    fuses_sums: bool = False


_POOLS = frozenset({"aten.adaptive_avg_pool2d.default", "aten.avg_pool2d.default", "aten.mean.dim"})

ONNXRUNTIME = Target(
    name="onnxruntime",
    weighted=CONVOLUTIONS | LINEAR,  # it has no integer transposed convolution
    binary=frozenset({"aten.add.Tensor", "aten.mul.Tensor"}),
    matmul=frozenset({"aten.matmul.default", "aten.bmm.default"}),
    pools=_POOLS,
    concat=frozenset({"aten.cat.default"}),
    float_results=LINEAR,
    integer_bias=True,
    hard=HARD,
    unary=frozenset({"aten.sigmoid.default", "aten.leaky_relu.default", "aten.softmax.int"}),
)
OPENVINO = Target(
    name="openvino",
    weighted=CONVOLUTIONS | TRANSPOSED | LINEAR,
    binary=frozenset({"aten.add.Tensor"}),
    matmul=frozenset({"aten.matmul.default", "aten.bmm.default"}),
    pools=_POOLS,
    concat=frozenset({"aten.cat.default"}),
    outputs=False,
    fuses_sums=True,
)
GENERIC = Target(
    name="generic",
    weighted=CONVOLUTIONS | TRANSPOSED | LINEAR,
    binary=frozenset(),
    matmul=frozenset({"aten.matmul.default", "aten.bmm.default"}),
    pools=frozenset(),
    concat=frozenset(),
    outputs=False,
)


def get_target(target: str | Target, registry: Registry | None = None) -> Target:
    """Return a target by name; a :class:`Target` is returned as it is.

    Args:
        target: the name, or the target itself.
        registry: where names are looked up; without one the built-in names are found at once, and others among all
            installed plugins.

    Raises:
        UnknownNameError: nobody registered the name.
        SlimError: what was registered is no target.
    """
    if isinstance(target, Target):
        return target
    if registry is None:
        from slim_quant.plugin import TARGETS

        if target in TARGETS:
            registered = TARGETS[target].resolve()
            return _checked(target, registered)
        from slim_core.plugins import load_plugins

        registry = load_plugins().registry
    try:
        return _checked(target, registry.get("quant_targets", target))
    except UnknownNameError as error:
        raise UnknownNameError(f"unknown quantization target '{target}'", hint=error.hint) from error


def _checked(name: str, registered: object) -> Target:
    if not isinstance(registered, Target):
        raise SlimError(
            f"quantization target '{name}' is a {type(registered).__name__}",
            hint="register a slim_quant.targets.Target",
        )
    return registered
