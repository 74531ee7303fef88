"""The model that a header describes: built on the meta device, transforms replayed, compared with the file's tensors.

Nothing in a file names code: builder and replayers come from the registry, or from the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from slim_core.checkpoint.examples import on_meta
from slim_core.checkpoint.header import Header
from slim_core.checkpoint.state import Entry, named_entries, plain_model
from slim_core.checkpoint.strict_json import shown
from slim_core.errors import CheckpointError, SlimError
from slim_core.registry import Registry
from slim_core.workload import Transform

Factory = Callable[[], nn.Module]
_DRAWS = frozenset({Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_})
_NESTED = 3  # how deep lists, tuples and dicts in module attributes are searched for tensors


def builder_of(header: Header, registry: Callable[[], Registry], factory: Factory | None) -> Factory:
    """Return what builds the uncompressed model.

    Raises:
        CheckpointError: the file names no builder, or one that nobody registered, and no factory was passed.
    """
    if factory is not None:
        return factory
    if header.builder is None:
        raise CheckpointError(
            "the file does not say how to build the uncompressed model",
            field="builder",
            hint="pass factory=…, a function that builds it: load(path, factory=lambda: MyNet())",
        )
    name, kwargs = header.builder.name, dict(header.builder.kwargs)
    build = _lookup(registry(), "models", name, "builder.name")
    return lambda: build(**kwargs)


def rebuild(
    header: Header, registry: Callable[[], Registry], factory: Factory, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """Return the model on the meta device, with every transform replayed.

    Args:
        header: the file's header.
        registry: returns where replayers are looked up.
        factory: builds the uncompressed model.
        tensors: the transforms' tensors, by stored name.

    Raises:
        CheckpointError: building or a replay failed.
    """
    model = _meta(_build(factory))
    for index, item in enumerate(header.transforms):
        where = f"transforms[{index}]"
        replayer = _lookup(registry(), "transforms", item.kind, f"{where}.kind")
        if isinstance(replayer, type):
            replayer = replayer()  # registered as a class, as techniques are
        own = {short: tensors[name] for short, name in item.tensors.items()}
        transform = Transform(item.kind, item.schema, item.data, own)
        try:
            with torch.random.fork_rng(devices=[]):
                model = replayer.replay(model, transform, on_meta(header.inputs))
        except CheckpointError:
            raise
        except Exception as error:
            raise _failed(f"'{item.kind}' cannot be replayed", error, where) from error
        if not isinstance(model, nn.Module):
            raise CheckpointError(f"the replayer of '{item.kind}' returned no module", field=where)
    return model


def compare(header: Header, model: nn.Module) -> dict[str, list[Entry]]:
    """Check that names, roles, shapes and dtypes of the model are the file's; return its entries by stored name.

    Raises:
        CheckpointError: lists what is missing, extra, or different.
    """
    expected = header.state()
    found: dict[str, list[Entry]] = {}
    extra, different = [], []
    seen = set()
    for entry in named_entries(model):
        seen.add(entry.name)
        if entry.name not in expected:
            extra.append(entry.name)
            continue
        stored = expected[entry.name]
        record = header.tensors[stored]
        found.setdefault(stored, []).append(entry)
        mine = (entry.role, str(entry.tensor.dtype).removeprefix("torch."), tuple(entry.tensor.shape))
        if mine != (record.role, record.dtype, record.shape):
            different.append(
                f"{entry.name} is {_text(mine)} in the model, {_text((record.role, record.dtype, record.shape))} "
                "in the file"
            )
    missing = [name for name in expected if name not in seen]
    parts = []
    if missing:
        parts.append(f"the model lacks {_list(missing)}")
    if extra:
        parts.append(f"the file lacks {_list(extra)}")
    if different:
        parts.append("; ".join(different[:3]) + (f"; {len(different) - 3} more differ" if len(different) > 3 else ""))
    if parts:
        raise CheckpointError(
            f"the rebuilt model does not fit the file: {'; '.join(parts)}",
            field=f"tensors.{shown((missing + extra)[0])}" if missing or extra else "tensors",
            hint="build exactly the model that the transforms were made for: same arguments, same dtype, same version",
        )
    return found


def assign(model: nn.Module, found: Mapping[str, list[Entry]], tensors: Mapping[str, Tensor]) -> None:
    """Put tensors in the place of the model's own, as ``load_state_dict(assign=True)`` does; tied names share one."""
    replaced: dict[int, Tensor] = {}
    for stored, entries in found.items():
        tensor = tensors[stored]
        for entry in entries:
            replaced[id(entry.tensor)] = tensor
            setattr(entry.owner, entry.name.rpartition(".")[2], tensor)
    _settle(model, replaced)


def fill_plain_tensors(model: nn.Module, factory: Factory) -> None:
    """Give tensors that are plain attributes, which the meta device left without values, those of a real build.

    Raises:
        CheckpointError: the real build has none of that shape: only a buffer can hold it.
    """
    left = {path: names for path, module in model.named_modules() if (names := _meta_attributes(module))}
    if not left:
        return
    with torch.random.fork_rng(devices=[]):
        twin = plain_model(_call(factory))
    real = dict(twin.named_modules())
    for path, names in left.items():
        module = model.get_submodule(path)
        for name in names:
            mine, other = vars(module)[name], vars(real[path]).get(name) if path in real else None
            if _shapes(mine) != _shapes(other) or other is None or any(item.is_meta for item in _tensors(other, 0)):
                where = f"{path}.{name}" if path else name
                raise CheckpointError(
                    "the module keeps a tensor in a plain attribute, which the file does not hold and which cannot be "
                    "built again",
                    field=f"tensors.{shown(where)}",
                    hint=f'use register_buffer("{name}", …, persistent=False) in {type(module).__name__}',
                )
            object.__setattr__(module, name, other)


def _build(factory: Factory) -> nn.Module:
    """Build on the meta device; a builder that computes with values while it builds is run for real."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"), _NoDraws():
                model = factory()
        except Exception:  # noqa: BLE001 - any operator may refuse the meta device in its own way
            model = _call(factory)
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"the builder returned a {type(model).__name__}, not a module", field="builder")
    return plain_model(model)


class _NoDraws(TorchFunctionMode):
    """Leaves meta tensors as they are where random numbers would be drawn into them.

    They hold no values. PyTorch does it in Python, and loads a thousand modules of its compiler for the first one.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in _DRAWS:
            tensor = args[0] if args else given.get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **given)


def _call(factory: Factory) -> nn.Module:
    try:
        return factory()
    except Exception as error:
        raise _failed("the uncompressed model cannot be built", error, "builder") from error


def _meta(model: nn.Module) -> nn.Module:
    """Move what is not there yet to the meta device, keeping ties and plain attributes."""
    memo: dict[int, Tensor] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is None or tensor.is_meta:
                    continue
                if id(tensor) not in memo:
                    moved = tensor.detach().to("meta")
                    memo[id(tensor)] = (
                        nn.Parameter(moved, requires_grad=tensor.requires_grad)
                        if isinstance(tensor, nn.Parameter)
                        else moved
                    )
                setattr(module, name, memo[id(tensor)])
    return model


def _settle(model: nn.Module, replaced: Mapping[int, Tensor]) -> None:
    """Replace meta tensors that were parameters or buffers also in plain attributes, such as lists of weights."""
    for module in model.modules():
        for name in _meta_attributes(module):
            vars(module)[name] = _replaced(vars(module)[name], replaced, 0)


def _replaced(value: Any, replaced: Mapping[int, Tensor], depth: int) -> Any:
    if isinstance(value, Tensor):
        return replaced.get(id(value), value)
    if depth < _NESTED:
        if type(value) in (list, tuple):
            return type(value)(_replaced(item, replaced, depth + 1) for item in value)
        if type(value) is dict:
            return {key: _replaced(item, replaced, depth + 1) for key, item in value.items()}
    return value


_STORES = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})


def _meta_attributes(module: nn.Module) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if name not in _STORES and any(tensor.is_meta for tensor in _tensors(value, 0))
    ]


def _tensors(value: Any, depth: int) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if depth < _NESTED and type(value) in (list, tuple):
        return [tensor for item in value for tensor in _tensors(item, depth + 1)]
    if depth < _NESTED and type(value) is dict:
        return [tensor for item in value.values() for tensor in _tensors(item, depth + 1)]
    return []


def _shapes(value: Any) -> list[tuple[tuple[int, ...], torch.dtype]]:
    return [(tuple(tensor.shape), tensor.dtype) for tensor in _tensors(value, 0)]


def _lookup(registry: Registry, kind: str, name: str, field: str) -> Any:
    try:
        return registry.get(kind, name)
    except SlimError as error:
        raise CheckpointError(error.what, field=field, hint=error.hint) from error


def _failed(what: str, error: Exception, field: str) -> CheckpointError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    hint = error.hint if isinstance(error, SlimError) else None
    return CheckpointError(f"{what}: {type(error).__name__}: {first}", field=field, hint=hint)


def _text(mine: tuple[str, str, tuple[int, ...]]) -> str:
    return f"a {mine[0]} of {mine[1]} {list(mine[2])}"


def _list(names: list[str]) -> str:
    return ", ".join(shown(name) for name in sorted(names)[:3]) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )
