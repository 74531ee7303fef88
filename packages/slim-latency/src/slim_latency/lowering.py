"""From a recorded graph to the kernels that onnxruntime would run, for any widths, without exporting anything.

What is fused with what is decided once per architecture (:class:`Plan`); which memory layout each kernel gets depends
on the widths and is worked out for each graph (:meth:`Plan.signatures`), in well under a millisecond. The rules are
those that the runtime's optimised graphs show; the tests hold them against such graphs, kernel by kernel. Where there
is an exported file, its optimised graph is read instead (``profile.py``), and nothing here is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slim_core.graph.cost import refs
from slim_core.graph.light import is_light
from slim_core.graph.types import Graph, Node
from slim_latency.agent import kernel_key

Shape = tuple[int, ...]
#: op and domain, fixed attributes, shapes of inputs, shape of the output: names a kernel, and is cheap to hash
Signature = tuple[str, tuple[tuple[str, Any], ...], tuple[Shape, ...], Shape]

_STORED = ("parameter", "buffer", "constant")
_NCHWC = "Conv.nchwc"

#: operators that leave nothing to run
_NOTHING = """
    dropout feature_dropout alpha_dropout identity contiguous clone detach alias lift_fresh lift_fresh_copy _to_copy
    to expand_as
"""
#: activations that onnxruntime takes into a convolution, by the name that it gives them there
_ACTIVATIONS = {
    "relu": "Relu", "relu6": "Clip", "hardtanh": "Clip", "clamp": "Clip", "clamp_min": "Clip", "sigmoid": "Sigmoid",
    "tanh": "Tanh", "leaky_relu": "LeakyRelu", "hardsigmoid": "HardSigmoid", "hardswish": "HardSwish",
}  # fmt: skip
#: those that it takes into a Gemm
_AFTER_GEMM = ("Relu", "Sigmoid", "Tanh", "LeakyRelu")
#: what an operator becomes when it stands alone: one ONNX operator, or several
_PLAIN = {
    **{name: (title,) for name, title in _ACTIVATIONS.items()},
    "hardswish": ("HardSigmoid", "Mul"), "silu": ("Sigmoid", "Mul"), "gelu": ("Gelu.microsoft",), "elu": ("Elu",),
    "mish": ("Softplus", "Tanh", "Mul"), "add": ("Add",), "sub": ("Sub",), "mul": ("Mul",), "div": ("Div",),
    "rsub": ("Sub",), "softmax": ("Softmax",), "_softmax": ("Softmax",), "_safe_softmax": ("Softmax",),
    "log_softmax": ("LogSoftmax",), "_log_softmax": ("LogSoftmax",), "cat": ("Concat",), "permute": ("Transpose",),
    "transpose": ("Transpose",), "t": ("Transpose",), "mean": ("ReduceMean",), "sum": ("ReduceSum",),
    "amax": ("ReduceMax",), "exp": ("Exp",), "sqrt": ("Sqrt",), "rsqrt": ("Sqrt", "Reciprocal"), "pow": ("Pow",),
    "neg": ("Neg",), "abs": ("Abs",), "log": ("Log",), "erf": ("Erf",), "sin": ("Sin",), "cos": ("Cos",),
    "reciprocal": ("Reciprocal",), "maximum": ("Max",), "minimum": ("Min",), "where": ("Where",),
    "softplus": ("Softplus",), "prelu": ("PRelu",), "_prelu_kernel": ("PRelu",), "constant_pad_nd": ("Pad",),
    "pad": ("Pad",), "embedding": ("Gather",), "index_select": ("Gather",), "index": ("GatherND",),
    "slice": ("Slice",), "select": ("Gather",), "narrow": ("Slice",), "expand": ("Expand",), "repeat": ("Tile",),
    "upsample_nearest2d": ("Resize",), "upsample_bilinear2d": ("Resize",), "pixel_shuffle": ("DepthToSpace",),
    "layer_norm": ("LayerNormalization",), "native_layer_norm": ("LayerNormalization",),
    "group_norm": ("InstanceNormalization", "Mul", "Add"), "native_group_norm": ("InstanceNormalization", "Mul", "Add"),
    "instance_norm": ("InstanceNormalization",), "batch_norm": ("BatchNormalization",),
    "native_batch_norm": ("BatchNormalization",),
    "_native_batch_norm_legit_no_training": ("BatchNormalization",), "channel_shuffle": ("Transpose",),
    "split": ("Split",), "split_with_sizes": ("Split",), "chunk": ("Split",), "unbind": ("Split",),
    "stack": ("Concat",),
}  # fmt: skip
#: activations that multiply their input with something that is made of it
_GATES = ("hardswish", "silu", "mish")
_RESHAPES = """
    view reshape flatten unflatten unsqueeze squeeze _unsafe_view _reshape_alias
"""
_CONVS = ("conv1d", "conv2d", "conv3d", "convolution", "_convolution")
_PRODUCTS = ("linear", "addmm", "mm", "bmm", "matmul", "baddbmm")
_NORMS = ("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
_GLOBAL = ("adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool1d")
_POOLS = {"max_pool2d": "MaxPool", "max_pool2d_with_indices": "MaxPool", "avg_pool2d": "AveragePool"}


@dataclass(slots=True, eq=False)
class Step:
    """One operator after fusion.

    Args:
        kind: ``conv``, ``pool``, ``global``, ``add``, ``act``, ``plain`` (anything else that runs) or ``product``.
        op: ONNX operator, with its domain.
        inputs: values that it reads, weights not among them.
        weight: value of its weight, or -1.
        output: value that it makes.
        attributes: what its key holds beside shapes.
        act: activation that was taken in, or ``""``.
        uses: how often its output is read.
    """

    kind: str
    op: str
    inputs: tuple[int, ...]
    weight: int
    output: int
    attributes: tuple[tuple[str, Any], ...] = ()
    act: str = ""
    uses: int = 0


class Plan:
    """What the operators of an architecture become on onnxruntime; widths may change afterwards.

    Args:
        graph: a recording of the architecture.

    Attributes:
        steps: the operators after fusion, in execution order.
        unknown: operators that nothing is known about, with how often they run. They make estimates partial.
    """

    def __init__(self, graph: Graph) -> None:
        self.base = graph
        self.steps: list[Step] = []
        self.unknown: dict[str, int] = {}
        self._same: dict[int, int] = {}
        self._constant = {value.index for value in graph.values if value.kind in _STORED}
        self._made: dict[int, Step] = {}
        self._uses = self._count(graph)
        for node in graph.nodes:
            self._take(node)
        self.outputs = tuple(self._root(index) for index in graph.outputs)
        uses = dict.fromkeys((step.output for step in self.steps), 0)
        for step in self.steps:
            for index in step.inputs:
                uses[index] = uses.get(index, 0) + 1
        for index in self.outputs:
            uses[index] = uses.get(index, 0) + 1
        for step in self.steps:
            step.uses = uses[step.output]

    def fits(self, graph: Graph) -> bool:
        """Return whether ``graph`` is of this architecture: the same operators and arguments, widths aside."""
        if len(graph.nodes) != len(self.base.nodes) or len(graph.values) != len(self.base.values):
            return False
        for mine, its in zip(self.base.nodes, graph.nodes, strict=True):
            if mine is not its and not _alike(mine, its):
                return False
        return True

    # -- once per architecture ----

    def _count(self, graph: Graph) -> dict[int, int]:
        uses: dict[int, int] = {}
        for node in graph.nodes:
            for ref in refs(node):
                uses[ref.index] = uses.get(ref.index, 0) + 1
        for index in graph.outputs:
            uses[index] = uses.get(index, 0) + 1
        return uses

    def _root(self, index: int) -> int:
        while index in self._same:
            index = self._same[index]
        return index

    def _alone(self, index: int) -> bool:
        """Return whether a value is read once, also through values that stand for it."""
        return self._uses.get(index, 0) == 1

    def _take(self, node: Node) -> None:
        name = node.op.split(".")[1].rstrip("_") if node.op.startswith("aten.") else node.op
        if not node.outputs:
            return
        sources = tuple(self._root(ref.index) for ref in refs(node))
        output = node.outputs[0]
        if all(index in self._constant for index in sources):
            self._constant.update(node.outputs)  # folded when the file is made
            return
        data = tuple(index for index in sources if index not in self._constant)
        if name in _NOTHING.split():
            self._same[output] = sources[0]
        elif name in _CONVS:
            self._conv(node, sources[0], output)
        elif (name in _NORMS and self._folds(node)) or self._fuses(node, _ACTIVATIONS.get(name)):
            self._same[output] = sources[0]
        elif name in _ACTIVATIONS and name != "hardswish":
            self._add(Step("act", _ACTIVATIONS[name], data[:1], -1, output))
        elif name == "add" and len(data) == 2 and node.args.get("alpha", 1) == 1:
            self._add(Step("add", "Add", data, -1, output))
        elif (name in _GLOBAL and set(_pair(node.args["output_size"])) == {1}) or (
            name == "mean" and self._is_global(node) and node.args["keepdim"]
        ):
            self._add(Step("global", "GlobalAveragePool", data, -1, output))
        elif name in _POOLS or name in _GLOBAL:
            self._pool(node, name, data, output)
        elif name in _PRODUCTS:
            self._product(node, name, sources, output)
        elif name == "scaled_dot_product_attention":
            self._attention(sources, output)
        elif name in _RESHAPES.split():
            self._add(Step("plain", "Reshape", data[:1], -1, output))
        elif name in _PLAIN:
            self._several(node, name, data)
        elif is_light(node.op) and len(data) <= 1:
            self._add(Step("plain", name, data, -1, output))
        else:
            self.unknown[node.op] = self.unknown.get(node.op, 0) + 1
            self._add(Step("unknown", name, data, -1, output))

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        self._made[step.output] = step

    def _conv(self, node: Node, source: int, output: int) -> None:
        weight = node.args["weight"]
        stride, dilation = (tuple(_listed(node.args[name])) for name in ("stride", "dilation"))
        attributes: list[tuple[str, Any]] = []
        if set(dilation) != {1}:
            attributes.append(("dilations", dilation))
        if set(stride) != {1}:
            attributes.append(("strides", stride if len(stride) > 1 else stride * self._space(output)))
        op = "ConvTranspose" if node.args.get("transposed") else "Conv"
        self._add(Step("conv" if op == "Conv" else "plain", op, (source,), weight.index, output, tuple(attributes)))

    def _space(self, index: int) -> int:
        return len(self.base.values[index].shape) - 2

    def _folds(self, node: Node) -> bool:
        """Return whether a batch norm goes into the convolution or product before it."""
        source = next(iter(refs(node))).index
        made = self._made.get(self._root(source))
        return made is not None and made.kind == "conv" and not made.act and self._alone(source)

    def _fuses(self, node: Node, act: str | None) -> bool:
        if act is None:
            return False
        source = next(iter(refs(node))).index
        made = self._made.get(self._root(source))
        if made is None or made.act or not self._alone(source):
            return False
        if made.kind != "conv" and (made.op != "Gemm" or act not in _AFTER_GEMM):
            return False
        made.act = act
        return True

    def _is_global(self, node: Node) -> bool:
        dims = node.args.get("dim") or ()
        source = self.base.values[next(iter(refs(node))).index]
        rank = len(source.shape)
        return rank == 4 and {dim % rank for dim in _listed(dims)} == {2, 3}

    def _pool(self, node: Node, name: str, data: tuple[int, ...], output: int) -> None:
        if name in _GLOBAL:
            before, after = (self.base.values[index].shape[-1] for index in (data[0], output))
            kernel: tuple[int, ...] = (max(before // max(after, 1), 1),) * 2
            stride = kernel
            op = "AveragePool"
        else:
            kernel = _pair(node.args["kernel_size"])
            stride, op = _pair(node.args["stride"] or kernel), _POOLS[name]
        attributes: list[tuple[str, Any]] = [("kernel_shape", kernel)]
        if set(stride) != {1}:
            attributes.append(("strides", stride))
        self._add(Step("pool", op, data, -1, output, tuple(attributes)))

    def _product(self, node: Node, name: str, sources: tuple[int, ...], output: int) -> None:
        matrices = sources[1:3] if name in ("addmm", "baddbmm") else sources[:2]
        left, right = matrices
        flat = len(self.base.values[left].shape) == 2 and name in ("linear", "addmm")
        if right in self._constant:
            self._add(Step("product", "Gemm" if flat else "MatMul", (left,), right, output))
        else:
            self._add(Step("product", "MatMul", (left, right), -1, output))
        if not flat and (len(sources) > 2):
            self._add(Step("plain", "Add", (output,), -1, output))

    def _attention(self, sources: tuple[int, ...], output: int) -> None:
        query, key, value = sources[:3]
        self._add(Step("plain", "Transpose", (key,), -1, key))
        self._add(Step("attention", "Attention", (query, key, value), -1, output))

    def _several(self, node: Node, name: str, data: tuple[int, ...]) -> None:
        output = node.outputs[0]
        for title in _PLAIN[name]:
            attributes: tuple[tuple[str, Any], ...] = ()
            if title in ("Softmax", "LogSoftmax"):
                attributes = (("axis", node.args.get("dim", -1)),)
            elif title == "ReduceMean":
                attributes = (("keepdims", int(bool(node.args.get("keepdim", True)))),)
            twice = title == "Mul" and name in _GATES
            self._add(Step("plain", title, data * 2 if twice else data, -1, output, attributes))
        for index in node.outputs[1:]:
            self._same[index] = output

    # -- for every graph ----

    def signatures(self, shapes: Sequence[Shape], block: int) -> list[Signature]:
        """Return the kernels for these shapes of values.

        Args:
            shapes: shape of every value of the graph.
            block: channels that the runtime packs together; 0 where it packs none.
        """
        return _Layout(self, shapes, block).run()


class _Layout:
    """Gives every step its memory layout, as the runtime does at graph level "all"."""

    def __init__(self, plan: Plan, shapes: Sequence[Shape], block: int) -> None:
        self.plan, self.shapes, self.block = plan, shapes, block
        self.made: list[list[Any]] = []
        self.packed: dict[int, int] = {}  # value -> position of what made it, in packed layout
        self.plain: set[int] = set()  # packed values that somebody reads unpacked
        self.repacked: set[int] = set()

    def run(self) -> list[Signature]:
        for step in self.plan.steps:
            getattr(self, f"_{step.kind}")(step)
        for index in self.plan.outputs:
            self._read(index)
        for index in self.plain:
            shape = self.shapes[index]
            self.made.append(["ReorderOutput.nchwc", (), (self._padded(shape),), shape])
        return [(op, attributes, tuple(inputs), output) for op, attributes, inputs, output, *_ in self.made]

    def _padded(self, shape: Shape) -> Shape:
        block = self.block
        return (shape[0], -(-shape[1] // block) * block, *shape[2:])

    def _read(self, index: int) -> Shape:
        """Return the shape of a value, which is read in the plain layout."""
        if index in self.packed:
            self.plain.add(index)
        return self.shapes[index]

    def _read_packed(self, index: int) -> Shape:
        shape = self._padded(self.shapes[index])
        if index not in self.packed and index not in self.repacked:
            self.repacked.add(index)
            self.made.append(["ReorderInput.nchwc", (), (self.shapes[index],), shape])
        return shape

    def _conv(self, step: Step) -> None:
        shape, weight, out = self.shapes[step.inputs[0]], self.shapes[step.weight], self.shapes[step.output]
        groups = shape[1] // weight[1]
        form = self._form(shape, weight, groups)
        attributes = list(step.attributes)
        if step.act:
            attributes.insert(0, ("activation", step.act))
        if not form:
            op = "FusedConv.microsoft" if step.act else "Conv"
            if groups > 1:
                attributes.append(("group", groups))
            self.made.append([op, tuple(attributes), [self._read(step.inputs[0]), weight], out, step])
            return
        block = self.block
        made = self._padded(out)
        if form == "direct":
            source, held = self._read(step.inputs[0]), weight[1]
        else:
            source = self._read_packed(step.inputs[0])
            held = weight[1] if form == "depthwise" else -(-weight[1] // block) * block
        if groups > 1:
            attributes.append(("group", made[1] if form == "depthwise" else groups))
        self.packed[step.output] = len(self.made)
        self.made.append([_NCHWC, tuple(attributes), [source, (made[1], held, *weight[2:])], made, step])

    def _form(self, shape: Shape, weight: Shape, groups: int) -> str:
        """Return how a convolution is packed: ``""`` not at all."""
        block = self.block
        if not block or len(shape) != 4:
            return ""
        if groups > 1:
            if weight[1] == 1 and weight[0] == groups:
                return "depthwise" if weight[0] % 4 == 0 else ""
            return "" if weight[1] % block or (weight[0] // groups) % block else "packed"
        if weight[1] < block:
            return "direct"
        return "packed" if weight[1] % 4 == 0 else ""

    def _add(self, step: Step) -> None:
        first, second = step.inputs
        out = self.shapes[step.output]
        both = first in self.packed and second in self.packed and self.shapes[first] == self.shapes[second]
        if not both:
            self._plain(step)
            return
        for one, other in ((first, second), (second, first)):
            held = self.made[self.packed[one]]
            conv: Step | None = held[4] if len(held) > 4 else None
            if held[0] == _NCHWC and conv is not None and not conv.act and len(held[2]) == 2 and self._single(one):
                held[2].append(self._padded(self.shapes[other]))
                self.packed[step.output] = self.packed[one]
                return
        padded = self._padded(out)
        self.packed[step.output] = len(self.made)
        self.made.append(["Add", (), (padded, padded), padded])

    def _single(self, index: int) -> bool:
        step = self.plan._made.get(index)
        return step is not None and step.uses == 1

    def _act(self, step: Step) -> None:
        source = step.inputs[0]
        if source not in self.packed:
            self._plain(step)
            return
        held = self.made[self.packed[source]]
        taken = dict(held[1]).get("activation")
        if held[0] == _NCHWC and taken is None and self._single(source):
            held[1] = (("activation", step.op), *held[1])
            self.packed[step.output] = self.packed[source]
            return
        padded = self._padded(self.shapes[step.output])
        self.packed[step.output] = len(self.made)
        self.made.append([step.op, (), (padded,), padded])

    def _pool(self, step: Step) -> None:
        source = step.inputs[0]
        shape = self.shapes[source]
        if not self.block or len(shape) != 4 or shape[1] % self.block:
            self._plain(step)
            return
        padded, out = self._read_packed(source), self.shapes[step.output]
        self.packed[step.output] = len(self.made)
        self.made.append([f"{step.op}.nchwc", step.attributes, (padded,), self._padded(out)])

    def _global(self, step: Step) -> None:
        source = step.inputs[0]
        shape = self.shapes[source]
        whole = (*shape[:2], 1, 1)
        if not self.block or shape[1] % self.block:
            self.made.append([step.op, (), (self._read(source),), whole])
        else:
            self.packed[step.output] = len(self.made)
            self.made.append([f"{step.op}.nchwc", (), (self._read_packed(source),), whole])

    def _product(self, step: Step) -> None:
        # weights of products are packed when the file is loaded, and the profiler does not show them
        shapes = tuple(self._read(index) for index in step.inputs)
        op, attributes = (step.op, ()) if not step.act else (f"Fused{step.op}.microsoft", (("activation", step.act),))
        self.made.append([op, attributes, shapes, self.shapes[step.output]])

    def _attention(self, step: Step) -> None:
        query, key, value = (self._read(index) for index in step.inputs)
        scores = (*query[:-1], key[-2])
        turned = (*key[:-2], key[-1], key[-2])
        self.made.append(["MatMul", (), (query, turned), scores])
        self.made.append(["Softmax", (("axis", -1),), (scores,), scores])
        self.made.append(["MatMul", (), (scores, value), self.shapes[step.output]])

    def _plain(self, step: Step) -> None:
        shapes = tuple(self._read(index) for index in step.inputs)
        if step.weight >= 0:
            shapes = (*shapes, self.shapes[step.weight])
        self.made.append([step.op, step.attributes, shapes, self.shapes[step.output]])

    def _unknown(self, step: Step) -> None:
        for index in step.inputs:
            self._read(index)


def key_of(signature: Signature, dtype: str = "f32") -> str:
    """Return the key of a kernel, as the agent writes it."""
    title, attributes, inputs, output = signature
    op, _, domain = title.partition(".")
    return kernel_key(op, domain, [(dtype, shape) for shape in inputs], [(dtype, output)], dict(attributes))


def kernels_of(graph: Graph, block: int) -> tuple[list[str], Mapping[str, int]]:
    """Return the keys of the kernels that a recorded graph becomes, and the operators that nothing is known about.

    Args:
        graph: the recording.
        block: channels that the runtime packs together, from the device table; 0 where it packs none.
    """
    plan = Plan(graph)
    made = plan.signatures([value.shape for value in graph.values], block)
    return [key_of(signature) for signature in made], plan.unknown


def _alike(first: Node, second: Node) -> bool:
    if first.op != second.op or first.outputs != second.outputs:
        return False
    return all(first.args.get(name) == value for name, value in second.args.items() if name != "groups")


def _listed(value: Any) -> Sequence[int]:
    return value if isinstance(value, tuple | list) else (value,)


def _pair(value: Any) -> tuple[int, ...]:
    found = tuple(_listed(value))
    return found * 2 if len(found) == 1 else found
