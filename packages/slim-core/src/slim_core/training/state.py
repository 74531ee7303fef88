"""The state of a run of ``fit`` on disk: one safetensors file, written atomically after each epoch.

Its single metadata key ``slim_fit`` holds JSON. Nothing in the file names code, and nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from slim_core.errors import ModelError, SlimError
from slim_core.files import atomic_path
from slim_core.training.config import FitConfig

FILE_NAME = "fit-state.safetensors"
KEY = "slim_fit"
VERSION = 1


@dataclass(frozen=True, slots=True)
class SavedState:
    """What is written after an epoch.

    Args:
        identity: what the run is; see :func:`identity_of`.
        epoch: finished epochs.
        step: optimizer steps taken.
        updates: updates of the moving average.
        history: one row per finished epoch.
        stopped: a callback ended the run.
        tensors: all tensors, by ``model/…`` (with buffers outside the state dict),
            ``ema/…``, ``optimizer/<parameter>/<key>``, ``callback/<number>/…``.
    """

    identity: Mapping[str, Any]
    epoch: int
    step: int
    updates: int
    history: Sequence[Mapping[str, float]]
    stopped: bool
    tensors: Mapping[str, Tensor] = field(repr=False)

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors under ``name/``, without that prefix."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def identity_of(
    model: nn.Module, config: FitConfig, seed: int, steps_per_epoch: int | None, callbacks: Sequence[object]
) -> dict[str, Any]:
    """Return what must be equal for a run to be continued: configuration, seed, data length, starting weights."""
    return {
        "config": config.model_dump(mode="json"),
        "seed": seed,
        "steps_per_epoch": steps_per_epoch,
        "callbacks": [type(callback).__name__ for callback in callbacks],
        "model": digest(model_tensors(model)),
    }


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state by name.

    Raises:
        ModelError: it holds something that is not a tensor (``get_extra_state``).
    """
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"the state of the model holds a {type(value).__name__}, which cannot be saved without pickle",
                where=name,
                hint="let get_extra_state return a tensor, or train without a folder",
            )
        found[name] = value.detach()
    return found


def hidden_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that are not in the state dict (``persistent=False``), by name."""
    known = model.state_dict(keep_vars=True)
    return {name: buffer.detach() for name, buffer in model.named_buffers(remove_duplicate=False) if name not in known}


def set_buffer(model: nn.Module, name: str, value: Tensor) -> None:
    """Put ``value`` in the place of a buffer outside the state dict, which may be of another shape or not there."""
    module, _, attribute = name.rpartition(".")
    model.get_submodule(module).register_buffer(attribute, value, persistent=False)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, shapes, dtypes and values."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def write_state(folder: Path, state: SavedState) -> None:
    """Write ``state`` atomically: after a kill the file is the old one or the new one."""
    header = {
        "version": VERSION,
        "identity": state.identity,
        "epoch": state.epoch,
        "step": state.step,
        "updates": state.updates,
        "stopped": state.stopped,
        "history": [{key: _finite(value) for key, value in row.items()} for row in state.history],
    }
    # clones: safetensors takes neither tensors that share memory (tied weights) nor strided ones
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.tensors.items()
    }
    with atomic_path(folder / FILE_NAME) as staging:
        save_file(tensors, staging, {KEY: json.dumps(header, sort_keys=True, allow_nan=False)})


def read_state(folder: Path, identity: Mapping[str, Any]) -> SavedState | None:
    """Return the state in ``folder``, or ``None`` if there is none.

    Raises:
        SlimError: the file is damaged, or belongs to a run with another configuration, model or data.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if header["version"] != VERSION:
            raise SlimError(
                f"the state has version {header['version']}; this slim-core reads {VERSION}",
                where=str(path),
                hint="delete the file to train from the start",
            )
        rows = [{key: math.nan if v is None else float(v) for key, v in row.items()} for row in header["history"]]
        state = SavedState(
            header["identity"],
            int(header["epoch"]),
            int(header["step"]),
            int(header["updates"]),
            [{**row, "epoch": int(row["epoch"])} for row in rows],
            bool(header["stopped"]),
            tensors,
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise SlimError(
            f"the state of an earlier run cannot be read: {error}",
            where=str(path),
            hint="delete the file to train from the start",
        ) from error
    different = _differences(state.identity, identity)
    if different:
        raise SlimError(
            f"the folder holds the state of another run: {'; '.join(different)}",
            where=str(path),
            hint="choose another folder, or delete the file to train from the start",
        )
    return state


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors by ``<parameter number>/<key>``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}/{key}": value
        for number, entries in state.items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimizer its tensors back, each in the memory layout of its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split("/", 1)
        parameter = parameters[int(number)]
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    found = []
    for key, value in here.items():
        other = there.get(key)
        if other == value:
            continue
        if key == "config" and isinstance(other, Mapping):
            changed = [name for name in sorted({*value, *other}) if value.get(name) != other.get(name)]
            found += [f"{name} is {other.get(name)!r} there and {value.get(name)!r} here" for name in changed]
        elif key == "model":
            found.append("its model had other starting weights or shapes")
        else:
            found.append(f"{key} is {other!r} there and {value!r} here")
    return found
