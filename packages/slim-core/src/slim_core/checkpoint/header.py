"""``Header``: everything that a checkpoint says about itself, and its strict reading from JSON. No torch.

Reading checks each field by itself, then that the fields fit each other and the stored tensors: every stored tensor is
described once, everything that is named is stored, and packed tensors have the shapes that their packing makes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from slim_core.checkpoint import limits
from slim_core.checkpoint.container import Container, PathLike, Stored, located, opened, read_container
from slim_core.checkpoint.node import Node
from slim_core.checkpoint.packing import INTEGER_RANGE, Packing, packed_form, scale_shape
from slim_core.checkpoint.schemes import SCHEMES, TRANSFORM, hints_of, packing_of, schemes_of
from slim_core.checkpoint.sparse import MAX_UNFOLD, Sparse, read_sparse, stored_bytes, unfolded, unfolds
from slim_core.checkpoint.strict_json import canonical, parse, shown
from slim_core.errors import CheckpointError
from slim_core.tensors import DTYPE_BYTES, TensorSpec

#: role -> what the names of stored tensors with it begin with
ROLES = {
    "parameter": "",
    "buffer": "",
    "transient": f"{limits.RESERVED}buffer/",  # a buffer that is not in the state dict
    "constant": f"{limits.RESERVED}constant/",  # a plain tensor of an fx graph
    "transform": TRANSFORM,
    "input": f"{limits.RESERVED}input/",
    "output": f"{limits.RESERVED}output/",
}
STATE_ROLES = ("parameter", "buffer", "transient", "constant")
FIELDS = (
    "format_version", "sha256", "producers", "builder", "transforms", "tensors", "ties", "inputs", "parity", "recipe",
    "metrics",
)  # fmt: skip
LAYOUTS = ("channels_last", "channels_last_3d")
#: dtypes of sparse tensors; those but the first may also be packed as integers
FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """What the header says of one stored tensor.

    Args:
        role: a key of :data:`ROLES`.
        dtype, shape: of the tensor in the model; what is stored differs where it is packed.
        sha256: of the stored bytes, in hex.
        frozen: a parameter that takes no gradient.
        layout: memory format of the tensor in the model, where it is not row-major.
        packing: how it was made integers, where it was.
        sparse: how its elements are stored, where not all of them are.
    """

    role: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    frozen: bool = False
    layout: str | None = None
    packing: Packing | None = None
    sparse: Sparse | None = None

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "role": self.role,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "sha256": self.sha256,
        }
        if self.frozen:
            data["frozen"] = True
        if self.layout is not None:
            data["layout"] = self.layout
        if self.packing is not None:
            data["packing"] = self.packing.to_json()
        if self.sparse is not None:
            data["sparse"] = self.sparse.to_json()
        return data

    def written(self) -> dict[str, Any]:
        """Return what the file says of it: neither what its name, nor what its stored tensor or its scheme says."""
        data = self.to_json()
        data.pop("packing", None)
        if self.packing is None and self.sparse is None:
            del data["dtype"], data["shape"]
        if self.role != "buffer":
            del data["role"]
        return data


@dataclass(frozen=True, slots=True)
class BuilderRecord:
    """Registered name and JSON arguments of what builds the uncompressed model."""

    name: str
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TransformRecord:
    """One transform; ``tensors`` maps its short names to stored tensors."""

    kind: str
    schema: int
    data: Mapping[str, Any]
    tensors: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class InputRecord:
    """One tensor of the example inputs: its signature, where it is stored, and its scale where it is stored as int8."""

    spec: TensorSpec
    tensor: str
    scale: float | None


@dataclass(frozen=True, slots=True)
class InputsRecord:
    """The example inputs.

    Args:
        tensors: the tensors in them.
        structure: how they nest: a number is an index into ``tensors``, ``{"value": …}`` a JSON scalar,
            ``{"tuple": […]}``, ``{"list": […]}``, and ``{"mapping": [[key, …], …]}``.
        batch: size of dimension 0 of the stored examples where the specs have ``None``; ``None`` where none has.
    """

    tensors: tuple[InputRecord, ...]
    structure: Any
    batch: int | None


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """One stored output tensor: every ``step``-th element of the flattened output of this dtype and shape."""

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    step: int


@dataclass(frozen=True, slots=True)
class ParityRecord:
    """What the model gave for the example inputs; ``tolerance`` is relative to the largest absolute stored value."""

    outputs: tuple[OutputRecord, ...]
    tolerance: float


@dataclass(frozen=True, slots=True)
class Header:
    """Everything in a checkpoint but the tensors' bytes.

    Args:
        format_version: of the layout; this version of Slim writes 1.
        producers: package -> version, of what wrote the file.
        builder: how to build the uncompressed model, or ``None`` (then loading needs a factory).
        transforms: what was done to it, in order.
        tensors: stored name -> what it is.
        ties: groups of names that are one tensor in the model; stored under the first.
        inputs: signature and example.
        parity: the output for the example, or ``None``.
        recipe: the resolved recipe that made the model, or ``None``.
        metrics: figures of the model, or ``None``; a figure that is not finite is ``None``.
        sha256: of the JSON itself, with these digits as zeros (see :meth:`sealed`).
        stored: the same tensors as they lie in the file.
        data_start, file_bytes: where the tensors begin; the file's size.
    """

    format_version: int
    producers: Mapping[str, str]
    builder: BuilderRecord | None
    transforms: tuple[TransformRecord, ...]
    tensors: Mapping[str, TensorRecord]
    ties: tuple[tuple[str, ...], ...]
    inputs: InputsRecord
    parity: ParityRecord | None
    recipe: Mapping[str, Any] | None
    metrics: Mapping[str, float | None] | None
    sha256: str = limits.PENDING
    stored: Mapping[str, Stored] = field(default_factory=dict)
    data_start: int = 0
    file_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the whole header, each tensor with all that is known of it."""
        return {
            "format_version": self.format_version,
            "sha256": self.sha256,
            "producers": dict(self.producers),
            "builder": None if self.builder is None else {"name": self.builder.name, "kwargs": self.builder.kwargs},
            "transforms": [
                {"kind": item.kind, "schema": item.schema, "data": item.data, "tensors": dict(item.tensors)}
                for item in self.transforms
            ],
            "tensors": {name: record.to_json() for name, record in self.tensors.items()},
            "ties": [list(names) for names in self.ties],
            "inputs": {
                "tensors": [
                    {**item.spec.to_json(), "tensor": item.tensor, "scale": item.scale} for item in self.inputs.tensors
                ],
                "structure": self.inputs.structure,
                "batch": self.inputs.batch,
            },
            "parity": None
            if self.parity is None
            else {
                "outputs": [
                    {"tensor": item.tensor, "dtype": item.dtype, "shape": list(item.shape), "step": item.step}
                    for item in self.parity.outputs
                ],
                "tolerance": self.parity.tolerance,
            },
            "recipe": self.recipe,
            "metrics": None if self.metrics is None else dict(self.metrics),
        }

    def to_text(self) -> str:
        """Return what stands in the file under the key ``slim``: canonical JSON, without what follows from the rest."""
        return canonical({**self.to_json(), "tensors": {name: item.written() for name, item in self.tensors.items()}})

    def sealed(self) -> Header:
        """Return the header with the hash of its own text, in which the hash stands as zeros."""
        text = replace(self, sha256=limits.PENDING).to_text()
        return replace(self, sha256=hashlib.sha256(text.encode("ascii")).hexdigest())

    def state(self) -> dict[str, str]:
        """Return the model's tensors: name in the model (tied names included) -> stored name."""
        found = {}
        alias = {name: names[0] for names in self.ties for name in names[1:]}
        for stored, record in self.tensors.items():
            if record.role in STATE_ROLES:
                found[stored.removeprefix(ROLES[record.role])] = stored
        for name, first in alias.items():
            found[name] = found[first]
        return found

    def packed_by(self, index: int) -> dict[str, TensorRecord]:
        """Return the packed tensors whose scheme stands in the transform with this number."""
        first = {name: names[0] for names in self.ties for name in names}
        latest = {first.get(name, name): number for number, item in enumerate(self.transforms)
                  for name in item.data.get(SCHEMES, {})}  # fmt: skip
        return {name: record for name, record in self.tensors.items() if latest.get(name) == index}


def read_header(path: PathLike) -> Header:
    """Read a checkpoint's header and nothing else.

    Raises:
        CheckpointError: names the field that is wrong.
    """
    with located(path), opened(path) as handle:
        return header_of(read_container(handle))


def header_of(container: Container) -> Header:
    """Return the checked header of a parsed container."""
    root = Node(parse(container.text.encode("utf-8", "surrogatepass"), limits.KEY), limits.KEY)
    if type(root.value) is not dict:
        root.fail("an object was expected")
    _check_version(root)
    fields = root.record(FIELDS)
    _check_seal(container.text, fields["sha256"])
    transforms = tuple(_transform(node) for node in fields["transforms"].items(limits.MAX_TRANSFORMS))
    ties = tuple(_tie(node) for node in fields["ties"].items(limits.MAX_TENSORS))
    packings = _packings(fields["transforms"], transforms, ties)
    hints_of(fields["transforms"], {})
    tensors = {
        name: _tensor(name, node, container.tensors, packings.pop(name, None))
        for name, node in fields["tensors"].mapping(limits.MAX_TENSORS)
    }
    for name, (scheme, _) in packings.items():
        scheme.fail(f"no parameter or buffer '{shown(name)}' is stored")
    header = Header(
        format_version=limits.FORMAT_VERSION,
        producers={name: node.text(limits.VERSION, "a version") for name, node in fields["producers"].mapping(256)},
        builder=_builder(fields["builder"]),
        transforms=transforms,
        tensors=tensors,
        ties=ties,
        inputs=_inputs(fields["inputs"]),
        parity=_parity(fields["parity"]),
        recipe=None if fields["recipe"].value is None else fields["recipe"].anything(dict),
        metrics=None
        if fields["metrics"].value is None
        else {
            name: None if node.value is None else node.number(-1e308, 1e308)
            for name, node in fields["metrics"].mapping(4096)
        },
        sha256=fields["sha256"].value,
        stored=container.tensors,
        data_start=container.data_start,
        file_bytes=container.file_bytes,
    )
    _check_together(header)
    return header


def _check_version(root: Node) -> None:
    if "format_version" not in root.value:
        root.fail("the key 'format_version' is missing")
    version = root.child("format_version").whole(1)
    if version > limits.FORMAT_VERSION:
        root.child("format_version").fail(
            f"the file has format version {version}, this slim-core reads up to {limits.FORMAT_VERSION}",
            hint="pip install -U slim-core",
        )


def _check_seal(text: str, node: Node) -> None:
    digest = node.text(limits.SHA256, "a SHA-256 in hex")
    if digest == limits.PENDING:
        node.fail("the header was never sealed: writing did not finish")
    zeroed = text.replace(digest, limits.PENDING).encode("utf-8", "surrogatepass")
    if text.count(digest) != 1 or hashlib.sha256(zeroed).hexdigest() != digest:
        node.fail("the header is not the one that was written (SHA-256 differs)", hint="copy the file again")


def _packings(
    node: Node, transforms: Sequence[TransformRecord], ties: Iterable[Sequence[str]]
) -> dict[str, tuple[Node, Packing]]:
    """Return stored name -> (its scheme, how that packs it)."""
    first = {name: names[0] for names in ties for name in names}
    return {
        name: (scheme, packing_of(scheme, index, transforms[index].tensors, first))
        for name, (index, scheme) in schemes_of(node, first).items()
    }


def _tensor(name: str, node: Node, stored: Mapping[str, Stored], packed: tuple[Node, Packing] | None) -> TensorRecord:
    if name not in stored:
        node.fail("it is described, but not stored")
    unlike = packed is not None or (type(node.value) is dict and "sparse" in node.value)
    fields = node.record(("sha256", *(("dtype", "shape") if unlike else ())), ("role", "frozen", "layout", "sparse"))
    role = next((role for role, prefix in ROLES.items() if prefix and name.startswith(prefix)), "parameter")
    if "role" in fields:
        if name.startswith(limits.RESERVED):
            fields["role"].fail("its name says it")
        role = fields["role"].choice(("buffer",))
    record = TensorRecord(
        role=role,
        dtype=fields["dtype"].choice(DTYPE_BYTES) if unlike else stored[name].dtype,
        shape=fields["shape"].sizes(limits.MAX_DIMS, limits.MAX_SIZE) if unlike else stored[name].shape,
        sha256=fields["sha256"].text(limits.SHA256, "a SHA-256 in hex"),
        frozen="frozen" in fields,
        layout=fields["layout"].choice(LAYOUTS) if "layout" in fields else None,
        packing=None if packed is None else packed[1],
        sparse=read_sparse(fields["sparse"]) if "sparse" in fields else None,
    )
    if "frozen" in fields and (fields["frozen"].truth() is not True or role != "parameter"):
        fields["frozen"].fail("only parameters have it, and only as true")
    if record.layout is not None and len(record.shape) != (4 if record.layout == "channels_last" else 5):
        fields["layout"].fail(f"a tensor with {len(record.shape)} dimensions cannot have it")
    if packed is not None and role not in ("parameter", "buffer"):
        packed[0].fail("only parameters and buffers of the state dict are packed")
    if record.sparse is not None and role not in ("parameter", "buffer"):
        fields["sparse"].fail("only parameters and buffers of the state dict are sparse")
    return record


def _builder(node: Node) -> BuilderRecord | None:
    if node.value is None:
        return None
    fields = node.record(("name", "kwargs"))
    return BuilderRecord(fields["name"].name(), fields["kwargs"].anything(dict))


def _transform(node: Node) -> TransformRecord:
    fields = node.record(("kind", "schema", "data", "tensors"))
    return TransformRecord(
        kind=fields["kind"].name(),
        schema=fields["schema"].whole(0, 2**31),
        data=fields["data"].anything(dict),
        tensors={name: item.name() for name, item in fields["tensors"].mapping(limits.MAX_TENSORS)},
    )


def _tie(node: Node) -> tuple[str, ...]:
    names = tuple(item.name() for item in node.items(limits.MAX_TENSORS))
    if len(names) < 2 or list(names) != sorted(set(names)):
        node.fail("two or more names in order were expected, each once")
    return names


def _inputs(node: Node) -> InputsRecord:
    fields = node.record(("tensors", "structure", "batch"))
    batch = None if fields["batch"].value is None else fields["batch"].whole(1, 2**31)
    tensors = tuple(_input(item, batch) for item in fields["tensors"].items(4096))
    seen: list[int] = []
    structure = fields["structure"]
    if type(structure.value) is not dict or not structure.value.keys() & {"tuple", "mapping"}:
        structure.fail('{"tuple": […]} or {"mapping": […]} was expected')
    _check_structure(structure, seen)
    if seen != list(range(len(tensors))):
        structure.fail("it does not name each tensor once, in order")
    return InputsRecord(tensors, structure.value, batch)


def _input(node: Node, batch: int | None) -> InputRecord:
    fields = node.record(("name", "shape", "dtype", "role", "tensor", "scale"))
    fields["role"].choice(("input",))
    shape: list[int | None] = []
    for index, item in enumerate(fields["shape"].items(limits.MAX_DIMS)):
        if item.value is None and (index > 0 or batch is None):
            item.fail("only dimension 0 can be of any size, and then 'batch' says the example's")
        shape.append(None if item.value is None else item.whole(0, limits.MAX_SIZE))
    spec = TensorSpec(fields["name"].name(), tuple(shape), fields["dtype"].choice(DTYPE_BYTES), "input")
    scale = None if fields["scale"].value is None else fields["scale"].number(2.0**-64, 2.0**64)
    return InputRecord(spec, fields["tensor"].name(), scale)


def _check_structure(node: Node, seen: list[int]) -> None:
    if type(node.value) is int:
        seen.append(node.whole(0, limits.MAX_TENSORS))
        return
    if type(node.value) is not dict or len(node.value) != 1:
        node.fail("an index, or an object with one key, was expected")
    (key,) = node.value
    inner = node.child(key)
    if key == "value":
        if isinstance(inner.value, dict | list):
            inner.fail("text, a number, true, false or null was expected")
    elif key in ("tuple", "list"):
        for item in inner.items(4096):
            _check_structure(item, seen)
    elif key == "mapping":
        keys = []
        for pair in inner.items(4096):
            members = pair.items(2)
            if len(members) != 2 or type(members[0].value) is not str:
                pair.fail("a key and what stands under it were expected")
            keys.append(members[0].value)
            _check_structure(members[1], seen)
        if len(set(keys)) != len(keys):
            inner.fail("a key stands twice")
    else:
        node.fail("'tuple', 'list', 'mapping' or 'value' was expected")


def _parity(node: Node) -> ParityRecord | None:
    if node.value is None:
        return None
    fields = node.record(("outputs", "tolerance"))
    outputs = []
    for item in fields["outputs"].items(4096):
        members = item.record(("tensor", "dtype", "shape", "step"))
        outputs.append(
            OutputRecord(
                tensor=members["tensor"].name(),
                dtype=members["dtype"].choice(DTYPE_BYTES),
                shape=members["shape"].sizes(limits.MAX_DIMS, limits.MAX_SIZE),
                step=members["step"].whole(1),
            )
        )
    return ParityRecord(tuple(outputs), fields["tolerance"].number(0.0, 1.0))


def _check_together(header: Header) -> None:
    for name in header.stored.keys() - header.tensors.keys():
        raise CheckpointError("it is stored, but not described", field=f"{limits.KEY}.tensors.{name}")
    for name, record in header.tensors.items():
        _check_record(header, name, record)
    used: dict[str, list[str]] = {
        "transform": [stored for item in header.transforms for stored in item.tensors.values()],
        "input": [item.tensor for item in header.inputs.tensors],
        "output": [] if header.parity is None else [item.tensor for item in header.parity.outputs],
    }
    for role, names in used.items():
        present = [name for name, record in header.tensors.items() if record.role == role]
        _check_same(f"{limits.KEY}.tensors", role, names, present)
    for index, item in enumerate(header.transforms):
        for short, stored in item.tensors.items():
            if stored != f"{ROLES['transform']}{index}/{short}":
                raise CheckpointError(
                    f"it must be stored as {ROLES['transform']}{index}/{short}",
                    field=f"{limits.KEY}.transforms[{index}].tensors.{short}",
                )
    for index, example in enumerate(header.inputs.tensors):
        _check_example(header, example, f"{limits.KEY}.inputs.tensors[{index}]")
    for index, output in enumerate([] if header.parity is None else header.parity.outputs):
        record = header.tensors[output.tensor]
        count = -(-math.prod(output.shape) // output.step)
        if record.dtype != output.dtype or record.shape != (count,):
            raise CheckpointError(
                f"dtype, shape and step make {count} values of {output.dtype}; the stored tensor has "
                f"{list(record.shape)} of {record.dtype}",
                field=f"{limits.KEY}.parity.outputs[{index}]",
            )
    _check_ties(header)


def _check_record(header: Header, name: str, record: TensorRecord) -> None:
    where = f"{limits.KEY}.tensors.{name}"
    prefix = ROLES[record.role]
    if not name.startswith(prefix) or (not prefix and name.startswith(limits.RESERVED)) or name == prefix:
        raise CheckpointError(f"its name does not go with the role {record.role}", field=f"{where}.role")
    if record.packing is None and record.sparse is None:
        return
    word, allowed = ("sparse", FLOATS) if record.packing is None else ("packed", FLOATS[1:])
    if record.dtype not in allowed:
        raise CheckpointError(f"a {word} tensor is a float tensor, not {record.dtype}", field=f"{where}.dtype")
    if math.prod(record.shape) * DTYPE_BYTES[record.dtype] > limits.MAX_BYTES:
        raise CheckpointError("it is larger than any tensor that may be stored", field=f"{where}.shape")
    stored = header.stored[name]
    if record.sparse is not None:
        _check_sparse(record, record.sparse, stored, f"{where}.sparse")
    elif record.packing is not None and (stored.dtype, stored.shape) != packed_form(record.packing, record.shape):
        raise CheckpointError("the stored tensor does not have the shape of this packing", field=f"{where}.packing")
    if record.packing is None:
        return
    expected = scale_shape(record.packing, record.shape, f"{where}.packing")
    for key, item in (("scale", record.packing.scale), ("zero_point", record.packing.zero_point)):
        if item is None:
            continue
        other = header.tensors.get(item)
        if other is None or other.role not in ("transform", "parameter", "buffer") or other.packing is not None:
            raise CheckpointError(
                f"'{item}' is neither a tensor of the transform nor an unpacked one of the state dict",
                field=f"{where}.packing.{key}",
            )
        if other.shape not in expected:
            raise CheckpointError(
                f"'{item}' has the shape {list(other.shape)}; {record.packing.granularity} needs {list(expected[0])}",
                field=f"{where}.packing.{key}",
            )
        if other.dtype not in (("float32",) if key == "scale" else INTEGER_RANGE):
            raise CheckpointError(f"'{item}' has the dtype {other.dtype}", field=f"{where}.packing.{key}")


def _check_sparse(record: TensorRecord, sparse: Sparse, stored: Stored, field: str) -> None:
    """Check, before anything is read, that the stored bytes are as many as this form makes, and what they unfold to."""
    size = stored_bytes(sparse, record.shape, element_bits(record.dtype, record.packing), field)
    if (stored.dtype, stored.shape) != ("uint8", (size,)):
        raise CheckpointError(
            f"this form makes {size} bytes; the stored tensor has {list(stored.shape)} of {stored.dtype}", field=field
        )
    if not unfolds(unfolded(sparse, record.shape), 8 * DTYPE_BYTES[record.dtype], size):
        raise CheckpointError(f"it unfolds to more than {MAX_UNFOLD} times its {size} bytes", field=field)


def element_bits(dtype: str, packing: Packing | None) -> int:
    """Return the bits of a stored element: of a float, or of the integer that it became."""
    if packing is None:
        return 8 * DTYPE_BYTES[dtype]
    return 4 if packing.packing == "int4" else 8


def _check_example(header: Header, example: InputRecord, where: str) -> None:
    if example.tensor != f"{ROLES['input']}{example.spec.name}":
        raise CheckpointError(f"it must be stored as {ROLES['input']}{example.spec.name}", field=f"{where}.tensor")
    record = header.tensors[example.tensor]
    shape = tuple(header.inputs.batch if size is None else size for size in example.spec.shape)
    if record.shape != shape:
        raise CheckpointError(f"{list(shape)} is described, {list(record.shape)} is stored", field=f"{where}.shape")
    wanted = "int8" if example.scale is not None else example.spec.dtype
    if example.scale is not None and not example.spec.dtype.startswith(("float", "bfloat")):
        raise CheckpointError("only floating-point inputs have a scale", field=f"{where}.scale")
    if record.dtype != wanted:
        raise CheckpointError(f"{wanted} is described, {record.dtype} is stored", field=f"{where}.dtype")


def _check_ties(header: Header) -> None:
    seen: set[str] = set()
    state = {name.removeprefix(ROLES[record.role]) for name, record in header.tensors.items()
             if record.role in STATE_ROLES}  # fmt: skip
    count = sum(record.role in STATE_ROLES for record in header.tensors.values())
    if len(state) != count:
        raise CheckpointError("a name of the model is stored twice", field=f"{limits.KEY}.tensors")
    for index, names in enumerate(header.ties):
        where = f"{limits.KEY}.ties[{index}]"
        if names[0] not in state:
            raise CheckpointError(f"'{names[0]}' is not stored", field=where)
        for name in names:
            if name in seen or (name != names[0] and name in state) or name.startswith(limits.RESERVED):
                raise CheckpointError(f"'{name}' cannot be tied: it is stored or tied elsewhere", field=where)
            seen.add(name)


def _check_same(where: str, role: str, used: Iterable[str], present: Iterable[str]) -> None:
    used, present = list(used), set(present)
    for name in used:
        if name not in present:
            raise CheckpointError(f"it is named as {role}, but no tensor of that role is stored under it",
                                  field=f"{where}.{name}")  # fmt: skip
    if len(set(used)) != len(used):
        raise CheckpointError(f"a tensor of the role {role} is named twice", field=where)
    for name in present - set(used):
        raise CheckpointError(f"it has the role {role}, but nothing names it", field=f"{where}.{name}")
