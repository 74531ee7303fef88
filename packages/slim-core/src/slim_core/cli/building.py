"""From the options of the command line to a workload: model, weights, inputs, data and task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim_core.cli.options import WorkloadRequest, need_data
from slim_core.cli.subject import built, inputs_of, json_object, subject
from slim_core.errors import CheckpointError, SlimError
from slim_core.recipe.arguments import accepted
from slim_core.recipe.build import fitting
from slim_core.workload import BuilderRef, Workload

if TYPE_CHECKING:
    from slim_core.registry import Registry

_KWARGS = '{"width": 0.5}'


def build(request: WorkloadRequest, registry: Registry, *, needs_data: str | None = None) -> Workload:
    """Build what the options ask for; see :meth:`WorkloadRequest.workload`."""
    if needs_data is not None and request.data is None:
        raise need_data(needs_data)
    checkpoint = request.checkpoint
    if checkpoint is None and request.model is not None and _is_file(request.model, registry):
        checkpoint = Path(request.model)
    if (request.model is None) == (request.checkpoint is None):
        raise SlimError(
            "say which model: --model NAME or --checkpoint FILE, one of the two",
            hint="--model zoo/resnet18, or --load my_project.py --model NAME for a model of yours",
        )
    dataset = _dataset(request, registry) if request.data is not None else None
    if checkpoint is not None:
        workload = _of_checkpoint(request, checkpoint, registry)
    else:
        workload = _of_name(request, registry, dataset)
    inputs = inputs_of(request.shapes)
    if inputs is not None:
        workload = replace(workload, example_inputs=inputs)
    if dataset is None:
        return workload
    task_name = request.task or dataset.task
    task_kwargs = json_object(request.task_kwargs, "--task-kwargs", "{}")
    if request.task is None:
        task_kwargs = {**dataset.task_kwargs, **task_kwargs}
    factory = registry.get("tasks", task_name)
    return replace(
        workload,
        task=_made(lambda: factory(**task_kwargs), f"task '{task_name}'", "--task-kwargs"),
        train=dataset.train,
        val=dataset.val,
    )


def _of_name(request: WorkloadRequest, registry: Registry, dataset: Any) -> Workload:
    assert request.model is not None  # noqa: S101  build() saw to it
    kwargs = json_object(request.kwargs, "--kwargs", _KWARGS)
    if dataset is None:
        model, inputs = subject(registry, request.model, kwargs, request.shapes)
    else:
        builder = registry.get("models", request.model)
        kwargs = {**fitting(builder, dataset), **kwargs}
        model, inputs = built(builder, request.model, kwargs), dataset.example_inputs
    workload = Workload(model, inputs, builder=BuilderRef(request.model, kwargs))
    return workload if request.weights is None else _with_weights(workload, request.weights, registry)


def _of_checkpoint(request: WorkloadRequest, path: Path, registry: Registry) -> Workload:
    from slim_core.checkpoint import load

    for value, option in ((request.weights, "--weights"), (request.kwargs != "{}", "--kwargs")):
        if value:
            raise SlimError(f"a checkpoint brings its own weights and arguments; leave {option} out", where=str(path))
    return load(path, registry=registry)


def _with_weights(workload: Workload, path: Path, registry: Registry) -> Workload:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_model

    if not path.is_file():
        raise CheckpointError("there is no such file", where=f"--weights {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            slim = "slim" in (file.metadata() or {})
        if not slim:
            load_model(workload.model, path)
            return workload
    except (SafetensorError, RuntimeError, OSError) as error:
        first = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise CheckpointError(
            f"the weights cannot be read into the model: {first}", where=f"--weights {path}"
        ) from None
    from slim_core.checkpoint import load

    loaded = load(path, registry=registry)
    asked = workload.builder
    if loaded.builder is not None and asked is not None and loaded.builder.name != asked.name:
        raise SlimError(
            f"the weights are of model '{loaded.builder.name}', and --model names '{asked.name}'",
            where=f"--weights {path}",
            hint=f"pass --checkpoint {path} instead of --model and --weights",
        )
    return replace(workload, model=loaded.model, builder=loaded.builder, transforms=loaded.transforms)


def _dataset(request: WorkloadRequest, registry: Registry) -> Any:
    source = registry.get("datasets", request.data or "")
    kwargs = json_object(request.data_kwargs, "--data-kwargs", '{"batch_size": 64}')
    known = accepted(source)
    unknown = [key for key in kwargs if known is not None and key not in known]
    if unknown:
        raise SlimError(
            f"data set '{request.data}' takes no argument '{unknown[0]}'",
            where="--data-kwargs",
            hint=f"it takes: {', '.join(known or ()) or 'none'}",
        )
    return _made(lambda: source(**kwargs), f"data set '{request.data}'", "--data-kwargs")


def _made(make: Callable[[], Any], what: str, where: str) -> Any:
    from slim_core.recipe.build import user_line

    try:
        return make()
    except SlimError as error:
        error.where = error.where or where
        raise
    except Exception as error:
        line = user_line(error)
        raise SlimError(
            f"{what} cannot be built: {type(error).__name__}: {error}", where=line or where, hint=f"check {where}"
        ) from error


def _is_file(name: str, registry: Registry) -> bool:
    return name.endswith(".safetensors") or (("models", name) not in registry and Path(name).is_file())
