"""``load``: a file into a workload; ``load_into``: a file's tensors into a model that stands already."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slim_core.checkpoint.container import PathLike, located, opened, read_container
from slim_core.checkpoint.examples import put_together
from slim_core.checkpoint.header import Header, header_of
from slim_core.checkpoint.parity import largest_error, outputs_of
from slim_core.checkpoint.rebuild import Factory, assign, builder_of, compare, fill_plain_tensors, rebuild
from slim_core.checkpoint.source import Source
from slim_core.checkpoint.state import plain_model
from slim_core.errors import CheckpointError
from slim_core.registry import Registry
from slim_core.workload import BuilderRef, Transform, Workload


def load(
    path: PathLike,
    *,
    registry: Registry | None = None,
    factory: Factory | None = None,
    verify: bool = True,
    check_parity: bool = False,
) -> Workload:
    """Rebuild a model from a checkpoint.

    The uncompressed model is built on the meta device, the transforms are replayed, names, shapes and dtypes are
    compared with the file's, and only then the weights are read.

    Args:
        path: the file.
        registry: where builder and replayers are looked up; the installed plugins' by default.
        factory: builds the uncompressed model, in place of the registered builder.
        verify: compare each tensor's SHA-256 with the header's. Without it the file is mapped, and must not be
            written to while the model lives (to replace it, as ``save`` does, is fine).
        check_parity: run the model on the stored example, and compare its output with the stored one.

    Returns:
        A workload without task and data; its model is in eval mode, its example inputs are the stored ones.

    Raises:
        CheckpointError: the file is damaged, foreign or hostile, or the rebuilt model does not fit it.
    """
    with located(path), opened(path) as handle:
        header = header_of(read_container(handle))
        source = Source(handle, header, verify)
        lookup = _Lookup(registry)
        base = builder_of(header, lookup, factory)
        extra = source.read(
            name
            for name, record in header.tensors.items()
            if record.role in ("transform", "input") or (check_parity and record.role == "output")
        )
        model = rebuild(header, lookup, base, extra)
        found = compare(header, model)
        tensors = source.state(extra)
        for name, tensor in tensors.items():
            if header.tensors[name].role == "parameter":
                tensors[name] = nn.Parameter(tensor, requires_grad=not header.tensors[name].frozen)
        assign(model, found, tensors)
        fill_plain_tensors(model, base)
        model.eval()
        if check_parity:
            _require_parity(header, model, extra)
        return Workload(
            model=model,
            example_inputs=put_together(header.inputs, extra),
            builder=None if header.builder is None else BuilderRef(header.builder.name, dict(header.builder.kwargs)),
            transforms=tuple(
                Transform(
                    item.kind, item.schema, item.data, {short: extra[name] for short, name in item.tensors.items()}
                )
                for item in header.transforms
            ),
        )


def load_into(path: PathLike, model: nn.Module, *, verify: bool = True) -> Header:
    """Copy a checkpoint's tensors into a model of exactly its names, shapes and dtypes.

    The model's own tensors stay the objects that they are, so that an optimizer keeps its references. Everything is
    read and checked before the first tensor is changed.

    Args:
        path: the file.
        model: the compressed model; transforms are not replayed.
        verify: compare each tensor's SHA-256 with the header's.

    Raises:
        CheckpointError: the file is damaged, foreign or hostile, or the model does not fit it; it is then unchanged.
    """
    with located(path), opened(path) as handle:
        header = header_of(read_container(handle))
        found = compare(header, plain_model(model))
        source = Source(handle, header, verify)
        scales = source.read(name for name, record in header.tensors.items() if record.role == "transform")
        tensors = source.state(scales)
        with torch.no_grad():
            for name, entries in found.items():
                for entry in entries:
                    entry.tensor.copy_(tensors[name])
        return header


def parity_error(path: PathLike, model: nn.Module) -> float:
    """Return how far a model's output for the stored example is from the stored output.

    Returns:
        The largest difference, relative to the largest absolute value of the stored output.

    Raises:
        CheckpointError: the file holds no output, or the model's has another form.
    """
    with located(path), opened(path) as handle:
        header = header_of(read_container(handle))
        names = [name for name, record in header.tensors.items() if record.role in ("input", "output")]
        return _parity_error(header, model, Source(handle, header, True).read(names))


def _parity_error(header: Header, model: nn.Module, tensors: Mapping[str, Tensor]) -> float:
    if header.parity is None:
        raise CheckpointError("the file holds no output to compare with", field="parity")
    try:
        outputs = outputs_of(model, put_together(header.inputs, tensors))
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise CheckpointError(
            f"the model fails on the stored example: {type(error).__name__}: {first}", field="parity"
        ) from error
    return largest_error(header.parity, tensors, outputs)


def _require_parity(header: Header, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    error = _parity_error(header, model, tensors)
    assert header.parity is not None  # noqa: S101 - checked by _parity_error
    if not error <= header.parity.tolerance:
        raise CheckpointError(
            f"the rebuilt model's output differs from the stored one by {error:.3g} of its largest value; "
            f"{header.parity.tolerance:.3g} is tolerated",
            field="parity",
            hint="the builder, a replayer, or torch computes something else than when the file was written",
        )


class _Lookup:
    """The registry, made of the installed plugins when it is first needed and none was passed."""

    def __init__(self, registry: Registry | None) -> None:
        self._registry = registry

    def __call__(self) -> Registry:
        if self._registry is None:
            from slim_core.plugins import load_plugins

            self._registry = load_plugins().registry
        return self._registry
