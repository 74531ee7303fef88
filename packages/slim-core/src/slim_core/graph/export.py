"""``torch.export`` -> a trainable ``fx.GraphModule``, for those who must rewrite the computation (quantization, ONNX).

What only needs to know the computation uses ``record`` instead: it accepts every model whose forward runs. Nothing
here decomposes operators: a convolution stays ``aten.conv2d``, a batch norm ``aten.batch_norm``.
"""

from __future__ import annotations

import copy as copying
import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from slim_core.errors import ModelError
from slim_core.graph.isolate import FORWARD_LOGGERS, require_ready
from slim_core.modes import evaluating
from slim_core.workload import Inputs, call

aten = torch.ops.aten

#: operator -> position of its ``training`` argument, for what behaves differently in training
DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default,
            aten.feature_alpha_dropout.default)  # fmt: skip
BATCH_NORM = aten.batch_norm.default
INSTANCE_NORM = aten.instance_norm.default


class ExportedModel(fx.GraphModule):
    """An exported model that trains and copies like any module.

    Unlike the plain ``GraphModule`` of ``torch.export``: ``train()`` and ``eval()`` work, and ``copy.deepcopy`` keeps
    parameters and buffers that the graph does not use (``num_batches_tracked``), hooks and ties.
    """

    def train(self, mode: bool = True) -> ExportedModel:
        """Switch batch norm and dropout. What else a forward asked ``self.training`` for stays as it was exported.

        Raises:
            ModelError: a batch norm averages cumulatively (``momentum=None``), which an exported graph cannot do.
        """
        if mode and self.meta.get("cumulative"):
            raise ModelError(
                "an exported graph cannot train a batch norm that averages cumulatively (momentum=None)",
                where=", ".join(self.meta["cumulative"]),
                hint="set a momentum on these modules before exporting",
            )
        changed = False
        for node in self.graph.nodes:
            position = _training_position(node)
            if position is not None and node.args[position] != mode:
                node.args = (*node.args[:position], mode, *node.args[position + 1 :])
                changed = True
        if changed:
            self.recompile()
        self.training = mode
        for module in self.children():
            module.train(mode)
        return self

    def eval(self) -> ExportedModel:
        return self.train(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> ExportedModel:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, from copying its tree specifications
            return _assemble(copying.deepcopy(self.__dict__, memo), memo, id(self), type(self).__name__)


def export_graph(
    model: nn.Module, example_inputs: Inputs, *, dynamic_batch: bool = True, copy: bool = True
) -> ExportedModel:
    """Export ``model`` to a trainable graph with the same state-dict names. The model is left as it was.

    The graph is exported in eval mode; in-place operators are made functional where no view is involved.

    Args:
        model: any model that ``torch.export`` accepts. An :class:`ExportedModel` is copied.
        example_inputs: positional inputs (batch first) or keyword inputs.
        dynamic_batch: accept any batch size. Dimension 0 of the tensors that share the first tensor's dimension 0.
        copy: give the graph parameters of its own; otherwise it shares the model's.

    Raises:
        ModelError: the forward fails on the example inputs, or ``torch.export`` refuses the model: names the
            construct and the user's line.
    """
    if isinstance(model, ExportedModel):
        return copying.deepcopy(model) if copy else model
    program = export_program(model, example_inputs, dynamic_batch=dynamic_batch)
    graph_module = program.module(check_guards=False)
    if not isinstance(graph_module, fx.GraphModule):
        raise ModelError(f"torch.export returned a {type(graph_module).__name__} for {type(model).__name__}")
    attributes = dict(graph_module.__dict__)
    exported = _assemble(attributes, {}, 0, type(model).__name__)
    if copy:
        _own_tensors(exported)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        exported.get_parameter(name).requires_grad_(parameter.requires_grad)
    make_functional(exported)
    exported.meta["cumulative"] = tuple(
        name for name, module in model.named_modules() if _averages_cumulatively(module)
    )
    exported.training = False
    return exported.train(False)


def export_program(model: nn.Module, example_inputs: Inputs, *, dynamic_batch: bool = True) -> ExportedProgram:
    """Run ``torch.export`` on ``model`` in eval mode, with errors that a user can act on.

    Args:
        model: what is exported; its mode is put back.
        example_inputs: the inputs that its forward is traced with.
        dynamic_batch: leave the first dimension of the inputs open.

    Raises:
        ModelError: the model cannot be exported: its forward fails, branches on values, or needs another batch size.
    """
    require_ready(model)
    args, kwargs = _split(example_inputs)
    shapes: ShapesCollection | None = None
    if dynamic_batch:
        (args, kwargs), shapes = _dynamic(args, kwargs)
    with evaluating(model), quiet("torch.fx.experimental.symbolic_shapes", *FORWARD_LOGGERS):
        try:
            return torch.export.export(model, args, kwargs, dynamic_shapes=cast(Any, shapes), strict=False)
        except Exception as error:
            raise _explain(model, example_inputs, error, dynamic_batch) from error


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Keep torch's progress lines, warnings, tracebacks and dumps of graphs off the terminal while the block runs."""
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in loggers]
    for logger, _ in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def make_functional(graph_module: fx.GraphModule) -> tuple[str, ...]:
    """Replace in-place operators by functional ones where no view of the changed tensor is in play.

    Returns:
        The names of the nodes that stay in place.
    """
    left: list[str] = []
    order = {node: position for position, node in enumerate(graph_module.graph.nodes)}
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function" or not _in_place(node.target):
            continue
        changed, functional = node.args[0], _functional(node.target)
        if functional is None or not _owns_storage(changed) or any(_returns_view(user) for user in changed.users):
            left.append(node.name)
            continue
        node.target = functional
        for user in [user for user in changed.users if order[user] > order[node]]:
            user.replace_input_with(changed, node)
    graph_module.recompile()
    return tuple(left)


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """Return a deep copy of ``graph``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, from copying its tree specifications
        return copying.deepcopy(graph)


def user_line(error: BaseException) -> str | None:
    """Return ``file:line: text`` of the innermost frame outside torch and Slim, or ``None``."""
    inside = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    found: str | None = None
    seen: BaseException | None = error
    while seen is not None and found is None:
        for frame in traceback.extract_tb(seen.__traceback__):
            if not frame.filename.startswith((*inside, "<")):
                found = f"{frame.filename}:{frame.lineno}: {frame.line}"
        seen = seen.__cause__ or seen.__context__
    return found


def _averages_cumulatively(module: nn.Module) -> bool:
    norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return norm and getattr(module, "momentum", 0.0) is None and bool(module.track_running_stats)


def _assemble(attributes: dict[str, Any], memo: dict[int, Any], key: int, name: str) -> ExportedModel:
    exported = ExportedModel.__new__(ExportedModel)
    memo[key] = exported
    exported.__dict__.update(attributes)
    type(exported).__name__ = name
    modules = exported.__dict__["_modules"]
    modules.pop("_guards_fn", None)
    exported.__dict__.pop("train", None)  # torch.export puts functions that raise on the instance
    exported.__dict__.pop("eval", None)
    exported.graph = exported.__dict__["_graph"]
    return exported


def _training_position(node: fx.Node) -> int | None:
    if node.op != "call_function":
        return None
    if node.target == BATCH_NORM:
        return 5 if node.args[3] is not None else None  # without running statistics it always uses the batch's
    return 2 if node.target in DROPOUTS else None


def _own_tensors(module: nn.Module) -> None:
    memo: dict[int, Tensor] = {}
    for owner in module.modules():
        for store in (owner._parameters, owner._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                if id(tensor) not in memo:
                    fresh = tensor.detach().clone()
                    memo[id(tensor)] = nn.Parameter(fresh) if isinstance(tensor, nn.Parameter) else fresh
                store[name] = memo[id(tensor)]  # type: ignore[assignment]


def _split(example_inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)), {}


def _dynamic(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, dict[str, Any]], ShapesCollection]:
    """Give every batch dimension a symbol. A batch of one is doubled: torch.export would treat one as a constant."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    batch = next((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), None)
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    ready = []
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == batch:
            leaf = torch.cat([leaf, leaf]) if batch == 1 else leaf.view_as(leaf)  # a tensor object of its own
            shapes[leaf] = {0: Dim.DYNAMIC}
        ready.append(leaf)
    return pytree.tree_unflatten(ready, spec), shapes


def _in_place(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and bool(target._schema.arguments) and (
        (alias := target._schema.arguments[0].alias_info) is not None and alias.is_write
    )  # fmt: skip


def _functional(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    return getattr(packet, target._overloadname, None) if packet is not None else None


def _owns_storage(value: Any) -> bool:
    if not isinstance(value, fx.Node) or value.op != "call_function":
        return False
    return not _in_place(value.target) and not _returns_view(value)  # what is still in place here stays in place


def _returns_view(node: fx.Node) -> bool:
    if node.op == "output":
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return True  # getitem and the like: not known
    return not _in_place(node.target) and any(result.alias_info is not None for result in node.target._schema.returns)


def _explain(model: nn.Module, example_inputs: Inputs, error: Exception, dynamic_batch: bool) -> ModelError:
    name = type(model).__name__
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            call(model, example_inputs)
    except Exception as own:  # noqa: BLE001 - the export failed because the forward does
        return _forward_failed(name, own)
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = f"{type(error).__name__} {error}"
    if "DataDependent" in text or "data-dependent" in text:
        what = f"torch.export refuses {name}: its control flow depends on the values of tensors"
        hint = "replace the Python condition by torch.where or torch.cond, or take it out of forward"
    elif dynamic_batch and ("onstraint" in text or "pecializ" in text):
        what = f"torch.export refuses {name}: its forward fixes the batch size ({first})"
        hint = "use -1 or x.shape[0] in place of the literal, or export with dynamic_batch=False"
    else:
        what = f"torch.export refuses {name}: {type(error).__name__}: {first}"
        hint = "rewrite this construct with tensor operators; a model that is not exported can still be pruned"
    return ModelError(what, where=user_line(error), hint=hint)


def _forward_failed(name: str, error: Exception) -> ModelError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return ModelError(
        f"the forward of {name} fails on its example inputs: {type(error).__name__}: {first}",
        where=user_line(error),
        hint="check shapes, dtypes and names of example_inputs",
    )
