"""``record``: one forward pass of any model, written down as a :class:`Graph`.

Operators are recorded whole where a coupling rule knows them (``aten.conv2d``, ``aten.linear``, ``aten.matmul``,
``aten.batch_norm``, ``aten.layer_norm``, ``aten.scaled_dot_product_attention``, …); other composite operators are taken
apart into what they are made of. The model is left exactly as it was (see ``isolate.py``).

Not here: what the operators mean for channels (``dims.py`` and ``rules/``).
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from slim_core.errors import ModelError, SlimError
from slim_core.graph.isolate import collector_paused, edited, isolated, quiet_torch, state_of, unwrap, walk
from slim_core.graph.quick import quick
from slim_core.graph.rules import builtin_rules, find_rule
from slim_core.graph.source import Locator, first_line
from slim_core.graph.types import READS, Graph, Node, Ref, Value, ValueKind
from slim_core.workload import Inputs, call, tensors_of

DeviceKind = Literal["meta", "fake", "real"]

#: dimension -> kept indices, by the first state-dict name
Cuts = Mapping[str, Mapping[int, NDArray[np.int64]]]
Edits = Mapping[tuple[int, str], tuple[nn.Module, Any]]


_LITERALS = frozenset({bool, int, float, str, type(None)})
#: constants up to this many entries are kept with the graph
_SMALL = 64


class Several(tuple[Inputs, ...]):
    """Several example inputs: the forward runs once on each, and one recording holds all of it."""

    __slots__ = ()


class StopRecordingError(Exception):
    """Raised by an observer that has seen enough."""


def record(model: nn.Module, example_inputs: Inputs | Several, *, rules: Mapping[str, Any] | None = None) -> Graph:
    """Run ``model`` once on ``example_inputs`` and return what it computed, operator by operator.

    The forward runs in eval mode on meta tensors; where that is impossible (it reads values) under
    ``FakeTensorMode``, and at last with the real tensors. Wrappers (``torch.compile``, ``DataParallel``) are looked
    through: names are those of the model inside.

    Args:
        model: any model whose forward runs. It is not changed.
        example_inputs: positional inputs (tuple), keyword inputs (mapping) or one tensor; ``Several`` of them
            record every way that the forward takes.
        rules: coupling rules by operator name; operators that one of them knows are recorded whole.

    Raises:
        ModelError: the forward fails on the example inputs; names the exception, the module and the line.
    """
    model = unwrap(model)
    if any(isinstance(module, torch.jit.ScriptModule) for _, module in walk(model)):
        raise ModelError(
            f"{type(model).__name__} is scripted (torch.jit): its layers cannot be changed",
            hint="analyse the module that was scripted",
        )
    notes: list[str] = []
    kinds: tuple[DeviceKind, ...] = ("meta", "fake", "real")
    for kind in kinds:
        attempt = Attempt(model, example_inputs, kind, rules)
        graph = attempt.run()
        if graph is not None:
            return replace(graph, notes=(*notes, *_reads(graph)))
        error = attempt.error or RuntimeError("no forward was run")
        if isinstance(error, SlimError):
            raise error  # says what to do already
        if kind != "real":
            notes.append(f"could not be recorded with {kind} tensors: {first_line(error)}")
    module, source = attempt.locator.locate_error(error)
    where = ", ".join(filter(None, [f"module '{module}'" if module else "", str(source) if source else ""]))
    raise ModelError(
        f"the forward of {type(model).__name__} fails on its example inputs: {first_line(error)}",
        where=where or None,
        hint="check that model(*example_inputs) runs: shapes, dtypes and device of the example inputs",
    ) from error


def _reads(graph: Graph) -> list[str]:
    """Say where the forward hands values to Python: a recording holds the way that it took then."""
    lines = dict.fromkeys(str(node.source) for node in graph.nodes if node.op in READS and node.source)
    return [f"a value may decide what the forward does, and only what it did was recorded: {line}" for line in lines]


class Attempt:
    """One forward with one kind of tensors.

    Args:
        model: the unwrapped model.
        inputs: the example inputs.
        kind: which tensors stand in for the model's.
        rules: see :func:`record`.
        cuts: kept indices of parameters and buffers: the forward runs on the smaller tensors.
        edits: attributes to set for the run.
        observer: called with each node as it is recorded, while ``recorder.result`` is what it returned; may raise.
        locate: whether nodes get their module and source line.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs | Several,
        kind: DeviceKind,
        rules: Mapping[str, Any] | None = None,
        *,
        cuts: Cuts | None = None,
        edits: Edits | None = None,
        observer: Callable[[Node, Recorder], None] | None = None,
        locate: bool = True,
    ) -> None:
        self.model, self.inputs, self.kind = model, inputs, kind
        self.rules = builtin_rules() if rules is None else rules
        self.cuts, self.edits = cuts or {}, edits or {}
        self.observer, self.locate = observer, locate
        self.locator = Locator(model)
        self.error: Exception | None = None
        self.recorder: Recorder | None = None

    def run(self) -> Graph | None:
        """Return the recording, or ``None`` and leave what was raised in ``error``."""
        try:
            with ExitStack() as stack:
                stack.enter_context(collector_paused())
                stack.enter_context(quiet_torch(self.model))
                fake = FakeTensorMode(allow_non_fake_inputs=True) if self.kind == "fake" else None
                state = state_of(self.model)
                twins = stack.enter_context(isolated(self.model, self._stand_in(fake), state))
                stack.enter_context(edited(self.edits))
                every = self.inputs if isinstance(self.inputs, Several) else (self.inputs,)
                runs = [pytree.tree_map_only(Tensor, self._input(fake), self._plain(inputs)) for inputs in every]
                recorder = self.recorder = Recorder(self, bool(fake or self.kind == "real"))
                for item in state:
                    recorder.add(twins[id(item.tensor)], item.kind, item.names)  # type: ignore[arg-type]
                names = [pair for inputs in runs for pair in self._input_names(inputs)]
                recorder.inputs = [recorder.add(tensor, "input", (name,)) for name, tensor in names]
                if fake is not None:
                    stack.enter_context(fake)
                stack.enter_context(torch.inference_mode())
                with recorder:
                    outputs = [call(self.model, inputs) for inputs in runs]
                recorder.outputs = [recorder.index_of(tensor) for tensor in tensors_of(outputs)]
            return recorder.graph(type(self.model).__name__)
        except Exception as error:  # noqa: BLE001  whatever a user's forward raises
            self.error = error
            return None

    @staticmethod
    def _plain(inputs: Inputs) -> Any:
        return dict(inputs) if isinstance(inputs, Mapping) else inputs

    def _stand_in(self, fake: FakeTensorMode | None) -> Callable[[str, Tensor], Tensor]:
        def stand_in(name: str, tensor: Tensor) -> Tensor:
            if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
                raise ModelError(f"'{name}' is not initialised yet", hint="run the model once before it is analysed")
            cut = self.cuts.get(name) if name else None
            data = tensor.detach()
            if self.kind == "real":
                for dim, kept in (cut or {}).items():
                    data = data.index_select(dim, torch.from_numpy(kept).to(data.device))
                if not isinstance(tensor, nn.Parameter):
                    data = data.clone()
            else:
                size = list(tensor.shape)
                for dim, kept in (cut or {}).items():
                    size[dim] = len(kept)
                if fake is not None:
                    with fake:
                        data = torch.empty(size, dtype=tensor.dtype, device=tensor.device)
                elif cut or tensor.layout != torch.strided:
                    data = torch.empty(size, dtype=tensor.dtype, device="meta")
                else:
                    data = torch.empty_strided(size, tensor.stride(), dtype=tensor.dtype, device="meta")
            if isinstance(tensor, nn.Parameter):
                return nn.Parameter(data, requires_grad=tensor.requires_grad)
            return data

        return stand_in

    def _input(self, fake: FakeTensorMode | None) -> Callable[[Tensor], Tensor]:
        def convert(tensor: Tensor) -> Tensor:
            if self.kind == "real":
                return tensor.detach().clone()
            if fake is not None:
                return fake.from_tensor(tensor.detach())
            return torch.empty_like(tensor.detach(), device="meta")

        return convert

    def _input_names(self, inputs: Any) -> list[tuple[str, Tensor]]:
        if isinstance(inputs, Tensor):
            inputs = (inputs,)
        if isinstance(inputs, dict):
            tops = list(inputs.items())
        else:
            parameters = list(inspect.signature(self.model.forward).parameters)
            tops = [(parameters[n] if n < len(parameters) else f"input_{n}", value) for n, value in enumerate(inputs)]
        named: list[tuple[str, Tensor]] = []
        for name, value in tops:
            tensors = tensors_of(value)
            named += [(name if len(tensors) == 1 else f"{name}.{n}", tensor) for n, tensor in enumerate(tensors)]
        return named


@dataclass(frozen=True, slots=True)
class _OpInfo:
    """What the recorder needs to know of an operator: its name and arguments, and whether to take it apart."""

    name: str
    defaults: tuple[tuple[str, Any], ...]
    device: int  # position of the device argument, or -1
    decompose: bool


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operator that runs."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare PyTorch its guard against compiling this class: it would import the compiler, which takes seconds."""
        return False

    def __init__(self, attempt: Attempt, keep_devices: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = []
        self.values: list[Value] = []
        self.inputs: list[int] = []
        self.outputs: list[int] = []
        self._attempt = attempt
        self._keep_devices = keep_devices
        self._infos: dict[Any, _OpInfo] = {}
        self._dtypes: dict[torch.dtype, str] = {}
        self._known: dict[int, tuple[Callable[[], Tensor | None], int]] = {}
        self._storages: dict[int, list[int]] = {}
        self._alive: list[Any] = []
        self._foreign: dict[int, tuple[Tensor, Tensor]] = {}
        self.contents: dict[int, Any] = {}
        #: what the operator returned whose node the observer is called with
        self.result: Any = None

    def add(self, tensor: Tensor, kind: ValueKind, names: tuple[str, ...] = ()) -> int:
        """Make a value of ``tensor`` and return its number."""
        index = len(self.values)
        storage = self._storage(tensor)
        peers = self._storages.setdefault(storage, [])
        number = self.values[peers[0]].storage if peers else len(self._storages) - 1
        peers.append(index)
        dtype = tensor.dtype
        name = self._dtypes.get(dtype) or self._dtypes.setdefault(dtype, str(dtype).removeprefix("torch."))
        self.values.append(Value(index, tuple(tensor.shape), name, kind, names, number))
        self._known[id(tensor)] = (weakref.ref(tensor), index)
        if self._attempt.kind != "real":
            self._alive.append(tensor)  # no data behind it; keeps ids and storages from being used again
        elif storage >= 0:
            # lets the data go, but not its address: another tensor there would be taken for a view of this one
            self._alive.append(StorageWeakRef(tensor.untyped_storage()))  # type: ignore[no-untyped-call]
        return index

    def index_of(self, tensor: Tensor) -> int:
        """Return the number of ``tensor``; one that no operator made is a constant, or an alias of what it shares."""
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        for index in reversed(self._storages.get(self._storage(tensor), ())):
            if self.values[index].shape == tuple(tensor.shape):
                self._known[id(tensor)] = (weakref.ref(tensor), index)
                return index
        return self.add(tensor, "constant")

    def graph(self, model_class: str) -> Graph:
        return Graph(
            tuple(self.nodes), tuple(self.values), tuple(self.inputs), tuple(self.outputs),
            self._attempt.kind, model_class, contents=self.contents,
        )  # fmt: skip

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        info = self._infos.get(func)
        if info is None:
            info = self._infos[func] = self._describe(func)
        if info.decompose:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if not self._keep_devices:
            args, kwargs = self._to_meta(info, args, kwargs)
        encoded = {
            name: self._encode(args[n] if n < len(args) else kwargs.get(name, default))
            for n, (name, default) in enumerate(info.defaults)
        }
        result = None if self._keep_devices else quick(func, args, kwargs)
        if result is None:
            result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            outputs: tuple[int, ...] = (self.add(result, "intermediate"),)
        else:
            outputs = tuple(self.add(tensor, "intermediate") for tensor in pytree.tree_leaves(result)
                            if isinstance(tensor, Tensor))  # fmt: skip
        module, source = self._attempt.locator.locate() if self._attempt.locate else ("", None)
        node = Node(len(self.nodes), info.name, encoded, outputs, module, source)
        self.nodes.append(node)
        if self._attempt.observer is not None:
            self.result = result
            self._attempt.observer(node, self)
            self.result = None
        return result

    def _describe(self, func: Any) -> _OpInfo:
        schema = func._schema
        name = str(func)
        composite = func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
        arguments = schema.arguments
        defaults = tuple((argument.name, argument.default_value) for argument in arguments)
        device = next((n for n, argument in enumerate(arguments) if argument.name == "device"), -1)
        return _OpInfo(name, defaults, device, composite and find_rule(self._attempt.rules, name) is None)

    def _to_meta(self, info: _OpInfo, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Send what would be made or moved elsewhere to the meta device."""
        if info.device >= 0:
            has_tensor = any(isinstance(arg, Tensor) for arg in args)
            if info.device < len(args):
                args = (*args[: info.device], torch.device("meta"), *args[info.device + 1 :])
            elif kwargs.get("device") is not None or not has_tensor:
                kwargs = {**kwargs, "device": torch.device("meta")}
        if any(map(_is_foreign, args)) or any(map(_is_foreign, kwargs.values())):
            args, kwargs = pytree.tree_map_only(Tensor, self._twin, (args, kwargs))
        return args, kwargs

    def _twin(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return tensor
        if id(tensor) not in self._foreign:
            twin = torch.empty_like(tensor, device="meta")
            self._foreign[id(tensor)] = (tensor, twin)
            index = self.add(twin, "constant")
            if tensor.numel() <= _SMALL:
                self.contents[index] = tensor.tolist()
        return self._foreign[id(tensor)][1]

    def _encode(self, value: Any) -> Any:
        if type(value) in _LITERALS:
            return value
        if isinstance(value, Tensor):
            return Ref(self.index_of(value))
        if isinstance(value, int | float | str):
            return value
        if isinstance(value, list | tuple):
            return tuple(self._encode(item) for item in value)
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            return str(value).removeprefix("torch.")
        return str(value) if isinstance(value, torch.device) else value

    @staticmethod
    def _storage(tensor: Tensor) -> int:
        try:
            return int(tensor.untyped_storage()._cdata)
        except (NotImplementedError, RuntimeError):  # sparse and the like
            return -id(tensor)


def _is_foreign(value: Any) -> bool:
    if type(value) in _LITERALS:
        return False
    if isinstance(value, Tensor):
        return not value.is_meta
    return isinstance(value, list | tuple) and any(map(_is_foreign, value))
