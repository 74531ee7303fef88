"""Recipe -> workload: data, task and model are built, and tried together before anything long begins."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from slim_core import checkpoint
from slim_core.errors import DataError, ModelError, RecipeError, SlimError, close_match
from slim_core.progress import Progress
from slim_core.recipe.arguments import accepted
from slim_core.recipe.schema import Recipe
from slim_core.recipe.source import KeyPath
from slim_core.registry import Registry
from slim_core.report.data import MetricInfo
from slim_core.training import FitConfig, evaluate
from slim_core.training.evaluate import evaluating
from slim_core.workload import BuilderRef, Task, Workload, call


@dataclass(frozen=True, slots=True)
class Prepared:
    """A workload that was tried once.

    Args:
        workload: the base, before training.
        metrics: the task's metrics, the judged one first.
        dataset: what the report says about the data.
        factory: builds the base model again, for workloads without a registered builder.
        notes: what the report should tell.
    """

    workload: Workload
    metrics: tuple[MetricInfo, ...]
    dataset: str
    factory: Callable[[], nn.Module] | None
    notes: tuple[str, ...] = ()


def prepare(recipe: Recipe, registry: Registry, own: Workload | None) -> Prepared:
    """Build the recipe's workload, or take the caller's own, and try model, data and task together.

    Raises:
        SlimError: something does not fit; says which block of the recipe.
    """
    notes: list[str] = []
    if own is not None:
        workload, dataset, factory = own, "passed from Python", _copy_of(own.model)
    else:
        workload, dataset = _build(recipe, registry)
        factory = None
        if recipe.workload.weights is None and recipe.train is None:
            notes.append("the base model has random weights: the recipe has neither workload.weights nor train")
    needs_data = recipe.train is not None
    if needs_data and workload.train is None:
        raise RecipeError(
            "the recipe trains, but the workload has no training data", where=recipe.source.where(("train",))
        )
    _check_devices(recipe)
    return Prepared(workload, _try(workload, recipe), dataset, factory, tuple(notes))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Set every global random generator for a while; afterwards they stand where they stood."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def step_seed(seed: int, index: int) -> int:
    """Return the seed of a step: a pure function of the recipe's seed and the step's position."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint32)[0])


def evaluate_workload(workload: Workload, progress: Progress) -> dict[str, float]:
    """Return the workload's metrics on its validation data; nothing without a task or data."""
    if workload.task is None or workload.val is None:
        return {}
    return evaluate(workload.model, workload.task, workload.val, progress=progress)


def _build(recipe: Recipe, registry: Registry) -> tuple[Workload, str]:
    spec, where = recipe.workload, recipe.source.where
    source = registry.get("datasets", spec.data)
    seed = {"seed": recipe.seed} if "seed" in (accepted(source) or ()) else {}
    dataset = _make(
        lambda: source(**{**seed, **spec.data_kwargs}), f"data set '{spec.data}'", where(("workload", "data"))
    )
    task_name = spec.task or dataset.task
    task_kwargs = spec.task_kwargs if spec.task else {**dataset.task_kwargs, **spec.task_kwargs}
    task: Task = _make(
        lambda: registry.get("tasks", task_name)(**task_kwargs), f"task '{task_name}'", where(("workload", "task"))
    )
    builder = registry.get("models", spec.model)
    kwargs = {**fitting(builder, dataset), **spec.kwargs}
    workload = Workload(
        model=_make(lambda: builder(**kwargs), f"model '{spec.model}'", where(("workload", "model"))),
        example_inputs=dataset.example_inputs,
        task=task,
        train=dataset.train,
        val=dataset.val,
        builder=BuilderRef(spec.model, kwargs),
    )
    if not isinstance(workload.model, nn.Module):
        raise RecipeError(
            f"model '{spec.model}' gave a {type(workload.model).__name__}, not an nn.Module",
            where=where(("workload", "model")),
        )
    if recipe.weights_path() is not None:
        workload = _with_weights(workload, recipe, registry)
    named = dataset.name if dataset.name.startswith(spec.data) else spec.data  # a data set may say where it came from
    return workload, f"{named}{_sizes(dataset)}"


def _make(build: Callable[[], Any], what: str, where: str) -> Any:
    try:
        return build()
    except SlimError as error:
        error.where = error.where or where
        raise
    except Exception as error:
        line = user_line(error)
        raise RecipeError(
            f"{what} cannot be built: {type(error).__name__}: {error}",
            where=f"{line} (asked for at {where})" if line else where,
            hint="check its arguments in the recipe, or mend that line",
        ) from error


def fitting(builder: Callable[..., Any], dataset: Any) -> dict[str, Any]:
    """Return the arguments that make a model fit its data, where the builder takes them by name."""
    offered: dict[str, Any] = {}
    if dataset.num_classes is not None:
        offered["num_classes"] = dataset.num_classes
    shape = dataset.input_shape
    if len(shape) == 3:
        offered["in_channels"] = shape[0]
        if shape[1] == shape[2]:
            offered["input_size"] = shape[1]
    taken = accepted(builder) or ()
    return {name: value for name, value in offered.items() if name in taken}


def _sizes(dataset: Any) -> str:
    def samples(source: Any) -> int | None:
        found = getattr(source, "samples", None)
        if isinstance(found, int):
            return found
        inner: Any = getattr(source, "dataset", None)  # a DataLoader
        return len(inner) if hasattr(inner, "__len__") else None

    train, val = samples(dataset.train), samples(dataset.val)
    if train is None or val is None:
        return ""
    return f", {train} samples for training, {val} for validation"


def _with_weights(workload: Workload, recipe: Recipe, registry: Registry) -> Workload:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path, where = recipe.weights_path(), recipe.source.where(("workload", "weights"))
    assert path is not None  # noqa: S101
    assert workload.builder is not None  # noqa: S101
    if _is_slim(path):
        loaded = checkpoint.load(path, registry=registry)
        if loaded.builder is not None and loaded.builder.name != workload.builder.name:
            raise RecipeError(
                f"the weights are of model '{loaded.builder.name}', the recipe names '{workload.builder.name}'",
                where=where,
                hint=f"write model: {loaded.builder.name}",
            )
        if (
            loaded.builder is not None
            and not loaded.transforms
            and dict(loaded.builder.kwargs) != dict(workload.builder.kwargs)
        ):
            raise RecipeError(
                f"the weights were made with kwargs {dict(loaded.builder.kwargs)}, the recipe gives "
                f"{dict(workload.builder.kwargs)}",
                where=where,
            )
        return replace(workload, model=loaded.model, builder=loaded.builder, transforms=loaded.transforms)
    try:
        tensors = load_file(path)
        workload.model.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        first = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise RecipeError(f"the weights do not fit model '{workload.builder.name}': {first}", where=where) from None
    return workload


def _is_slim(path: Any) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return "slim" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _check_devices(recipe: Recipe) -> None:
    """Make sure that every device that training asks for is here."""
    blocks: list[tuple[KeyPath, Any]] = [(("train",), recipe.train)]
    for step in recipe.steps:
        path: KeyPath = ("steps", step.index - 1)
        blocks += [(path, step.config), ((*path, "fit"), getattr(step.config, "fit", None))]
    for path, config in blocks:
        name = getattr(config, "device", None)
        if not isinstance(config, FitConfig) or name is None:
            continue
        where = recipe.source.where((*path, "device"))
        try:
            device = torch.device(name)
        except RuntimeError:
            raise RecipeError(f"'{name}' is no device", where=where, hint="write for example cpu or cuda:0") from None
        there = torch.cuda.device_count() if device.type == "cuda" else None
        if there is not None and (device.index or 0) >= there:
            raise RecipeError(
                f"device '{name}' is not here: PyTorch sees {there} CUDA devices",
                where=where,
                hint="leave the key out: training then takes a CUDA device if there is one",
            )


def _copy_of(model: nn.Module) -> Callable[[], nn.Module]:
    import copy

    kept = copy.deepcopy(model)
    return lambda: copy.deepcopy(kept)


def _try(workload: Workload, recipe: Recipe) -> tuple[MetricInfo, ...]:
    """Run the model once, and the task's loss and metrics on one batch."""
    model, task = workload.model, workload.task
    where = recipe.source.where(("workload", "model"))
    with evaluating(model), torch.no_grad():
        _attempt(lambda: call(model, workload.example_inputs), "the model's forward fails on its example inputs", where)
        if task is None or workload.val is None:
            return ()
        batch = next(iter(workload.val), None)
        if batch is None:
            raise DataError("the validation data yields no batch", where=recipe.source.where(("workload", "data")))
        outputs = _attempt(
            lambda: call(model, task.inputs(batch)), "the model's forward fails on a batch of the data", where
        )
        _attempt(
            lambda: task.loss(outputs, batch), f"the loss of task '{task.name}' fails on the model's outputs", where
        )
        metrics = task.metrics()
        for name, metric in metrics.items():
            _attempt(partial(metric.update, outputs, batch), f"metric '{name}' fails on the model's outputs", where)
    return _metric_infos(task, metrics, recipe)


def _metric_infos(task: Task, metrics: Mapping[str, Any], recipe: Recipe) -> tuple[MetricInfo, ...]:
    directions = {name: bool(metric.higher_is_better) for name, metric in metrics.items()}
    directions.setdefault("loss", False)
    judged = recipe.compare.metric or task.primary
    if judged not in directions:
        raise RecipeError(
            f"task '{task.name}' has no metric '{judged}'",
            where=recipe.source.where(("compare", "metric")),
            hint="; ".join(
                hint for hint in (close_match(judged, directions), f"it has: {', '.join(directions)}") if hint
            ),
        )
    order = [judged, *(name for name in directions if name != judged)]
    return tuple(MetricInfo(name, directions[name], name == judged) for name in order)


def _attempt(work: Callable[[], Any], what: str, where: str) -> Any:
    try:
        return work()
    except SlimError as error:
        error.where = error.where or where
        raise
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")
        place = user_line(error) or where
        raise ModelError(
            f"{what}: {type(error).__name__}: {line}",
            where=place,
            hint="check workload.kwargs and workload.data against each other",
        ) from error


def user_line(error: BaseException) -> str | None:
    """Return the innermost line of the traceback that is neither PyTorch's nor Slim's."""
    import traceback

    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "/torch/" not in frame.filename and "slim_core" not in frame.filename:
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return None
