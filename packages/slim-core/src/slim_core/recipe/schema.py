"""The keys of a recipe, as strict pydantic models. A step's own keys belong to its technique, and are not here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from slim_core.recipe.source import Source

RECIPE_VERSION = 1

_Name = Annotated[str, Field(min_length=1, max_length=200)]


class Block(BaseModel):
    """Base of the recipe's blocks: unknown keys are errors, values are not coerced (whole numbers serve as floats)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class WorkloadSpec(Block):
    """What is compressed, and on which data."""

    model: Annotated[_Name, Field(description="registered name of the model builder, e.g. zoo/mobilenet_v1")]
    kwargs: Annotated[dict[str, JsonValue], Field(description="arguments of the model builder")] = {}
    data: Annotated[_Name, Field(description="registered name of the data set, e.g. digits")]
    data_kwargs: Annotated[dict[str, JsonValue], Field(description="arguments of the data set")] = {}
    task: Annotated[_Name | None, Field(description="registered name of the task; default: the data set's own")] = None
    task_kwargs: Annotated[dict[str, JsonValue], Field(description="arguments of the task")] = {}
    weights: Annotated[
        _Name | None,
        Field(description="a .safetensors file to start from; a relative path starts at the recipe's folder"),
    ] = None


class ExportSpec(Block):
    """The file that a runtime loads."""

    format: Annotated[_Name, Field(description="registered name of the exporter")] = "onnx"
    dynamic_batch: Annotated[bool, Field(description="let the exported model take any batch size")] = True


class MeasureSpec(Block):
    """How latency is measured: original and compressed model, interleaved, on each backend at each batch size."""

    backends: Annotated[list[_Name], Field(min_length=1, description="registered names of the runtimes")]
    batch: Annotated[
        Annotated[int, Field(ge=1)] | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)],
        Field(description="batch size, or a list of batch sizes"),
    ] = 1
    threads: Annotated[int | None, Field(ge=1, description="threads of the runtime; default: the runtime's own")] = None
    rounds: Annotated[int, Field(ge=3, description="timed rounds per model, backend and batch size")] = 30

    @property
    def batches(self) -> tuple[int, ...]:
        return (self.batch,) if isinstance(self.batch, int) else tuple(dict.fromkeys(self.batch))


class CompareSpec(Block):
    """What counts as a good result. Nothing fails on it; the report says whether it was met."""

    metric: Annotated[_Name | None, Field(description="the metric that is judged; default: the task's primary one")] = (
        None
    )
    max_drop: Annotated[
        float | None,
        Field(ge=0, description="how much worse the metric may get, in the metric's own unit (0.01: one point)"),
    ] = None


class Skeleton(Block):
    """A recipe without the parts that training and the techniques define."""

    version: Annotated[Literal[1], Field(description="version of the recipe format")]
    name: Annotated[_Name | None, Field(description="title of the report; default: the file's name")] = None
    description: Annotated[str | None, Field(description="one or two sentences for the report")] = None
    seed: Annotated[int, Field(ge=0, lt=2**32, description="seed of everything random")] = 0
    workload: WorkloadSpec
    train: Annotated[dict[str, Any] | None, Field(description="trains the base model before the first step")] = None
    steps: Annotated[list[dict[str, Any]], Field(description="what is done to the model, in order")] = []
    export: Annotated[ExportSpec | None, Field(description="exports the result and, to compare, the original")] = None
    measure: MeasureSpec | None = None
    compare: CompareSpec = CompareSpec()


@dataclass(frozen=True, slots=True)
class Step:
    """One step: a technique's registered name and its checked configuration.

    Args:
        index: position among the steps, from 1.
        kind: registered name of the technique.
        name: what the report calls it.
        config: an instance of the technique's ``Config``.
    """

    index: int
    kind: str
    name: str
    config: BaseModel


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe whose every key was checked.

    Args:
        name: title.
        description: one or two sentences, or ``None``.
        seed: seed of everything random.
        workload: what is compressed.
        train: a ``FitConfig``, or ``None``.
        steps: what is done to the model.
        export: how it is exported, or ``None``.
        measure: how latency is measured, or ``None``.
        compare: what counts as a good result.
        source: where it was written.
    """

    name: str
    description: str | None
    seed: int
    workload: WorkloadSpec
    train: BaseModel | None
    steps: tuple[Step, ...]
    export: ExportSpec | None
    measure: MeasureSpec | None
    compare: CompareSpec
    source: Source = field(repr=False)

    def resolved(self) -> dict[str, Any]:
        """Return the recipe as JSON values with every default written out."""
        resolved: dict[str, Any] = {"version": RECIPE_VERSION, "name": self.name}
        if self.description:
            resolved["description"] = self.description
        resolved["seed"] = self.seed
        resolved["workload"] = self.workload.model_dump(mode="json")
        if self.train is not None:
            resolved["train"] = self.train.model_dump(mode="json")
        resolved["steps"] = [
            {"kind": step.kind, "name": step.name, **step.config.model_dump(mode="json")} for step in self.steps
        ]
        if self.export is not None:
            resolved["export"] = self.export.model_dump(mode="json")
        if self.measure is not None:
            resolved["measure"] = self.measure.model_dump(mode="json")
        resolved["compare"] = self.compare.model_dump(mode="json")
        return resolved

    def weights_path(self) -> Path | None:
        """Return the path of ``workload.weights``, or ``None``."""
        return None if self.workload.weights is None else self.source.folder / Path(self.workload.weights).expanduser()

    def weights_digest(self) -> str | None:
        """Return ``sha256:…`` of the bytes of ``workload.weights``, or ``None``: what they are, not where."""
        path = self.weights_path()
        if path is None:
            return None
        with open(path, "rb") as handle:
            return f"sha256:{hashlib.file_digest(handle, 'sha256').hexdigest()}"

    def identity(self) -> str:
        """Return a hash of everything that decides which model comes out: the keys and the weights' bytes.

        Titles do not count, nor how the result is exported, measured and judged.
        """
        data = self.resolved()
        for key in ("name", "description", "export", "measure", "compare"):
            data.pop(key, None)
        for step in data["steps"]:
            del step["name"]
        data["workload"]["weights"] = self.weights_digest()
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
