"""What a model takes and gives, as JSON values, and running a model on meta tensors of that signature.

Here: describing inputs, and the check that a shrunken model still runs and still gives outputs of the same shapes.
The check works on a *shadow*: the same module objects' attributes over meta tensors, which shares nothing with the
user's model that a forward pass could change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from slim_core.graph.quick import QuickShapes
from slim_core.tensors import DTYPE_BYTES
from slim_core.workload import call, tensors_of
from slim_prune.edits import Edits, check_fits
from slim_prune.errors import PlanError
from slim_prune.surgery import set_attributes

_MAX_DEPTH = 64

#: types of most attributes of a module; they hold neither tensors nor modules. Hooks are in ordered dictionaries.
_AS_THEY_ARE = frozenset({bool, int, float, str, type(None), OrderedDict})


def describe(inputs: Any, model: nn.Module) -> Any:
    """Return ``inputs`` (nested tuples, lists and mappings of tensors and plain values) as JSON, tensors as shapes.

    The model's own floating dtype goes with them, so that a plan made in float32 also checks the model in float64.
    Returns ``None`` where something in the inputs is neither tensor nor plain value.
    """
    try:
        return {"inputs": _describe(inputs), "floating": _floating(model)}
    except TypeError:
        return None


def meta_inputs(description: Any, model: nn.Module) -> Any:
    """Return inputs of meta tensors for what :func:`describe` returned, in the floating dtype of ``model``.

    Raises:
        PlanError: the description is malformed.
    """
    match description:
        case {"inputs": inputs, "floating": str() | None as floating}:
            return _made(inputs, {floating: _floating(model)})
    raise PlanError("the plan's input signature is malformed", where="inputs")


def check_description(description: Any) -> None:
    """Check the layout of a description of inputs that comes from a file; ``None`` (there is none) is one.

    Raises:
        PlanError: it is malformed, or nested deeper than any model's inputs are.
    """
    match description:
        case None:
            return
        case {"inputs": inputs, "floating": str() | None as floating, **rest} if not rest:
            if floating is None or floating in DTYPE_BYTES:
                _check(inputs, _MAX_DEPTH)
                return
    raise PlanError("the plan's input signature is malformed", where="inputs")


def _check(description: Any, depth: int) -> None:
    if depth == 0:
        raise PlanError(f"the plan's input signature is nested deeper than {_MAX_DEPTH} levels", where="inputs")
    match description:
        case {"tensor": [*shape], "dtype": str(dtype)} if dtype in DTYPE_BYTES and all(
            type(size) is int and 0 <= size < 2**63 for size in shape
        ):
            return
        case {"tuple": [*items]} | {"list": [*items]}:
            for item in items:
                _check(item, depth - 1)
            return
        case {"mapping": dict(named)}:
            for item in named.values():
                _check(item, depth - 1)
            return
        case {"value": None | bool() | int() | float() | str()}:
            return
    raise PlanError("the plan's input signature is malformed", where="inputs")


def _made(description: Any, dtypes: Mapping[Any, Any]) -> Any:
    match description:
        case {"tensor": [*shape], "dtype": str(dtype)} if dtype in DTYPE_BYTES and all(type(s) is int for s in shape):
            return torch.empty(shape, dtype=getattr(torch, dtypes.get(dtype) or dtype), device="meta")
        case {"tuple": [*items]}:
            return tuple(_made(item, dtypes) for item in items)
        case {"list": [*items]}:
            return [_made(item, dtypes) for item in items]
        case {"mapping": dict(items)}:
            return {str(name): _made(item, dtypes) for name, item in items.items()}
        case {"value": None | bool() | int() | float() | str() as plain}:
            return plain
    raise PlanError("the plan's input signature is malformed", where="inputs")


def shadow(model: nn.Module, edits: Edits) -> nn.Module:
    """Return what ``edits`` would make of ``model``, over meta tensors: same structure, attributes and ties.

    Nothing is deep-copied.

    Raises:
        PlanError: the edits do not fit.
    """
    modules: dict[int, nn.Module] = {}
    tensors: dict[int, Tensor] = {}
    cuts = {id(tensor): cuts for _, tensor, cuts in edits.of(check_fits(edits, model))}

    def tensor(original: Tensor | None) -> Tensor | None:
        if original is None:
            return None
        if id(original) not in tensors:
            shape = list(original.shape)
            for cut in cuts.get(id(original), ()):
                shape[cut.dim] = len(cut.kept)
            empty = torch.empty(shape, dtype=original.dtype, device="meta")
            tensors[id(original)] = (
                nn.Parameter(empty, requires_grad=False) if isinstance(original, nn.Parameter) else empty
            )
        return tensors[id(original)]

    def attribute(value: Any) -> Any:
        """Return what stands for an attribute: plain containers are new ones, and what they hold is of the shadow."""
        if isinstance(value, Tensor):
            return tensor(value)
        if isinstance(value, nn.Module):
            return module(value)
        if type(value) in (list, tuple, set):
            return type(value)(map(attribute, value))
        if type(value) is dict:
            return {name: attribute(item) for name, item in value.items()}
        if type(value) is MethodType and isinstance(value.__self__, nn.Module):
            return MethodType(value.__func__, module(value.__self__))
        return value

    def module(original: nn.Module | None) -> nn.Module | None:
        if original is None:
            return None
        if id(original) not in modules:
            copied = original.__class__.__new__(original.__class__)
            modules[id(original)] = copied
            inside = vars(copied)
            for name, value in vars(original).items():
                inside[name] = value if type(value) in _AS_THEY_ARE else attribute(value)
            inside["_parameters"] = {name: tensor(item) for name, item in original._parameters.items()}
            inside["_buffers"] = {name: tensor(item) for name, item in original._buffers.items()}
            inside["_modules"] = {name: module(item) for name, item in original._modules.items()}
            inside["training"] = False
            inside["_compiled_call_impl"] = None  # after model.compile(): it would call the original
            if "_orig_mod" in inside["_modules"] and "forward" in inside:  # a submodule in torch.compile
                inside["forward"] = inside["_modules"]["_orig_mod"]
        return modules[id(original)]

    copied = module(model)
    assert copied is not None  # noqa: S101  # for the type checker: the model is one
    set_attributes(copied, edits)
    return copied


def check_forward(model: nn.Module, edits: Edits, inputs: Any, outputs: Sequence[Sequence[int]]) -> None:
    """Run the shadow of the pruned model on meta tensors and compare the shapes of its outputs.

    Args:
        model: the model before pruning; it is not touched.
        edits: what to carry out on its shadow.
        inputs: the description of its inputs.
        outputs: the shapes that its output tensors must have.

    Raises:
        PlanError: the pruned model does not run, or gives other shapes.
    """
    pruned = shadow(model, edits)
    try:
        with torch.inference_mode(), QuickShapes():  # type: ignore[no-untyped-call]
            shapes = [list(tensor.shape) for tensor in tensors_of(call(pruned, meta_inputs(inputs, model)))]
    except PlanError:
        raise
    except Exception as error:  # the user's forward may raise anything
        raise PlanError(
            f"the pruned model does not run: {type(error).__name__}: {error}",
            hint="exclude the modules that this line of the model uses, and plan again",
        ) from error
    if shapes != [list(shape) for shape in outputs]:
        raise PlanError(
            f"the pruned model gives outputs of shapes {shapes} instead of {[list(shape) for shape in outputs]}"
        )


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"mapping": {str(name): _describe(item) for name, item in value.items()}}
    if isinstance(value, tuple):
        return {"tuple": [_describe(item) for item in value]}
    if isinstance(value, list):
        return {"list": [_describe(item) for item in value]}
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    raise TypeError(type(value).__name__)


def _floating(model: nn.Module) -> str | None:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return str(parameter.dtype).removeprefix("torch.")
    return None
