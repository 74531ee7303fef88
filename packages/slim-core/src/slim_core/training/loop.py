"""``fit``: the loop itself. What it is made of lives beside: schedule, optimizers, average, state, devices."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slim_core.data import batch_size, begin_epoch, check_reiterable, generators_of, length, to_device
from slim_core.errors import DataError, ModelError, SlimError
from slim_core.progress import Progress, SilentProgress, Track
from slim_core.technique import Run
from slim_core.training.callbacks import Callback, FitState
from slim_core.training.config import FitConfig
from slim_core.training.devices import Devices, choose_devices
from slim_core.training.ema import Ema
from slim_core.training.evaluate import device_of, evaluate, evaluating, kept_modes, set_mode
from slim_core.training.mixup import mixup_batch
from slim_core.training.optim import build_optimizer
from slim_core.training.rng import kept_generators, seed_epoch
from slim_core.training.schedule import lr_scale
from slim_core.training.state import (
    SavedState,
    hidden_buffers,
    identity_of,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    read_state,
    set_buffer,
    write_state,
)
from slim_core.workload import DataSource, Task, Workload, call, tensors_of

#: on an accelerator, the loss is looked at after every so many steps: each look waits for the device
LOOK_EVERY = 20


@dataclass(frozen=True, slots=True)
class FitResult:
    """What ``fit`` returns.

    Args:
        workload: the workload with the trained model.
        history: one row per epoch: ``epoch`` (from 1), ``loss`` (mean training loss), ``lr`` (at its end),
            ``images_per_s``, and the validation metrics (the task's ``loss`` as ``val_loss``) where it validated.
        resumed_at: epochs that an earlier, interrupted call had finished.
    """

    workload: Workload
    history: tuple[Mapping[str, float], ...]
    resumed_at: int = 0


def fit(
    workload: Workload,
    config: FitConfig,
    *,
    run: Run | None = None,
    callbacks: Sequence[Callback] = (),
    inplace: bool = False,
    folder: Path | str | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Train a copy of the workload's model on its training data, validating on its validation data.

    With a folder, the whole state is written there after each epoch, and a call with the same arguments continues
    after the last finished epoch, bit for bit; if all are finished, it returns at once.

    Args:
        workload: model, task, training data and, for validation, ``val``.
        config: how to train.
        run: gives folder, seed and progress inside a recipe.
        callbacks: see :class:`Callback`.
        inplace: train the model itself.
        folder: where the state is kept; overrides ``run.folder``.
        progress: where to report; overrides ``run.progress``.

    Raises:
        SlimError: training data or task is missing, the loss is not finite, or the folder holds another run's state.
    """
    if workload.train is None or workload.task is None:
        missing = "training data" if workload.train is None else "a task"
        raise DataError(f"fit needs {missing}", hint="give the Workload train=… and task=…")
    if folder is None and run is not None:
        folder = run.folder
    seed = config.seed if config.seed is not None else run.seed if run is not None else 0
    model = workload.model if inplace else copy.deepcopy(workload.model)
    # the next call of fit must find the loaders' generators as a process that resumes finds them
    with kept_generators(*generators_of(workload.train), *generators_of(workload.val)):
        loop = _Loop(
            workload=workload,
            model=model,
            config=config,
            seed=seed,
            callbacks=tuple(callbacks),
            folder=Path(folder) if folder is not None else None,
            progress=progress or (run.progress if run is not None else SilentProgress()),
        )
        history, resumed_at = loop.run()
    return FitResult(replace(workload, model=model), tuple(history), resumed_at)


class _Loop:
    """One call of ``fit``."""

    def __init__(
        self,
        *,
        workload: Workload,
        model: nn.Module,
        config: FitConfig,
        seed: int,
        callbacks: tuple[Callback, ...],
        folder: Path | None,
        progress: Progress,
    ) -> None:
        assert workload.task is not None  # noqa: S101 - checked by fit
        assert workload.train is not None  # noqa: S101
        self.task: Task = workload.task
        self.train: DataSource = workload.train
        self.val, self.example_inputs = workload.val, workload.example_inputs
        self.model, self.config, self.seed = model, config, seed
        self.callbacks, self.folder, self.progress = callbacks, folder, progress
        self.home = device_of(model)
        check_reiterable(self.train, "training")
        if self.val is not None:
            check_reiterable(self.val, "validation")
        own = generators_of(workload.train)
        self.loader_seed = own[0].initial_seed() if own else None
        self.steps_per_epoch = length(workload.train)
        if self.steps_per_epoch == 0:
            raise DataError("the training data is empty")
        self.classes = self._classes(workload) if config.mixup else 0
        self.identity: dict[str, Any] = {}
        if folder is not None:
            self.identity = identity_of(model, config, seed, self.steps_per_epoch, callbacks)

    def run(self) -> tuple[list[dict[str, float]], int]:
        config, model = self.config, self.model
        self.devices: Devices = choose_devices(config.device, self.home)
        self.precise = torch.float32 if self.devices.device.type == "mps" else torch.float64
        with self._placed(), _layout(model, self._channels_last()) as self.layout:
            optimizer = build_optimizer(model, config)
            self.ema = Ema(model, config.ema) if config.ema is not None else None
            state = FitState(
                model, optimizer, self.task, config, self.devices.device, config.epochs, self.steps_per_epoch
            )
            state.ema, state.processes = self.ema, self.devices.world
            saved = read_state(self.folder, self.identity) if self.folder is not None else None
            if saved is not None:
                self._restore(state, saved)
            resumed_at = state.epoch
            self._call("on_fit_start", state)
            if state.epoch < config.epochs and not state.stop:
                self.wrapped = self.devices.wrap(model)
                total = config.epochs * self.steps_per_epoch if self.steps_per_epoch is not None else None
                with self.progress.track("train", total) as track:
                    if resumed_at and self.steps_per_epoch is not None:
                        track.advance(resumed_at * self.steps_per_epoch)
                    while state.epoch < config.epochs and not state.stop:
                        self._epoch(state, track)
            if self.ema is not None:
                self.ema.copy_to(model)
            self._call("on_fit_end", state)
            optimizer.zero_grad(set_to_none=True)
        return state.history, resumed_at

    @contextmanager
    def _placed(self) -> Iterator[None]:
        """Hold the model on the run's device for a while; then it goes back, in the mode that it had."""
        with kept_modes(self.model):
            self.model.to(self.devices.device)
            try:
                yield
            finally:
                self.model.to(self.home)

    def _epoch(self, state: FitState, track: Track) -> None:
        seed_epoch(self.seed, state.epoch)
        begin_epoch(self.train, state.epoch, self.loader_seed)
        set_mode(self.model, True)
        self._call("on_epoch_start", state)
        began, samples = time.perf_counter(), 0
        losses = torch.zeros((), dtype=self.precise, device=self.devices.device)
        metric = {name: value for row in state.history for name, value in row.items() if name == self.task.primary}
        for number, batch in enumerate(self.train):
            size = batch_size(batch)
            losses += self._step(state, batch, size) * size
            samples += size
            shown: dict[str, float] = {}
            if self.devices.device.type == "cpu" or number % LOOK_EVERY == LOOK_EVERY - 1:
                mean = self._finite(float(losses) / samples, state)
                shown = {"loss": mean, **metric, "images_per_s": samples / (time.perf_counter() - began)}
            track.advance(1, **shown)
        if samples == 0:
            raise DataError("the training data yields no batch")
        mean = self._finite(float(losses) / samples, state)
        speed = samples / (time.perf_counter() - began)
        self._synchronize()
        row: dict[str, float] = {"epoch": state.epoch + 1, "loss": mean, "lr": state.lr, "images_per_s": speed}
        last = state.epoch + 1 == self.config.epochs
        if self.val is not None and (last or (state.epoch + 1) % self.config.eval_every == 0):
            row.update(self._validate())
        state.history.append(row)
        state.epoch += 1
        self._call("on_epoch_end", state)
        if self.folder is not None:
            if self.devices.rank == 0:
                write_state(self.folder, self._saved(state))
            self.devices.wait()

    def _step(self, state: FitState, batch: Any, size: int) -> Tensor:
        """Take one optimizer step; return the mean loss over the global batch."""
        config, devices = self.config, self.devices
        if config.mixup:
            batch = mixup_batch(self.task, batch, config.mixup, self.seed, state.step, self.classes)
        shard = devices.shard(batch)
        state.batch = to_device(shard.batch, devices.device, self.layout)
        # without a known length the schedule moves once per epoch
        position = state.step if self.steps_per_epoch is not None else state.epoch
        state.lr = config.lr * lr_scale(config, position, self.steps_per_epoch or 1)
        for group in state.optimizer.param_groups:
            group["lr"] = state.lr
        self._call("on_step_start", state)
        with torch.autocast(devices.device.type, torch.bfloat16, enabled=config.amp):
            state.outputs = call(self.wrapped, self.task.inputs(state.batch))
            loss = self.task.loss(state.outputs, state.batch)
            if loss.ndim:
                raise SlimError(f"the task's loss has shape {tuple(loss.shape)}; it must be a scalar")
            if state.task_weight != 1.0:
                loss = loss * state.task_weight
            for callback in self.callbacks:
                extra = callback.loss(state.outputs, state.batch, state)
                if extra is not None:
                    loss = loss + extra
        state.loss = loss
        share = shard.counts[devices.rank] / size
        reported = devices.sum(loss.detach().to(self.precise) * share)
        if devices.device.type == "cpu":
            self._finite(float(reported), state)
        state.optimizer.zero_grad(set_to_none=True)
        # the processes' gradients are averaged: weigh each by its share, so that the sum is the global batch's
        (loss * (share * devices.world) if devices.world > 1 else loss).backward()  # type: ignore[no-untyped-call]
        self._call("on_backward_end", state)
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        state.optimizer.step()
        self._call("on_step_end", state)
        if self.ema is not None:
            self.ema.update(self.model)
        state.step += 1
        return reported

    def _validate(self) -> dict[str, float]:
        assert self.val is not None  # noqa: S101 - the caller asked
        with ExitStack() as stack:
            if self.ema is not None:
                stack.enter_context(self.ema.applied(self.model))
            figures = evaluate(self.model, self.task, self.val, devices=self.devices)
        return {"val_loss" if name == "loss" else name: value for name, value in figures.items()}

    def _synchronize(self) -> None:
        """Buffers (running statistics) are per process while training: take the first process's."""
        if self.devices.world > 1:
            self.devices.synchronize(list(self.model.buffers()))
            if self.ema is not None:
                self.devices.synchronize(list(self.ema.average.values()))

    def _call(self, hook: str, state: FitState) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(state)

    def _channels_last(self) -> bool:
        if self.config.channels_last is not None:
            return self.config.channels_last
        if not any(parameter.ndim == 4 and max(parameter.shape[2:]) > 1 for parameter in self.model.parameters()):
            return False
        inputs = to_device(self.example_inputs, self.devices.device, torch.channels_last)
        try:
            with _layout(self.model, True), evaluating(self.model), torch.no_grad():
                call(self.model, inputs)
        except RuntimeError:  # ``view`` of a feature map, say, needs it contiguous
            self.progress.note("channels_last is left off: the model's forward does not run with it")
            return False
        return True

    def _classes(self, workload: Workload) -> int:
        if not hasattr(self.task, "with_pair"):
            raise SlimError(
                f"mixup does not know how to mix the targets of task '{self.task.name}'",
                hint="set mixup to 0, or give the task targets(batch) and with_pair(batch, inputs, targets)",
            )
        known = getattr(self.task, "num_classes", None)
        if known is not None:
            return int(known)
        with torch.no_grad():
            outputs = call(copy.deepcopy(self.model), to_device(workload.example_inputs, self.home))
        return int(tensors_of(outputs)[0].shape[1])

    def _finite(self, loss: float, state: FitState) -> float:
        if math.isfinite(loss):
            return loss
        raise ModelError(
            f"the training loss is {loss} at step {state.step} (epoch {state.epoch + 1})",
            hint=f"lower lr (now {state.lr:.3g}), add warmup_epochs or clip_norm, and look for bad values in the data",
        )

    def _saved(self, state: FitState) -> SavedState:
        kept = {**model_tensors(self.model), **hidden_buffers(self.model)}
        tensors = {f"model/{name}": tensor for name, tensor in kept.items()}
        if self.ema is not None:
            tensors.update({f"ema/{name}": tensor for name, tensor in self.ema.average.items()})
        tensors.update({f"optimizer/{name}": t for name, t in optimizer_tensors(state.optimizer).items()})
        for number, callback in enumerate(self.callbacks):
            tensors.update({f"callback/{number}/{name}": t for name, t in callback.state().items()})
        updates = self.ema.updates if self.ema is not None else 0
        return SavedState(self.identity, state.epoch, state.step, updates, state.history, state.stop, tensors)

    def _restore(self, state: FitState, saved: SavedState) -> None:
        for number, callback in enumerate(self.callbacks):
            callback.on_resume(state, saved.part(f"callback/{number}"))
        own = {**model_tensors(self.model), **hidden_buffers(self.model)}
        with torch.no_grad():
            for name, tensor in saved.part("model").items():
                if name in own and own[name].shape == tensor.shape:
                    own[name].copy_(tensor)
                else:  # a buffer that the forward pass makes or resizes
                    set_buffer(self.model, name, tensor.to(self.devices.device))
            if self.ema is not None:
                self.ema.updates = saved.updates
                for name, tensor in saved.part("ema").items():
                    self.ema.average[name].copy_(tensor)
        load_optimizer(state.optimizer, saved.part("optimizer"))
        for number, callback in enumerate(self.callbacks):
            callback.load_state(saved.part(f"callback/{number}"))
        state.epoch, state.step, state.stop = saved.epoch, saved.step, saved.stopped
        state.history = [dict(row) for row in saved.history]


@contextmanager
def _layout(model: nn.Module, channels_last: bool) -> Iterator[torch.memory_format | None]:
    """Hold the model's four-dimensional tensors as NHWC for a while, if asked; yield the layout for the inputs."""
    if not channels_last:
        yield None
        return
    before = [p.is_contiguous() for p in model.parameters()]
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield torch.channels_last
    finally:
        if all(before):
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
