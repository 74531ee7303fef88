"""The whole model's own forward on real data, with the intermediate tensors that programs start from kept aside.

The operators are counted as they were when the model was recorded, so a value's number says which tensor it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from slim_core.graph.isolate import isolated, quiet_torch
from slim_core.graph.rules import find_rule
from slim_core.graph.rules.base import Rule, refs_of
from slim_core.graph.types import Graph, Ref
from slim_core.workload import Inputs, call, tensors_of
from slim_prune.sensitivity.facts import Facts, NotReplayableError


class _Done(Exception):
    """Ends a forward of which the rest is not needed."""


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run forwards inside in evaluation mode, without gradients, and put everything back that they change."""
    with ExitStack() as stack:
        stack.enter_context(quiet_torch(model))
        stack.enter_context(isolated(model, lambda _, tensor: tensor))
        stack.enter_context(torch.inference_mode())
        yield


class Capture:
    """Runs the whole model and keeps some of its values.

    Args:
        model: the model, inside :func:`undisturbed`.
        facts: its recording with inputs of the shapes that it will be run on.
        rules: the rules that it was recorded with.
    """

    def __init__(self, model: nn.Module, facts: Facts, rules: Mapping[str, Rule]) -> None:
        self._model, self._graph, self._rules = model, facts.graph, rules
        self._changed = _changed_later(facts)

    def run(self, inputs: Inputs, wanted: Iterable[int], last: int | None = None) -> dict[int, Tensor]:
        """Return the wanted values by number.

        Args:
            inputs: of the shapes of the recording.
            wanted: numbers of inputs, constants and intermediate values.
            last: number of the operator after which nothing is wanted any more; ``None``: run to the end.

        Raises:
            NotReplayableError: the forward runs other operators on this data.
        """
        wanted = set(wanted)
        found: dict[int, Tensor] = {}
        given = [tensor for value in _tops(inputs) for tensor in tensors_of(value)]
        for index, tensor in zip(self._graph.inputs, given, strict=False):
            if index in wanted:
                found[index] = tensor.clone() if index in self._changed else tensor
        if len(found) < len(wanted):
            mode = _Counting(self._graph, self._rules, wanted, found, self._changed, last)
            try:
                with mode:
                    call(self._model, inputs)
            except _Done:
                pass
        missing = wanted - found.keys()
        if missing:
            raise NotReplayableError(f"the forward did not make {len(missing)} of the recorded tensors")
        return found


def _tops(inputs: Any) -> list[Any]:
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)


def _changed_later(facts: Facts) -> set[int]:
    """Return the values whose storage some later operator changes in place."""
    graph = facts.graph
    changes = {graph.values[index].storage: node for node, items in enumerate(facts.changed) for index in items}
    return {value.index for value in graph.values if changes.get(value.storage, -1) > facts.made.get(value.index, -1)}


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators as the recorder does, and keeps what is wanted."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __init__(
        self,
        graph: Graph,
        rules: Mapping[str, Rule],
        wanted: set[int],
        found: dict[int, Tensor],
        changed: set[int],
        last: int | None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph, self._rules, self._wanted, self._found = graph, rules, wanted, found
        self._changed, self._last = changed, last
        self._next = 0
        self._apart: dict[Any, bool] = {}
        self._constants = {index for index in wanted if graph.values[index].kind == "constant"}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        apart = self._apart.get(func)
        if apart is None:
            composite = func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
            apart = self._apart[func] = composite and find_rule(self._rules, str(func)) is None
        if apart:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if self._next >= len(self._graph.nodes) or self._graph.nodes[self._next].op != str(func):
            raise NotReplayableError(f"the forward runs {func}, which the recording does not have there")
        node = self._graph.nodes[self._next]
        self._next += 1
        if self._constants:
            self._keep_constants(func, node.args, args, kwargs)
        result = func(*args, **kwargs)
        if any(index in self._wanted for index in node.outputs):
            leaves = [item for item in pytree.tree_leaves(result) if isinstance(item, Tensor)]
            for index, tensor in zip(node.outputs, leaves, strict=True):
                if index in self._wanted:
                    self._keep(index, tensor)
        if self._last is not None and node.index >= self._last and self._wanted <= self._found.keys():
            raise _Done
        return result

    def _keep(self, index: int, tensor: Tensor) -> None:
        if tuple(tensor.shape) != self._graph.values[index].shape:
            shape = tuple(tensor.shape)
            raise NotReplayableError(
                f"a tensor has shape {shape} and was recorded as {self._graph.values[index].shape}"
            )
        kept = tensor.contiguous()  # slicing channels is quick in this layout only
        self._found[index] = tensor.clone() if index in self._changed and kept is tensor else kept

    def _keep_constants(self, func: Any, recorded: Mapping[str, Any], args: Any, kwargs: Any) -> None:
        refs = refs_of(recorded.values())
        if not any(ref.index in self._constants for ref in refs):
            return
        for n, argument in enumerate(func._schema.arguments):
            actual = args[n] if n < len(args) else kwargs.get(argument.name)
            self._match(recorded.get(argument.name), actual)

    def _match(self, recorded: Any, actual: Any) -> None:
        if isinstance(recorded, Ref):
            if recorded.index in self._constants and isinstance(actual, Tensor):
                self._keep(recorded.index, actual)
        elif isinstance(recorded, tuple) and isinstance(actual, list | tuple):
            for one, other in zip(recorded, actual, strict=False):
                self._match(one, other)
