"""The contracts themselves: what is sound passes them, and each kind of breach is caught by the test that is for it."""

from __future__ import annotations

import copy
import inspect
import math
import random
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from slim_core.errors import CheckpointError
from slim_core.graph.types import ChannelGroup
from slim_core.measure import Artifact, Session
from slim_core.measure.eager import EagerBackend, TorchSession
from slim_core.plugins import load_plugins
from slim_core.registry import Registry
from slim_core.technique import Run, StepResult, StrictConfig
from slim_core.testing.contracts import (
    BackendCase,
    BackendContract,
    CostModelContract,
    ImportanceContract,
    ReplayCase,
    ReplayerContract,
    TechniqueCase,
    TechniqueContract,
)
from slim_core.testing.contracts.importance import _group
from slim_core.testing.workloads import TinyNet, differences, fingerprint, tiny_workload
from slim_core.training.technique import FitTechnique
from slim_core.workload import Transform, Workload, call, tensors_of


class TestFit(TechniqueContract):
    """The core's own technique keeps the contract."""

    @pytest.fixture
    def case(self) -> TechniqueCase:
        return TechniqueCase(FitTechnique, config={"epochs": 1, "lr": 0.01})

    @pytest.fixture
    def registry(self) -> Registry:
        return load_plugins(select=[]).registry


def breaches(contract: object, **fixtures: Any) -> set[str]:
    """Run all tests of a contract with the given fixtures and return the names of those that fail."""
    failed = set()
    for name, test in inspect.getmembers(contract, callable):
        if not name.startswith("test_"):
            continue
        try:
            test(**{argument: fixtures[argument] for argument in inspect.signature(test).parameters})
        except pytest.skip.Exception:
            continue
        except (Exception, pytest.fail.Exception):
            failed.add(name.removeprefix("test_"))
    return failed


# --- techniques -----------------------------------------------------------------------------------------------------


class Config(StrictConfig):
    factor: float = 0.5


class Cut:
    """A sound technique: keeps half of the hidden layer's outputs, by a transform."""

    name: ClassVar[str] = "test.cut"
    Config: ClassVar[type] = Config

    def run(self, workload: Workload, config: Config, run: Run) -> StepResult:
        model = copy.deepcopy(workload.model)
        kept = model.hidden.out_features // 2
        with torch.no_grad():
            hidden, head = nn.Linear(model.hidden.in_features, kept), nn.Linear(kept, model.head.out_features)
            hidden.weight.copy_(model.hidden.weight[:kept] * config.factor)
            hidden.bias.copy_(model.hidden.bias[:kept])
            head.weight.copy_(model.head.weight[:, :kept])
            head.bias.copy_(model.head.bias)
        model.hidden, model.head = hidden, head
        return StepResult(workload.with_model(model, Transform("test.cut", 1, {"kept": kept})))


class CutReplayer:
    def replay(self, model: nn.Module, transform: Transform, example_inputs: Any) -> nn.Module:
        kept = transform.data.get("kept")
        if transform.schema != 1 or type(kept) is not int:
            raise CheckpointError("cannot be read", field="test.cut")
        model.hidden = nn.Linear(model.hidden.in_features, kept, device="meta")
        model.head = nn.Linear(kept, model.head.out_features, device="meta")
        return model


def breaking(change: Callable[[Workload, StepResult], StepResult | None]) -> type[Cut]:
    """Make a technique that does something wrong after it has done its work."""

    class Broken(Cut):
        def run(self, workload: Workload, config: Config, run: Run) -> StepResult:
            result = super().run(workload, config, run)
            return change(workload, result) or result

    return Broken


def _touch_the_original(workload: Workload, result: StepResult) -> None:
    next(workload.model.parameters()).data.mul_(1.001)


def _switch_the_mode_of_the_original(workload: Workload, result: StepResult) -> None:
    workload.model.train()


def _leave_a_hook_on_the_original(workload: Workload, result: StepResult) -> None:
    workload.model.stem.register_forward_hook(lambda *_: None)


def _share_memory(workload: Workload, result: StepResult) -> None:
    result.workload.model.stem = workload.model.stem


def _return_the_given_model(workload: Workload, result: StepResult) -> StepResult:
    return StepResult(workload)


def _change_nothing(workload: Workload, result: StepResult) -> StepResult:
    return StepResult(workload.with_model(copy.deepcopy(workload.model)))


def _use_the_global_generator(workload: Workload, result: StepResult) -> None:
    result.workload.model.head.bias.data.copy_(torch.rand(4))


def _return_other_shapes(workload: Workload, result: StepResult) -> None:
    result.workload.model.head = nn.Linear(16, 5)


def _return_nan(workload: Workload, result: StepResult) -> None:
    result.workload.model.head.bias.data.fill_(float("nan"))


def _forget_the_transform(workload: Workload, result: StepResult) -> StepResult:
    return StepResult(workload.with_model(result.workload.model))


def _record_a_wrong_transform(workload: Workload, result: StepResult) -> StepResult:
    return StepResult(workload.with_model(result.workload.model, Transform("test.cut", 1, {"kept": 3})))


def _report_a_tensor(workload: Workload, result: StepResult) -> StepResult:
    return StepResult(result.workload, details={"weights": torch.zeros(1)})


def _note_two_lines(workload: Workload, result: StepResult) -> StepResult:
    return StepResult(result.workload, notes=("one\ntwo",))


#: what is wrong -> the test that must find it (others may fail too)
TECHNIQUES: dict[Callable[[Workload, StepResult], StepResult | None], str] = {
    _touch_the_original: "it_leaves_the_given_model_untouched",
    _switch_the_mode_of_the_original: "it_leaves_the_given_model_untouched",
    _leave_a_hook_on_the_original: "it_leaves_the_given_model_untouched",
    _share_memory: "the_new_model_shares_no_memory_with_the_given_one",
    _return_the_given_model: "it_returns_a_new_workload",
    _change_nothing: "it_changes_something",
    _use_the_global_generator: "the_same_seed_gives_the_same_model",
    _return_other_shapes: "the_new_model_runs_and_returns_the_same_kind_of_outputs",
    _return_nan: "the_new_model_runs_and_returns_the_same_kind_of_outputs",
    _forget_the_transform: "its_transforms_can_be_replayed_on_a_fresh_model",
    _record_a_wrong_transform: "its_transforms_can_be_replayed_on_a_fresh_model",
    _report_a_tensor: "what_it_reports_is_json_and_one_line_each",
    _note_two_lines: "what_it_reports_is_json_and_one_line_each",
}


def technique_breaches(technique: type[Cut], folder: Path) -> set[str]:
    registry = Registry()
    registry.register("techniques", technique.name, technique, plugin="test")
    registry.register("transforms", "test.cut", CutReplayer(), plugin="test")
    case = TechniqueCase(technique, config={"factor": 0.5})

    def perform(workload: Workload, seed: int = 0) -> StepResult:
        return technique().run(workload, technique.Config(**case.config), Run(folder, seed=seed, registry=registry))

    return breaches(TechniqueContract(), case=case, registry=registry, perform=perform, tmp_path=folder)


def test_a_sound_technique_passes(tmp_path: Path) -> None:
    assert technique_breaches(Cut, tmp_path) == set()


@pytest.mark.parametrize(("change", "name"), TECHNIQUES.items(), ids=lambda value: getattr(value, "__name__", None))
def test_a_breach_of_a_technique_is_found(change: Any, name: str, tmp_path: Path) -> None:
    assert name in technique_breaches(breaking(change), tmp_path)


class Lax(StrictConfig, extra="ignore"):
    factor: float = 0.5


class Changeable(StrictConfig, frozen=False):
    factor: float = 0.5


class Anything(StrictConfig):
    factor: Any = 0.5


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (Lax, "its_config_refuses_unknown_keys"),
        (Changeable, "its_config_cannot_be_changed"),
        (Anything, "its_config_refuses_values_of_another_type"),
    ],
)
def test_a_lax_configuration_is_found(config: type, name: str, tmp_path: Path) -> None:
    broken = type("Broken", (Cut,), {"Config": config})
    assert technique_breaches(broken, tmp_path) == {name}


# --- replayers ------------------------------------------------------------------------------------------------------


class NoSchema(CutReplayer):
    def replay(self, model: nn.Module, transform: Transform, example_inputs: Any) -> nn.Module:
        return super().replay(model, Transform(transform.kind, 1, transform.data), example_inputs)


class KeyErrors(CutReplayer):
    def replay(self, model: nn.Module, transform: Transform, example_inputs: Any) -> nn.Module:
        transform.data["kept"]
        return super().replay(model, transform, example_inputs)


class RealTensors(CutReplayer):
    def replay(self, model: nn.Module, transform: Transform, example_inputs: Any) -> nn.Module:
        super().replay(model, transform, example_inputs)
        model.head = nn.Linear(model.head.in_features, model.head.out_features)
        return model


class WrongShape(CutReplayer):
    def replay(self, model: nn.Module, transform: Transform, example_inputs: Any) -> nn.Module:
        super().replay(model, transform, example_inputs)
        model.head = nn.Linear(model.head.in_features, 9, device="meta")
        return model


@pytest.mark.parametrize(
    ("replayer", "expected"),
    [
        (CutReplayer, set()),
        (NoSchema, {"it_refuses_a_schema_of_the_future"}),
        (KeyErrors, {"it_refuses_a_record_without_its_data"}),
        (RealTensors, {"it_stays_on_the_meta_device"}),
        (WrongShape, {"names_shapes_and_dtypes_are_those_of_the_compressed_model"}),
    ],
)
def test_breaches_of_a_replayer_are_found(replayer: type[CutReplayer], expected: set[str], tmp_path: Path) -> None:
    result = Cut().run(tiny_workload(), Config(), Run(tmp_path, seed=0, registry=Registry())).workload
    case = ReplayCase(replayer(), result.transforms[0], TinyNet, result.example_inputs, result.model)
    assert breaches(ReplayerContract(), case=case) == expected


# --- importance criteria --------------------------------------------------------------------------------------------


def sound(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    scores = torch.zeros(group.units)
    for member in group.members:
        weight = tensors[member.name].float().square().movedim(member.dim, 0)
        per_index = weight.reshape(len(weight), -1).sum(1)
        scores += per_index[torch.from_numpy(member.indices)].sum(1)
    return scores


def _nan(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    return sound(group, tensors) * float("nan")


def _by_position(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    return sound(group, tensors) * torch.arange(1, group.units + 1)


def _by_weight_position(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    """Reads the first dimension instead of the group's indices."""
    return tensors["conv.weight"].float().abs().flatten(1).sum(1)[: group.units]


def _random(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.rand(group.units)


def _mutating(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    tensors["conv.weight"].mul_(0.5)
    return sound(group, tensors)


def _per_index(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.zeros(group.members[-1].indices.size)


def _float32_only(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    return sound(group, tensors) + torch.linalg.svdvals(tensors["conv.weight"].flatten(1)).sum()


def _with_gradient(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    return sound(group, tensors).requires_grad_()


@pytest.mark.parametrize(
    ("importance", "name"),
    [
        (_nan, "one_finite_score_per_unit"),
        (_per_index, "one_finite_score_per_unit"),
        (_with_gradient, "one_finite_score_per_unit"),
        (_by_position, "scores_follow_the_units_when_the_weights_are_reordered"),
        (_by_weight_position, "scores_follow_the_units_when_the_group_is_reordered"),
        (_random, "it_says_the_same_twice"),
        (_mutating, "it_changes_no_tensor"),
        (_float32_only, "half_precision_weights"),
    ],
)
def test_breaches_of_a_criterion_are_found(importance: Any, name: str) -> None:
    assert name in breaches(ImportanceContract(), importance=importance, group=_group(4))


@pytest.mark.parametrize("multiplicity", [1, 4])
def test_a_sound_criterion_passes(multiplicity: int) -> None:
    assert breaches(ImportanceContract(), importance=sound, group=_group(multiplicity)) == set()


class Gradients:
    """A sound criterion that looks at data: the sum of gradient times weight over batches, squared, per unit."""

    needs: ClassVar[tuple[str, ...]] = ("task", "train")

    def prepare(self, context: Any) -> Any:
        context.require(*self.needs, by="importance 'gradients'")
        model = copy.deepcopy(context.model).eval()
        parameters = dict(model.named_parameters())
        total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
        for batch in context.train:
            loss = context.task.loss(model(*context.task.inputs(batch)), batch)
            for name, gradient in zip(total, torch.autograd.grad(loss, list(parameters.values())), strict=True):
                total[name] += (gradient * parameters[name].detach()).float()
        return lambda group, tensors: self.score(group, total)

    def score(self, group: ChannelGroup, total: Mapping[str, Tensor]) -> Tensor:
        scores = torch.zeros(group.units)
        for member in group.members:
            if member.name in total:
                values = total[member.name].movedim(member.dim, 0)
                scores += values.reshape(len(values), -1).sum(1)[torch.from_numpy(member.indices)].sum(1)
        return scores.square()


class OnTheModelItself(Gradients):
    def prepare(self, context: Any) -> Any:
        inputs, targets = next(iter(context.train))
        context.task.loss(context.model(inputs), (inputs, targets)).backward()
        return super().prepare(context)


class InTrainingMode(Gradients):
    def prepare(self, context: Any) -> Any:
        context.model.train()(next(iter(context.train))[0])
        return super().prepare(context)


class WithTheGlobalGenerator(Gradients):
    def prepare(self, context: Any) -> Any:
        torch.rand(1)
        return super().prepare(context)


class WithoutNeeds(Gradients):
    needs: ClassVar[tuple[str, ...]] = ()

    def prepare(self, context: Any) -> Any:
        context.require("train", by="importance 'gradients'")
        return super().prepare(context)


class Undemanding(Gradients):
    def prepare(self, context: Any) -> Any:
        return sound if context.train is None else super().prepare(context)


class Hoarding(Gradients):
    def prepare(self, context: Any) -> Any:
        context.require(*self.needs, by="importance 'gradients'")
        self.kept = list(context.train)
        return super().prepare(context)


class ByName(Gradients):
    """Keeps scores in the order of the units that it saw."""

    def prepare(self, context: Any) -> Any:
        inner = super().prepare(context)
        known = {group.name: inner(group, {}) for group in context.coupling.groups}
        return lambda group, tensors: known[group.name]


@pytest.mark.parametrize("multiplicity", [1, 4])
def test_a_sound_criterion_on_data_passes(multiplicity: int) -> None:
    assert breaches(ImportanceContract(), importance=Gradients(), group=_group(multiplicity)) == set()


@pytest.mark.parametrize(
    ("importance", "name"),
    [
        (OnTheModelItself(), "preparing_leaves_model_gradients_and_generators_as_they_are"),
        (InTrainingMode(), "preparing_leaves_model_gradients_and_generators_as_they_are"),
        (WithTheGlobalGenerator(), "preparing_leaves_model_gradients_and_generators_as_they_are"),
        (WithoutNeeds(), "missing_data_is_an_error_and_said_in_advance"),
        (Undemanding(), "missing_data_is_an_error_and_said_in_advance"),
        (Hoarding(), "batches_are_let_go_of"),
        (ByName(), "scores_follow_the_units_when_the_group_is_reordered"),
        (ByName(), "a_group_of_one_unit"),
    ],
)
def test_breaches_of_a_criterion_on_data_are_found(importance: Any, name: str) -> None:
    assert name in breaches(ImportanceContract(), importance=importance, group=_group(4))


# --- comparing models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda model: model.norm.running_var.add_(1), "tensor norm.running_var"),
        (lambda model: model.head.weight.requires_grad_(False), "tensor head.weight"),
        (lambda model: model.hidden.train(), "module hidden"),
        (lambda model: model.stem.register_forward_pre_hook(lambda *_: None), "module stem"),
        (lambda model: setattr(model, "head", nn.Identity()), "module head"),
        (lambda model: model.head.weight.data.__setitem__((0, 0), float("nan")), "tensor head.weight"),
    ],
)
def test_a_fingerprint_sees_every_change(change: Callable[[nn.Module], Any], name: str) -> None:
    model = tiny_workload().model
    before = fingerprint(model)
    assert differences(before, fingerprint(copy.deepcopy(model))) == []
    change(model)
    assert name in differences(before, fingerprint(model))


def test_the_tiny_workload_is_the_same_each_time_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second = tiny_workload(), tiny_workload()
    assert torch.equal(torch.get_rng_state(), state)
    assert differences(fingerprint(first.model), fingerprint(second.model)) == []
    assert torch.equal(first.train[0][0], second.train[0][0])
    assert differences(fingerprint(first.model), fingerprint(tiny_workload(seed=1).model)) != []


# --- backends -------------------------------------------------------------------------------------------------------


class _Session(TorchSession):
    def __init__(self, backend: type[EagerBackend], model: nn.Module, threads: int | None) -> None:
        super().__init__(model, threads, "eager")
        self.model, self.backend = model, backend


def broken_backend(**methods: Any) -> type[EagerBackend]:
    """Make an eager backend whose sessions have some of their methods replaced."""
    session = type("Broken", (_Session,), methods)

    class Backend(EagerBackend):
        def prepare(self, artifact: Artifact, example_inputs: Any, *, threads: int | None = None) -> Session:
            return session(Backend, artifact.model_for(self.name), threads)

    return Backend


def _halved(self: Any, inputs: Any) -> list[Any]:
    return [output * 0.5 for output in TorchSession.run(self, inputs)]


def _first_only(self: Any, inputs: Any) -> list[Any]:
    return TorchSession.run(self, inputs)[:1]


def _reused(self: Any, inputs: Any) -> list[Any]:
    """Gives out the same memory each time."""
    outputs = TorchSession.run(self, inputs)
    kept = self.__dict__.setdefault("kept", outputs)
    for mine, new in zip(kept, outputs, strict=True):
        mine[...] = new
    return kept


def _remembered(self: Any, inputs: Any) -> list[Any]:
    return self.__dict__.setdefault("first", TorchSession.run(self, inputs))


def _as_it_is(self: Any, inputs: Any) -> list[Any]:
    with torch.no_grad():
        return [tensor.numpy() for tensor in tensors_of(call(self.model, inputs))]


def _leaves_eval(self: Any, inputs: Any) -> list[Any]:
    self.model.eval()
    return _as_it_is(self, inputs)


def _leaves_threads(self: Any, inputs: Any) -> list[Any]:
    torch.set_num_threads(torch.get_num_threads() + 1)
    return TorchSession.run(self, inputs)


def _changes_inputs(self: Any, inputs: Any) -> list[Any]:
    outputs = TorchSession.run(self, inputs)
    inputs[0].add_(1)
    return outputs


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (_halved, "it_computes_what_the_model_computes"),
        (_first_only, "it_returns_every_output_in_order"),
        (_reused, "a_second_input_gives_its_own_outputs_and_spares_the_first_ones"),
        (_remembered, "a_second_input_gives_its_own_outputs_and_spares_the_first_ones"),
        (_as_it_is, "a_model_in_training_mode_runs_as_in_eval_mode_and_stays_in_training_mode"),
        (_leaves_eval, "a_model_in_training_mode_runs_as_in_eval_mode_and_stays_in_training_mode"),
        (_leaves_threads, "it_leaves_the_settings_of_the_process_as_they_were"),
        (_changes_inputs, "it_changes_neither_the_model_nor_the_inputs"),
    ],
)
def test_breaches_of_a_backend_are_found(run: Any, name: str) -> None:
    threads = torch.get_num_threads()
    found = backend_breaches(broken_backend(run=run))
    torch.set_num_threads(threads)
    assert name in found


def test_a_sound_backend_passes() -> None:
    assert backend_breaches(broken_backend()) == set()


def backend_breaches(backend: type[EagerBackend]) -> set[str]:
    registry = Registry()
    registry.register("backends", "eager", backend, plugin="test")
    found = set()
    for name, test in inspect.getmembers(BackendContract(), callable):
        if not name.startswith("test_") or "module_it_names" in name:
            continue
        fixtures = {
            "case": BackendCase(backend),
            "registry": registry,
            "model": tiny_workload().model,
            "inputs": (torch.rand(3, 3, 8, 8),),
            "batch": 5,
            "prepare": lambda model, inputs, threads=None: backend().prepare(
                Artifact(model=model), inputs, threads=threads
            ),
        }
        try:
            test(**{argument: fixtures[argument] for argument in inspect.signature(test).parameters})
        except Exception:
            found.add(name.removeprefix("test_"))
    return found


# --- cost models ----------------------------------------------------------------------------------------------------


class _Cost:
    unit = "things"

    def __init__(self, total: Callable[[Any], float]) -> None:
        self.total = total


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (lambda graph: float(sum(prod(value.shape) for value in graph.values)), set()),
        (lambda graph: 0.0, {"the_total_is_a_positive_number"}),
        (lambda graph: 1.0 / len(graph.nodes) if graph.nodes else math.nan, {"a_model_without_layers_is_no_accident"}),
        (
            lambda graph: 1e6 / sum(prod(value.shape) for value in graph.values),
            {"a_wider_model_costs_no_less", "a_pruned_graph_costs_no_more_and_needs_no_new_recording"},
        ),
        (lambda graph: random.random() + 1e-9, {"the_same_graph_costs_the_same"}),
    ],
)
def test_breaches_of_a_cost_model_are_found(total: Callable[[Any], float], expected: set[str]) -> None:
    found = breaches(CostModelContract(), cost_model=_Cost(total))
    assert expected <= found if expected else found == set()
