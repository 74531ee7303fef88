"""Which weights of a model are multiplied with activations or looked up, whatever modules they belong to.

Found in a recording of one forward pass: there are no lists of layer types, so weights that a forward uses by
``F.linear`` or ``@`` count as well. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from slim_core.graph.isolate import unwrap
from slim_core.graph.record import record
from slim_core.graph.rules import builtin_rules
from slim_core.graph.types import Node, Ref
from slim_core.workload import Inputs
from slim_quant.overrides import no_layer
from slim_quant.weight_only.packed import obstacle

Kind = Literal["linear", "embedding"]

#: operator -> the argument that is a weight, and which of its axes runs along the inputs
PRODUCTS = {
    "aten.linear.default": ("weight", 1), "aten.addmm.default": ("mat2", 0), "aten.mm.default": ("mat2", 0),
    "aten.matmul.default": ("other", 0), "aten.bmm.default": ("mat2", 0),
}  # fmt: skip
LOOKUPS = {"aten.embedding.default": "weight", "aten._embedding_bag.default": "weight",
           "aten._embedding_bag_forward_only.default": "weight"}  # fmt: skip
#: operators whose result is the same weight: turned round, or a part of it
TURNING = frozenset({"aten.t.default", "aten.transpose.int", "aten.permute.default", "aten.numpy_T.default"})
PARTS = frozenset({
    "aten.chunk.default", "aten.split.Tensor", "aten.split_with_sizes.default", "aten.slice.Tensor",
    "aten.detach.default", "aten.alias.default",
})  # fmt: skip


@dataclass(slots=True)
class Site:
    """A weight that can be packed.

    Args:
        names: its state-dict names, several where it is tied.
        shape: its shape.
        axis: its input axis.
        kinds: what it is used for.
        modules: paths of the modules that use it.
    """

    names: tuple[str, ...]
    shape: tuple[int, int]
    axis: int
    kinds: set[Kind] = field(default_factory=set)
    modules: list[str] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        """``"embedding"`` only where nothing is multiplied with it."""
        return "linear" if "linear" in self.kinds else "embedding"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of its layers, as patterns see them: its state-dict names without ``.weight``."""
        return tuple(name.removesuffix(".weight") for name in self.names)


def find(model: nn.Module, example_inputs: Inputs) -> tuple[list[Site], list[str]]:
    """Return the weights of linear layers and embeddings in execution order, and a line for each that must stay.

    Raises:
        ModelError: the forward fails on the example inputs.
    """
    model = unwrap(model)
    graph = record(model, example_inputs, rules=builtin_rules())
    finder = _Finder()
    for value in graph.values:
        if value.kind == "parameter" and len(value.shape) == 2:
            finder.follow(value.index, value.names, (value.shape[0], value.shape[1]))
    for node in graph.nodes:
        finder.see(node)
    sites, notes = [], list(finder.notes)
    for site in finder.sites.values():
        reasons = [reason for name in site.names if (reason := _obstacle(model, name)) is not None]
        if reasons:
            notes.append(f"{site.layers[0]} stays in float: {reasons[0]}")
        else:
            sites.append(site)
    return sites, notes


def chosen(sites: Sequence[Site], include: Sequence[str], skip: Sequence[str]) -> tuple[list[Site], list[str]]:
    """Return the sites that ``include`` matches and ``skip`` does not, and a line for each that is left out.

    Raises:
        PatternError: a pattern matches no layer.
    """
    for option, patterns in (("include", include), ("skip", skip)):
        for pattern in patterns:
            layers = [layer for site in sites for layer in site.layers]
            if pattern != "*" and not any(fnmatchcase(layer, pattern) for layer in layers):
                raise no_layer(f"{option} pattern '{pattern}'", pattern, layers)
    kept, notes = [], []
    for site in sites:
        if matches(site, skip):
            notes.append(f"{site.layers[0]} stays in float: it is skipped")
        elif not matches(site, include):
            notes.append(f"{site.layers[0]} stays in float: it is not included")
        else:
            kept.append(site)
    return kept, notes


def matches(site: Site, patterns: Iterable[str]) -> bool:
    """Tell whether one of the patterns matches one of the layer's names."""
    return any(fnmatchcase(layer, pattern) for pattern in patterns for layer in site.layers)


def _obstacle(model: nn.Module, name: str) -> str | None:
    path, _, leaf = name.rpartition(".")
    return obstacle(model.get_submodule(path), leaf)


class _Finder:
    def __init__(self) -> None:
        self.sites: dict[tuple[str, ...], Site] = {}
        self.notes: list[str] = []
        self._weights: dict[int, tuple[tuple[str, ...], tuple[int, int], bool]] = {}

    def follow(self, value: int, names: tuple[str, ...], shape: tuple[int, int], turned: bool = False) -> None:
        self._weights[value] = names, shape, turned

    def see(self, node: Node) -> None:
        if node.op in TURNING or node.op in PARTS:
            source = self._weight(node.args.get("self"))
            if source is not None:
                names, shape, turned = source
                for output in node.outputs:
                    self.follow(output, names, shape, turned != (node.op in TURNING))
        elif node.op in PRODUCTS:
            argument, axis = PRODUCTS[node.op]
            self._use(node, argument, axis, "linear")
        elif node.op in LOOKUPS:
            self._use(node, LOOKUPS[node.op], 1, "embedding")

    def _use(self, node: Node, argument: str, axis: int, kind: Kind) -> None:
        weight = self._weight(node.args.get(argument))
        if weight is None:
            return
        names, shape, turned = weight
        axis = 1 - axis if turned else axis
        site = self.sites.setdefault(names, Site(names, shape, axis))
        if site.axis != axis:
            self.notes.append(f"{site.layers[0]} is used along both axes: its groups run along axis {site.axis}")
        site.kinds.add(kind)
        site.modules.append(node.module)

    def _weight(self, argument: Any) -> tuple[tuple[str, ...], tuple[int, int], bool] | None:
        return self._weights.get(argument.index) if isinstance(argument, Ref) else None
