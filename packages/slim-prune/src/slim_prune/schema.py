"""The layout of written plans and of the checkpoint transform, as strict pydantic models: every key is checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, FiniteFloat, JsonValue, ValidationError

from slim_core.technique import StrictConfig
from slim_prune.errors import PlanError

FORMAT = "slim.prune.plan"
#: Written into every plan. 2 (0.1): ``details``. Older ones are read for ever; see :func:`upgraded`.
VERSION = 2

#: A plan with a hundred million kept indices is larger than any model needs, and costs gigabytes to read.
MAX_BYTES = 128 << 20
#: What to do about a file that is none.
NO_PLAN = "it was cut short or is another kind of file; `slim prune plan … -o FILE` writes a plan anew"

#: Indices are int32 in a checkpoint, so that no dimension that is cut is larger.
Index = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Shape = Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(max_length=64)]

SizeData = Count | Annotated[list[Count], Field(min_length=1, max_length=16)]
Name = Annotated[str, Field(max_length=1024)]


class TensorEditData(StrictConfig):
    """One dimension of some tensors that is cut alike; ``kept`` names an index array."""

    dim: Annotated[int, Field(ge=0, le=15)]
    total: Count
    kept: Name
    names: Annotated[list[Name], Field(min_length=1)]


class AttributeEditData(StrictConfig):
    """One size that some modules remember; ``names`` are those of the attributes, with the modules' paths."""

    before: SizeData
    after: SizeData
    names: Annotated[list[Name], Field(min_length=1)]


class EditsData(StrictConfig):
    """What :func:`slim_prune.edits.encode` writes."""

    tensors: list[TensorEditData]
    attributes: list[AttributeEditData]


class GroupData(StrictConfig):
    """One channel group and the units of it that stay."""

    name: Name
    units: Count
    channels_per_unit: Count
    kept: list[Index]


class PlanData(StrictConfig):
    """A whole plan."""

    format: Literal["slim.prune.plan"]
    version: Literal[2]
    model_class: Name
    importance: str
    allocation: str
    budget: dict[str, FiniteFloat | Annotated[int, Field(ge=0, lt=2**63)] | str]
    before: dict[str, FiniteFloat]
    after: dict[str, FiniteFloat]
    groups: list[GroupData]
    shapes: dict[str, Shape]
    ties: list[list[Name]]
    edits: EditsData
    indices: dict[str, list[Index]]
    inputs: Any = None
    outputs: list[Shape] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    details: dict[str, JsonValue]


def upgraded(data: Any, where: str | None = None) -> Any:
    """Return what a plan of any earlier version would be in this one. Checks nothing but format and version.

    Raises:
        PlanError: it is no plan, or a newer version wrote it.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PlanError(
            "this is not a pruning plan that can be read: the key 'format' is missing or another",
            where=where,
            hint=NO_PLAN if where is not None else None,
        )
    version = data.get("version")
    if type(version) is not int or version < 1:
        raise PlanError("this is not a pruning plan that can be read: the key 'version' is no number", where=where)
    if version > VERSION:
        raise PlanError(
            f"the plan has version {version}, and this slim-prune reads versions up to {VERSION}",
            where=where,
            hint="pip install -U slim-prune",
        )
    data = dict(data)
    if version == 1:
        data |= {"version": 2, "details": data.get("details", {})}
    return data


M = TypeVar("M", bound=BaseModel)


def read(model: type[M], data: Any, where: str | None = None) -> M:
    """Validate ``data``; the error names the first key that is wrong.

    Raises:
        PlanError: ``data`` does not have this layout.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise PlanError(
            f"this is not a pruning plan that can be read: {key}: {first['msg']}",
            where=where,
            hint=NO_PLAN if where is not None else None,
        ) from None
