"""Options of criteria: found when a recipe is read, with the close match, and with the values that are possible."""

from __future__ import annotations

import pytest
import torch

from slim_core.errors import RecipeError, SlimError, UnknownNameError
from slim_core.plugins import load_plugins
from slim_core.recipe import load_recipe
from slim_core.registry import Registry
from slim_core.technique import Run
from slim_core.testing.workloads import tiny_workload
from slim_prune import importance as importances
from slim_prune.errors import PlanError
from slim_prune.plugin import IMPORTANCES
from slim_prune.technique import UniformConfig, UniformPruning


@pytest.fixture(scope="module")
def registry():
    return load_plugins(select=["slim-prune"]).registry


def recipe(importance: str) -> str:
    return f"version: 1\nsteps:\n  - kind: prune.uniform\n    budget: {{macs: 0.5}}\n    importance: {importance}\n"


@pytest.mark.parametrize(
    ("importance", "said"),
    [
        ("{name: l1, normalise: max}", ["importance 'l1' takes no option 'normalise'", "did you mean 'normalize'?"]),
        ("{name: l1, normalize: men}", ["normalize='men' is not possible", "'mean', 'max'", "normalize: one of mean"]),
        ("{name: taylor, joint: layer}", ["joint='layer' is not possible", "'group', 'member' or 'weight'"]),
        ("{name: taylor, samples: many}", ["samples='many' is not possible", "valid integer"]),
        ("{name: taylor, aggregate: max}", ["joint='group' adds up all members"]),
        ("{name: fisher, samples: 0}", ["samples must be at least 1"]),
        ("{name: hessian, probes: 0}", ["probes must be at least 1"]),
        ("{name: lp, p: -1}", ["p must be above 0"]),
        ("{name: lamp, normalize: max}", ["importance 'lamp' takes no option 'normalize'"]),
        ("{normalize: max}", ["an importance with options needs a name"]),
        ("tailor", ["unknown importance criterion 'tailor'", "did you mean 'taylor'"]),
    ],
)
def test_mistakes_are_found_when_a_recipe_is_read(importance, said, registry, tmp_path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(importance))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, registry, own_workload=True)
    message = "\n".join(str(problem) for problem in caught.value.problems)
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    "importance",
    ["l1", "{name: taylor, samples: 64, joint: member, normalize: mean, aggregate: max}", "{name: lp, p: 1}",
     "{name: fisher, samples: null, batches: 2, per: batch}", "{name: fpgm, distance: cosine}",
     "{name: bn_scale, otherwise: error, norms: any}", "{name: apoz, threshold: 0.1}"],
)  # fmt: skip
def test_valid_options_pass(importance, registry, tmp_path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(importance))
    load_recipe(path, registry, own_workload=True)


def test_a_rehearsal_says_that_the_data_are_missing(registry, tmp_path) -> None:
    from dataclasses import replace

    workload = replace(tiny_workload(), train=None)
    config = UniformConfig.model_validate({"budget": {"macs": 0.5}, "importance": "taylor"})
    run = Run(folder=tmp_path, seed=0, registry=registry)
    with pytest.raises(PlanError, match="importance 'taylor' needs training data"):
        UniformPruning().rehearse(workload, config, run)


def test_a_step_runs_a_criterion_on_the_workloads_data(registry, tmp_path) -> None:
    import slim_prune

    workload = tiny_workload()
    config = UniformConfig.model_validate({"budget": {"macs": 0.5}, "importance": {"name": "taylor", "samples": 48}})
    result = UniformPruning().run(workload, config, Run(folder=tmp_path, seed=0, registry=registry))
    plan = slim_prune.plan(
        workload.model, workload.example_inputs, {"macs": 0.5}, importance={"name": "taylor", "samples": 48},
        task=workload.task, train=workload.train,
    )  # fmt: skip
    assert result.workload.transforms[0].data == plan.transform().data
    cut, planned = result.workload.transforms[0].tensors, plan.transform().tensors
    assert all(torch.equal(cut[name], planned[name]) for name in planned)


def test_every_built_in_criterion_says_its_options() -> None:
    """The hint of a wrong value quotes the docstring: every option has a line there."""
    import inspect

    for name, lazy in IMPORTANCES.items():
        registered = lazy.resolve()
        parameters = inspect.signature(registered).parameters.values()
        options = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
        for option in options:
            assert importances._said_of(registered, option), (name, option)


class Ready:
    """Registered as an object."""

    needs = ()

    def prepare(self, context):
        return lambda group, tensors: torch.arange(float(group.units))


def test_an_object_may_be_registered_and_takes_no_options() -> None:
    registry = Registry()
    registry.add_kind("importances", "importance criterion", {})
    ready = Ready()
    registry.register("importances", "ready", ready, plugin="p")
    assert importances.resolve("ready", registry) == ("ready", ready)
    with pytest.raises(SlimError, match="importance 'ready' takes no options"):
        importances.resolve({"name": "ready", "x": 1}, registry)
    with pytest.raises(UnknownNameError):
        importances.check("red", registry)


def test_options_without_annotations_are_let_through() -> None:
    def loose(group, tensors, *, a, b: NoSuchName = 1):  # noqa: F821
        return torch.zeros(group.units)

    registry = Registry()
    registry.add_kind("importances", "importance criterion", {})
    registry.register("importances", "loose", loose, plugin="p")
    label, function = importances.resolve({"name": "loose", "a": object, "b": "x"}, registry)
    assert label.startswith("loose(a=")
    assert function.keywords["b"] == "x"


def test_random_follows_the_plans_seed_unless_it_has_its_own() -> None:
    import slim_prune

    workload = tiny_workload()

    def kept(importance, seed):
        plan = slim_prune.plan(workload.model, workload.example_inputs, {"macs": 0.5}, importance=importance, seed=seed)
        return {group.name: group.kept.tolist() for group in plan.groups}

    assert kept("random", 1) == kept({"name": "random", "seed": 1}, 7)
    assert kept("random", 1) != kept("random", 2)


def test_lists_of_recipes_pass_for_tuples() -> None:
    def several(group, tensors, *, sizes: tuple[int, ...] = (1,)):
        return torch.zeros(group.units)

    registry = Registry()
    registry.add_kind("importances", "importance criterion", {})
    registry.register("importances", "several", several, plugin="p")
    importances.check({"name": "several", "sizes": [1, 2]}, registry)
    with pytest.raises(SlimError, match="sizes=\\['a'\\] is not possible"):
        importances.check({"name": "several", "sizes": ["a"]}, registry)
