"""``save``: a workload into one file. Streams tensor by tensor, so that the memory it takes is that of one tensor."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from slim_core.checkpoint import limits
from slim_core.checkpoint.container import Container, PathLike, Stored, encode_header, lay_out
from slim_core.checkpoint.examples import dtype_name, record_of, take_apart, values_for
from slim_core.checkpoint.header import (
    FLOATS,
    ROLES,
    BuilderRecord,
    Header,
    InputsRecord,
    ParityRecord,
    TensorRecord,
    TransformRecord,
    element_bits,
    header_of,
)
from slim_core.checkpoint.node import Node
from slim_core.checkpoint.packing import packed_form, scale_shape
from slim_core.checkpoint.parity import choose, record_outputs
from slim_core.checkpoint.quantized import to_integers
from slim_core.checkpoint.schemes import hints_of, packing_of, schemes_of
from slim_core.checkpoint.sparse import Sparse, stored_bytes
from slim_core.checkpoint.sparse_tensors import sparse_form, to_sparse
from slim_core.checkpoint.state import Entry, plain_model, state_of
from slim_core.checkpoint.strict_json import plain, shown
from slim_core.errors import CheckpointError
from slim_core.files import atomic_path, require_folder
from slim_core.registry import KINDS
from slim_core.workload import Transform, Workload

_CHUNK = 2**22


@dataclass(slots=True)
class _Parts:
    """What goes into the file: records, and for each stored tensor how to make its bytes."""

    records: dict[str, TensorRecord] = field(default_factory=dict)
    forms: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    make: dict[str, Callable[[], Tensor]] = field(default_factory=dict)

    def add(self, name: str, role: str, tensor: Tensor, **more: Any) -> None:
        """Add a tensor that is stored as it is."""
        dtype, shape = dtype_name(tensor, f"tensors.{name}"), tuple(tensor.shape)
        self.records[name] = TensorRecord(role, dtype, shape, limits.PENDING, **more)
        self.forms[name] = dtype, shape
        self.make[name] = lambda: tensor


def save(
    workload: Workload,
    path: PathLike,
    *,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    parity: bool = True,
    producers: Mapping[str, str] | None = None,
) -> Header:
    """Write a workload's model, and how to rebuild it, to one file; atomically.

    The same workload gives the same bytes, and so does ``save(load(path))`` with the header's recipe, metrics and
    producers. A path that is a symbolic link stays one; the file that it points to is replaced.

    Args:
        workload: model, example inputs, builder and transforms are written; task and data are not.
        path: the file, usually ``….safetensors``; its folder must be there.
        recipe: the resolved recipe that made the model, as JSON values.
        metrics: figures of the model; what is not finite is written as null.
        parity: run the model on a small example, and store the output for ``load(check_parity=True)``.
        producers: package -> version to record in place of the installed ones; for writing a file again.

    Raises:
        CheckpointError: something in the workload cannot be stored (a name, a dtype, a value that is not JSON, weights
            that are not on the grid of their quantization scheme), the model fails on its example inputs, or the file
            cannot be written. A file that was there is then as it was.
    """
    model = plain_model(workload.model)
    entries, ties = state_of(model)
    parts = _Parts()
    transforms = [_transform(item, index, parts) for index, item in enumerate(workload.transforms)]
    first = {name: names[0] for names in ties for name in names}
    node = Node([{"data": item.data} for item in transforms], "transforms")
    schemes, hints = schemes_of(node, first), hints_of(node, first)
    known = _companions(entries, workload.transforms)
    for entry in entries:
        if entry.name in schemes:
            _add_packed(entry, *schemes[entry.name], transforms, first, known, parts)
        else:
            parts.add(f"{ROLES[entry.role]}{entry.name}", entry.role, entry.tensor, **_more(entry))
        if entry.name in hints and entry.role in ("parameter", "buffer"):
            _try_sparse(entry, hints[entry.name], parts)
    left = schemes.keys() - {entry.name for entry in entries}
    if left:
        name = min(left)
        raise CheckpointError(
            f"the transform has a scheme for '{shown(name)}', which is no parameter of the model",
            field=f"transforms[{schemes[name][0]}].data.schemes",
        )
    inputs, outputs = _examples(workload, model, parts, parity, quantized=bool(schemes))
    header = Header(
        format_version=limits.FORMAT_VERSION,
        producers=dict(producers) if producers is not None else _producers(workload),
        builder=None
        if workload.builder is None
        else BuilderRecord(workload.builder.name, plain(workload.builder.kwargs, "builder.kwargs")),
        transforms=tuple(transforms),
        tensors=parts.records,
        ties=ties,
        inputs=inputs,
        parity=outputs,
        recipe=None if recipe is None else plain(recipe, "recipe"),
        metrics=None if metrics is None else {name: _figure(value, name) for name, value in metrics.items()},
    )
    return _write(header, parts, path)


def _write(header: Header, parts: _Parts, path: PathLike) -> Header:
    layout = lay_out(parts.forms)
    header = replace(header, tensors={name: header.tensors[name] for name in sorted(header.tensors)})
    head = encode_header(header.to_text(), layout)
    size = max((stored.stop for stored in layout.values()), default=0)
    # What would be refused when it is read is refused here, before anything is written.
    header_of(Container(_checked_text(header.sealed()), layout, len(head), len(head) + size))
    if len(head) - 8 > limits.MAX_CONTAINER_HEADER:
        raise CheckpointError(f"the header would have {len(head)} bytes, more than may be read", field="header")
    try:
        target = os.path.realpath(path)
        require_folder(target, CheckpointError)
        with atomic_path(target) as staging, open(staging, "wb") as handle:
            handle.write(head)
            hashes = {name: _stream(parts.make.pop(name)(), stored, handle) for name, stored in layout.items()}
            header = replace(
                header,
                tensors={name: replace(record, sha256=hashes[name]) for name, record in header.tensors.items()},
                stored=layout,
                data_start=len(head),
                file_bytes=len(head) + size,
            ).sealed()
            handle.seek(0)
            handle.write(encode_header(header.to_text(), layout))  # as long as before: only the hashes changed
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the file cannot be written: {error.strerror or error}" if isinstance(error, OSError) else str(error),
            where=shown(str(path), 400),
        ) from error
    return header


def _stream(tensor: Tensor, stored: Stored, handle: Any) -> str:
    flat = tensor.detach().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest = hashlib.sha256()
    data = memoryview(flat.numpy())  # type: ignore[arg-type]
    assert len(data) == stored.nbytes  # noqa: S101
    for start in range(0, len(data), _CHUNK):
        digest.update(data[start : start + _CHUNK])
        handle.write(data[start : start + _CHUNK])
    return digest.hexdigest()


def _checked_text(header: Header) -> str:
    text = header.to_text()
    if len(text) > limits.MAX_JSON:
        raise CheckpointError(f"the header would have {len(text)} characters, more than may be read", field="header")
    return text


def _add_packed(
    entry: Entry, index: int, scheme: Node, transforms: Sequence[TransformRecord], first: Mapping[str, str],
    known: Mapping[str, Tensor], parts: _Parts,
) -> None:  # fmt: skip
    if entry.role not in ("parameter", "buffer"):
        scheme.fail("only parameters and buffers of the state dict are packed")
    tensor, shape = entry.tensor, tuple(entry.tensor.shape)
    packing = packing_of(scheme, index, transforms[index].tensors, first)
    expected = scale_shape(packing, shape, scheme.path)
    scale = _companion(scheme, "scale", packing.scale, known, expected)
    zero = None
    if packing.zero_point is not None:
        zero = _companion(scheme, "zero_point", packing.zero_point, known, expected)
    dtype = dtype_name(tensor, f"tensors.{entry.name}")
    if dtype not in ("float32", "float16", "bfloat16"):
        scheme.fail(f"a packed tensor is a float tensor, not {dtype}")
    # Checked now, so that nothing is written when a value is off the grid; a quarter of the memory is kept.
    integers = to_integers(tensor.detach().cpu().contiguous(), packing, scale, zero, entry.name)
    parts.records[entry.name] = TensorRecord(entry.role, dtype, shape, limits.PENDING, packing=packing, **_more(entry))
    parts.forms[entry.name] = packed_form(packing, shape)
    parts.make[entry.name] = lambda: integers


def _try_sparse(entry: Entry, hint: Sparse | None, parts: _Parts) -> None:
    """Store the tensor sparse where that takes fewer bytes. Counted now, packed when it is written."""
    record, make, shape = parts.records[entry.name], parts.make[entry.name], tuple(entry.tensor.shape)
    if record.dtype not in FLOATS:
        return

    def stored() -> Tensor:
        return make().detach().cpu().contiguous()

    sparse = sparse_form(stored(), record.packing, shape, hint)
    if sparse is None:
        return
    size = stored_bytes(sparse, shape, element_bits(record.dtype, record.packing), f"tensors.{entry.name}")
    parts.records[entry.name] = replace(record, sparse=sparse)
    parts.forms[entry.name] = "uint8", (size,)
    parts.make[entry.name] = lambda: to_sparse(stored(), record.packing, shape, sparse)


def _more(entry: Entry) -> dict[str, Any]:
    return {"frozen": entry.frozen, "layout": _layout(entry.tensor)}


def _layout(tensor: Tensor) -> str | None:
    if tensor.is_contiguous():
        return None
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return "channels_last"
    if tensor.dim() == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d):
        return "channels_last_3d"
    return None


def _transform(item: Transform, index: int, parts: _Parts) -> TransformRecord:
    where = f"transforms[{index}]"
    names = {}
    for short, tensor in item.tensors.items():
        stored = f"{ROLES['transform']}{index}/{short}"
        if not isinstance(short, str) or not limits.NAME.match(stored):
            raise CheckpointError(f"'{shown(str(short))}' cannot be a tensor's name", field=f"{where}.tensors")
        parts.add(stored, "transform", tensor.detach())
        names[short] = stored
    return TransformRecord(item.kind, item.schema, plain(item.data, f"{where}.data"), names)


def _companions(entries: Sequence[Entry], transforms: Sequence[Transform]) -> dict[str, Tensor]:
    """Return stored name -> tensor, of all that may be a scale or zero point."""
    found = {entry.name: entry.tensor for entry in entries if entry.role in ("parameter", "buffer")}
    for index, item in enumerate(transforms):
        found |= {f"{ROLES['transform']}{index}/{short}": tensor for short, tensor in item.tensors.items()}
    return found


def _companion(
    scheme: Node, key: str, name: str, known: Mapping[str, Tensor], shapes: tuple[tuple[int, ...], ...]
) -> Tensor:
    node = scheme.child(key)
    if name not in known:
        node.fail(f"neither the transform nor the state dict has a tensor '{shown(name)}'")
    tensor = known[name].detach().cpu()
    if tuple(tensor.shape) not in shapes:
        node.fail(f"its shape is {list(tensor.shape)}; {list(shapes[0])} was expected")
    return tensor


def _examples(
    workload: Workload, model: nn.Module, parts: _Parts, parity: bool, *, quantized: bool
) -> tuple[InputsRecord, ParityRecord | None]:
    example = take_apart(workload.example_inputs)
    outputs: ParityRecord | None = None
    if parity:
        size, values, found = choose(model, example)
        quantized = quantized or any(item.kind.startswith("quant.") for item in workload.transforms)
        outputs, stored = record_outputs(found, quantized=quantized)
        for name, tensor in stored.items():
            parts.add(name, "output", tensor)
    else:
        size = example.sizes()[0]
        values = values_for(example, size)
    record = record_of(example, values, size)
    for item, tensor in zip(record.tensors, values.stored, strict=True):
        parts.add(item.tensor, "input", tensor)
    return record, outputs


def _producers(workload: Workload) -> dict[str, str]:
    names = {"slim-core", "torch"}
    names |= {package for item in workload.transforms for prefix, package in KINDS["transforms"][1].items()
              if item.kind.startswith(prefix)}  # fmt: skip
    if workload.builder is not None:
        names |= {package for prefix, package in KINDS["models"][1].items() if workload.builder.name.startswith(prefix)}
    found = {}
    for name in sorted(names):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _figure(value: Any, name: str) -> float | int | None:
    if value is None:
        return None
    try:
        number = value if isinstance(value, int) and not isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        raise CheckpointError(f"a number was expected, not {shown(repr(value))}", field=f"metrics.{name}") from None
    return number if abs(number) <= 1e308 else None
