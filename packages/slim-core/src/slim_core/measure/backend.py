"""What a runtime must offer to be measured: ``Backend`` prepares an ``Artifact`` into a ``Session``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from numpy.typing import NDArray
from torch import nn

from slim_core.errors import MeasureError
from slim_core.workload import Inputs


@dataclass(frozen=True, slots=True, eq=False)
class Artifact:
    """What is measured: a model, an exported file of it, or both.

    Args:
        model: the PyTorch model. With it, every session is checked against eager PyTorch before it is timed.
        onnx: path of the exported file, for runtimes that read ONNX.
        name: what messages and tables call it.
        quantized: whether it rounds to integers inside, so that agreement is reported and not demanded; ``None``
            looks for quantization in the model.
    """

    model: nn.Module | None = None
    onnx: Path | None = None
    name: str = "model"
    quantized: bool | None = None

    def model_for(self, backend: str) -> nn.Module:
        """Return the model.

        Raises:
            MeasureError: there is none.
        """
        if self.model is None:
            raise MeasureError(
                f"backend '{backend}' runs PyTorch models, and '{self.name}' is only a file",
                hint="give the model: Artifact(model=...)",
            )
        return self.model

    def onnx_for(self, backend: str) -> Path:
        """Return the ONNX file.

        Raises:
            MeasureError: there is none.
        """
        if self.onnx is None:
            raise MeasureError(
                f"backend '{backend}' runs ONNX files, and '{self.name}' has none",
                hint="export it first with slim_core.export.to_onnx, and give the file: Artifact(onnx=...)",
            )
        if not Path(self.onnx).is_file():
            raise MeasureError(f"there is no file {self.onnx}", where=f"artifact '{self.name}'")
        return Path(self.onnx)


class Session(ABC):
    """A model that is ready to run on a runtime.

    Attributes:
        info: JSON values that decide the speed. Always there: ``"runtime"`` (name and version), ``"device"``,
            ``"threads"`` (or ``None`` when unknown). Where they apply: ``"settings"`` (mapping), ``"notes"`` (list of
            lines for the reader of the figures).
    """

    info: Mapping[str, Any]

    @abstractmethod
    def run(self, inputs: Inputs) -> list[NDArray[Any]]:
        """Run once and return every output, in order, as numpy arrays."""

    def bind(self, inputs: Inputs) -> Callable[[], object]:
        """Return a call that runs on ``inputs`` once and returns when the result is there: this is what is timed.

        Override it to convert the inputs beforehand; as it stands conversion is timed too.
        """
        return lambda: self.run(inputs)

    def active(self) -> AbstractContextManager[object]:
        """Return a context that the timed calls run in: what is set for the whole process, such as thread counts."""
        return nullcontext()

    def close(self) -> None:  # noqa: B027  most sessions own nothing
        """Free what the session holds."""


@runtime_checkable
class Backend(Protocol):
    """A runtime. Registered as a class under its name; an instance is made without arguments."""

    name: ClassVar[str]

    def available(self) -> None:
        """Return if the runtime can be used here.

        Raises:
            MissingExtraError: it is not installed; names the ``pip install`` that brings it.
        """

    def prepare(self, artifact: Artifact, example_inputs: Inputs, *, threads: int | None = None) -> Session:
        """Return a session for inputs like ``example_inputs``.

        Args:
            artifact: what to run; it is not changed.
            example_inputs: inputs of the size that will be timed.
            threads: threads of the runtime; ``None`` leaves its own default.

        Raises:
            MissingExtraError: the runtime is not installed.
            MeasureError: the artifact lacks what the runtime needs, or the runtime refuses it.
        """
