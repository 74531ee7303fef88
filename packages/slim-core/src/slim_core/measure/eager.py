"""The backends that come with PyTorch: ``eager`` and ``compile``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from slim_core.errors import MeasureError
from slim_core.measure.backend import Artifact, Session
from slim_core.modes import evaluating
from slim_core.workload import Inputs, call, tensors_of

#: Models of one class that differ in width are variants of one code object to the compiler, which by default gives
#: up (and runs eager, silently) after eight.
_VARIANTS = 256


class EagerBackend:
    """PyTorch, operator by operator."""

    name: ClassVar[str] = "eager"

    def available(self) -> None:
        """Return: PyTorch is always there."""

    def prepare(self, artifact: Artifact, example_inputs: Inputs, *, threads: int | None = None) -> Session:
        """Return a session that runs the model itself, in eval mode for as long as it runs."""
        return TorchSession(artifact.model_for(self.name), threads, "eager")


class CompileBackend:
    """``torch.compile`` with static shapes. Where no kernel can be built the model runs eager, and says so."""

    name: ClassVar[str] = "compile"

    def available(self) -> None:
        """Return: without a C++ compiler sessions run eager and say so."""

    def prepare(self, artifact: Artifact, example_inputs: Inputs, *, threads: int | None = None) -> Session:
        """Return a session of the compiled model. Compiling happens here."""
        model = artifact.model_for(self.name)
        session = TorchSession(model, threads, "compile", torch.compile(model, dynamic=False))
        try:
            session.run(example_inputs)
        except Exception as error:  # noqa: BLE001  whatever the compiler raises: a missing compiler, an unknown operator
            plain = TorchSession(model, threads, "eager")
            plain.run(example_inputs)  # if eager fails too, its error is the one to show
            reason = next(iter(str(error).strip().splitlines()), "")
            plain.info["notes"].append(f"timed without compiling: {type(error).__name__}: {reason}")
            return plain
        return session


class TorchSession(Session):
    """A model that PyTorch runs.

    Args:
        model: the model; its mode is as before after each run.
        threads: threads inside operators, or ``None`` for PyTorch's own setting.
        mode: ``"eager"`` or ``"compile"``.
        function: what to call; the model when left out.
    """

    def __init__(self, model: nn.Module, threads: int | None, mode: str, function: Any = None) -> None:
        if threads is not None and threads < 1:
            raise MeasureError(f"threads must be at least 1, not {threads}")
        self._model, self._function = model, model if function is None else function
        self._threads = threads
        self._device = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
        self.info: dict[str, Any] = {
            "runtime": f"torch {torch.__version__} {mode}",
            "device": str(self._device),
            "threads": torch.get_num_threads() if threads is None else threads,
            "settings": {
                "inference_mode": True,
                "mkldnn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
                "matmul_precision": torch.get_float32_matmul_precision(),
            },
            "notes": [],
        }

    def run(self, inputs: Inputs) -> list[NDArray[Any]]:
        with self.active():
            outputs = call(self._function, self._moved(inputs))
        return [to_numpy(tensor) for tensor in tensors_of(outputs)]

    def bind(self, inputs: Inputs) -> Callable[[], object]:
        moved, function = self._moved(inputs), self._function
        if self._device.type != "cuda":
            return lambda: call(function, moved)

        def synchronized() -> object:
            outputs = call(function, moved)
            torch.cuda.synchronize(self._device)
            return outputs

        return synchronized

    @contextmanager
    def active(self) -> Iterator[None]:
        before = torch.get_num_threads()
        with ExitStack() as stack:
            if self._threads is not None and self._threads != before:
                torch.set_num_threads(self._threads)
                stack.callback(torch.set_num_threads, before)
            stack.enter_context(evaluating(self._model))
            stack.enter_context(torch.inference_mode())
            if self._function is not self._model:
                stack.enter_context(_many_variants())
            yield

    def _moved(self, inputs: Inputs) -> Any:
        return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().to(self._device), _plain(inputs))


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor's values; bfloat16, which numpy lacks, becomes float32."""
    tensor = tensor.detach().cpu()
    result: NDArray[Any] = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return result


def _plain(inputs: Inputs) -> Any:
    return dict(inputs.items()) if hasattr(inputs, "items") else inputs


@contextmanager
def _many_variants() -> Iterator[None]:
    from torch._dynamo import config

    with config.patch(recompile_limit=_VARIANTS, accumulated_recompile_limit=_VARIANTS):
        yield
