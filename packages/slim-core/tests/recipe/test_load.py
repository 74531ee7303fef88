import json
from enum import Enum
from typing import ClassVar, Literal

import pytest
from pydantic import field_validator

from slim_core.errors import BudgetError, MissingExtraError, RecipeError
from slim_core.recipe import json_schema, load_recipe
from slim_core.registry import Registry
from slim_core.technique import StrictConfig
from slim_core.training import FitConfig


class Order(Enum):
    UP = "up"
    DOWN = "down"


class PruneConfig(StrictConfig):
    budget: dict[str, float | int | str]
    importance: str = "l1"
    include: tuple[str, ...] = ("*",)
    order: Order = Order.UP
    ratio: float = 0.5
    fit: FitConfig | None = None

    @field_validator("importance")
    @classmethod
    def _known(cls, value: str) -> str:
        if value == "broken":
            raise BudgetError("importance is broken", hint="mend it")
        return value


class Prune:
    """Takes channels away.

    More words.
    """

    name: ClassVar[str] = "prune.test"
    Config = PruneConfig


class QuantConfig(StrictConfig):
    bits: Literal[4, 8] = 8
    target: str = "here"


class Quant:
    name: ClassVar[str] = "quant.test"
    Config = QuantConfig

    @staticmethod
    def check(config, registry):
        if config.target not in ("here", "there"):
            raise MissingExtraError("target is not installed", hint="pip install target")


@pytest.fixture
def registry():
    registry = Registry()
    registry.register("techniques", "prune.test", Prune, plugin="t")
    registry.register("techniques", "quant.test", Quant, plugin="t")
    registry.register("models", "t/net", lambda width=1, *, depth=2: None, plugin="t")
    registry.register("datasets", "t/data", lambda **anything: None, plugin="t")
    registry.register("tasks", "t/task", lambda: None, plugin="t")
    registry.register("cost_models", "macs", object, plugin="t")
    registry.register("backends", "eager", object, plugin="t")
    registry.register("exporters", "onnx", object, plugin="t")
    return registry


RECIPE = """\
version: 1
seed: 7
workload:
  model: t/net
  kwargs: {width: 2}
  data: t/data
train: {epochs: 3, lr: 1e-2}
steps:
  - kind: prune.test
    budget: {macs: 0.5}
    include: [a.*, b]
    order: down
    ratio: 1
    fit:
      epochs: 4
  - kind: quant.test
    name: to int8
export: {}
measure: {backends: [eager], batch: [1, 32, 1]}
compare: {max_drop: 0.01}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        file = tmp_path / "r.yaml"
        file.write_text(text)
        return file

    return write


def problems(path, registry, **options):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, registry, **options)
    return [(item.what, (item.where or "").rpartition("/")[2], item.hint or "") for item in caught.value.problems]


def test_every_key_arrives(write, registry):
    recipe = load_recipe(write(RECIPE), registry)
    assert (recipe.name, recipe.seed, recipe.workload.model, recipe.workload.kwargs) == ("r", 7, "t/net", {"width": 2})
    assert (recipe.train.epochs, recipe.train.lr) == (3, 0.01)
    first, second = recipe.steps
    assert (first.index, first.kind, first.name) == (1, "prune.test", "prune.test")
    assert (second.index, second.kind, second.name) == (2, "quant.test", "to int8")
    assert first.config == PruneConfig(
        budget={"macs": 0.5}, include=("a.*", "b"), order=Order.DOWN, ratio=1.0, fit=FitConfig(epochs=4)
    )
    assert recipe.export.format == "onnx"
    assert recipe.measure.batches == (1, 32)
    assert recipe.compare.max_drop == 0.01


def test_the_resolved_recipe_is_a_recipe_with_the_same_meaning(write, registry):
    recipe = load_recipe(write(RECIPE), registry)
    again = load_recipe(recipe.resolved(), registry)
    assert again.resolved() == recipe.resolved()
    assert again.identity() == recipe.identity()
    assert again.steps == recipe.steps
    json.dumps(recipe.resolved(), allow_nan=False)


@pytest.mark.parametrize(
    "override", ["seed=8", "steps[0].budget.macs=0.4", "train.epochs=4", "workload.kwargs.depth=3"]
)
def test_identity_changes_with_what_decides_the_model(write, registry, override):
    path = write(RECIPE)
    assert load_recipe(path, registry, overrides=[override]).identity() != load_recipe(path, registry).identity()


@pytest.mark.parametrize(
    "override",
    ["name=other", "description=words", "measure.rounds=9", "compare.max_drop=0", "steps[0].name=x", "export=null"],
)
def test_identity_does_not_change_with_titles_and_measurement(write, registry, override):
    path = write(RECIPE)
    assert load_recipe(path, registry, overrides=[override]).identity() == load_recipe(path, registry).identity()


def test_identity_covers_the_bytes_of_the_weights_and_not_their_place(write, registry, tmp_path):
    path = write(RECIPE)
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (load_recipe(path, registry, overrides=[f"workload.weights={name}"]).identity() for name in "abc")
    assert a == b != c


def test_all_problems_are_told_at_once_in_the_order_of_lines(write, registry):
    text = """\
version: 1
sede: 7
workload:
  model: t/nett
  kwargs: {widht: 2}
  data: t/dta
  task: t/tsk
train: {epoch: 3}
steps:
  - kind: prune.tets
  - kind: prune.test
    budget: {mac: 0.5}
    fit:
      epochs: 0
      schedule: cosin
  - kind: quant.test
    bits: 7
    target: nowhere
export: {format: onx}
measure: {backends: [eagr], rounds: 1}
"""
    found = problems(write(text), registry)
    expected = [
        ("unknown key 'sede'", "r.yaml:2", "did you mean 'seed'"),
        ("unknown model 't/nett' at workload.model", "r.yaml:4", "did you mean 't/net'?"),
        ("unknown data set 't/dta' at workload.data", "r.yaml:6", "did you mean 't/data'?"),
        ("unknown task 't/tsk' at workload.task", "r.yaml:7", "did you mean 't/task'?"),
        ("unknown key 'epoch' at train", "r.yaml:8", "did you mean 'epochs'"),
        ("unknown technique 'prune.tets' at steps[0].kind", "r.yaml:10", "did you mean 'prune.test'"),
        ("'steps[1].fit.epochs' must be greater than or equal to 1, not 0", "r.yaml:14", ""),
        ("'steps[1].fit.schedule' must be 'cosine', 'step' or 'constant', not 'cosin'", "r.yaml:15", "'cosine'"),
        ("'steps[2].bits' must be 4 or 8, not 7", "r.yaml:17", ""),
        ("unknown exporter 'onx' at export.format", "r.yaml:19", "did you mean 'onnx'?"),
        ("'measure.rounds' must be greater than or equal to 3, not 1", "r.yaml:20", ""),
        ("unknown backend 'eagr' at measure.backends[0]", "r.yaml:20", "did you mean 'eager'?"),
    ]
    assert sorted(where_what(found)) == sorted(where_what(expected))
    hints = {what: hint for what, _, hint in found}
    assert all(hint in hints[what] for what, _, hint in expected)
    lines = [int(where.rpartition(":")[2]) for _, where, _ in found]
    assert lines == sorted(lines)


def where_what(rows):
    return [(where, what) for what, where, _ in rows]


def test_the_message_of_several_problems_tells_each(write, registry):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(RECIPE.replace("seed:", "sede:").replace("ratio: 1", "ratio: x")), registry)
    text = str(caught.value)
    assert "2 problems" in text
    assert "r.yaml:2" in text
    assert "r.yaml:13" in text
    assert "did you mean 'seed'" in text


@pytest.mark.parametrize(
    ("change", "what", "where", "hint"),
    [
        (
            ("    fit:\n      epochs: 4", "    fit:\n      epoch: 4"),
            "unknown key 'epoch' at steps[0].fit",
            15,
            "'epochs'",
        ),
        (("    ratio: 1", "    ration: 1"), "unknown key 'ration' at steps[0]", 13, "did you mean 'ratio'"),
        (("    name: to int8", "    nam: x"), "unknown key 'nam' at steps[1]", 17, "did you mean 'name'"),
        (
            ("  - kind: quant.test", "  - knd: quant.test"),
            "key 'kind' is missing at steps[1]",
            16,
            "did you mean 'knd'",
        ),
        (("    budget: {macs: 0.5}\n", ""), "key 'budget' is missing at steps[0]", 9, ""),
        (("  model: t/net\n", ""), "key 'model' is missing at workload", 3, ""),
        (("ratio: 1", "ratio: '1'"), "'steps[0].ratio' must be a number, not '1'", 13, "remove the quotes"),
        (("seed: 7", "seed: true"), "'seed' must be a whole number, not True", 2, ""),
        (("seed: 7", "seed: -1"), "'seed' must be greater than or equal to 0, not -1", 2, ""),
        (
            ("macs: 0.5", "macs: 150%"),
            "budget for 'macs' asks for more than the original: '150%' at steps[0].budget",
            10,
            "",
        ),
        (
            ("macs: 0.5", "latency:x: 4ms"),
            "unknown cost model 'latency:x' at steps[0].budget.latency:x",
            10,
            "slim-latency",
        ),
        (
            ("{width: 2}", "{widht: 2}"),
            "'t/net' takes no argument 'widht' at workload.kwargs",
            5,
            "did you mean 'width'?",
        ),
        (("    name: to int8", "    target: away"), "target is not installed at steps[1]", 16, "pip install target"),
        (("    ratio: 1", "    importance: broken"), "importance is broken at steps[0]", 9, "mend it"),
        (("version: 1", "version: 2"), "this is a recipe of version 2; this Slim reads version 1", 1, "pip install -U"),
        (("steps:", "stpes:"), "unknown key 'stpes'", 8, "did you mean 'steps'"),
        (("    include: [a.*, b]", "    include: a.*"), "'steps[0].include' must be a list, not 'a.*'", 11, ""),
        (
            ("batch: [1, 32, 1]", "batch: [1, 0]"),
            "'measure.batch[1]' must be greater than or equal to 1, not 0",
            19,
            "",
        ),
        (
            ("batch: [1, 32, 1]", "batch: x"),
            "'measure.batch' must be a whole number or must be a list, not 'x'",
            19,
            "",
        ),
        (("workload:", "workload:\n  weights: gone.safetensors"), "there is no file '", 4, "folder of the recipe"),
        (
            ("  data: t/data", "  data: t/data\n  task_kwargs: {a: 1}"),
            "'workload.task_kwargs' is given without 'workload.task'",
            7,
            "",
        ),
        (("  data: t/data\n", ""), "key 'data' is missing at workload", 3, ""),
    ],
)
def test_one_problem_names_key_line_and_remedy(write, registry, change, what, where, hint):
    assert change[0] in RECIPE
    found = problems(write(RECIPE.replace(*change)), registry)
    assert len(found) == 1, found
    assert found[0][0].startswith(what)
    assert found[0][1] == f"r.yaml:{where}"
    assert hint in found[0][2]


def test_a_technique_of_a_package_that_is_not_installed_names_the_package(registry):
    registry = Registry()
    registry.register("models", "t/net", lambda: None, plugin="t")
    registry.register("datasets", "t/data", lambda: None, plugin="t")
    found = problems(
        {"version": 1, "workload": {"model": "t/net", "data": "t/data"}, "steps": [{"kind": "prune.uniform"}]}, registry
    )
    assert "pip install slim-prune" in found[0][2]


@pytest.mark.parametrize(
    ("text", "what"),
    [("", "the recipe is empty"), ("- a\n- b\n", "the recipe is a list"), ("word", "the recipe is a str")],
)
def test_something_that_is_no_mapping_is_refused(write, registry, text, what):
    assert problems(write(text), registry)[0][0].startswith(what)


def test_an_unknown_recipe_names_close_files_and_recipes(write, registry, tmp_path):
    path = write(RECIPE)
    registry.register("recipes", "shipped-one", path, plugin="t")
    ((_, _, hint),) = problems(str(tmp_path / "r.yml"), registry)
    assert "'r.yaml'" in hint
    ((what, _, hint),) = problems("shiped-one", registry)
    assert what == "there is no recipe file and no installed recipe 'shiped-one'"
    assert "did you mean 'shipped-one'?" in hint


def test_an_installed_recipe_is_found_by_name(write, registry):
    registry.register("recipes", "shipped-one", write(RECIPE), plugin="t")
    assert load_recipe("shipped-one", registry).workload.model == "t/net"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("seed=3", lambda r: r.seed == 3),
        ("train.lr=1e-3", lambda r: r.train.lr == 1e-3),
        ("steps[0].budget.macs=0.25", lambda r: r.steps[0].config.budget == {"macs": 0.25}),
        ("steps[0].include=[x, y]", lambda r: r.steps[0].config.include == ("x", "y")),
        ("measure.batch=[4, 8]", lambda r: r.measure.batches == (4, 8)),
        ("train=null", lambda r: r.train is None),
        ("workload.data_kwargs.fold=2", lambda r: r.workload.data_kwargs == {"fold": 2}),
    ],
)
def test_overrides_change_one_key(write, registry, override, read):
    assert read(load_recipe(write(RECIPE), registry, overrides=[override]))


@pytest.mark.parametrize(
    ("override", "what", "where"),
    [
        ("seed", "cannot read '--set seed'", ""),
        ("=3", "cannot read '--set =3'", ""),
        ("steps[5].bits=4", "'--set steps[5].bits=4' fits nothing: steps has no '5'", "r.yaml"),
        ("seed.x=1", "'--set seed.x=1' fits nothing: seed has no 'x'", "r.yaml"),
        ("sede=1", "unknown key 'sede'", "--set sede=1"),
        ("train.epochs=x", "'train.epochs' must be a whole number, not 'x'", "--set train.epochs=x"),
    ],
)
def test_a_wrong_override_is_named(write, registry, override, what, where):
    ((found, at, _),) = problems(write(RECIPE), registry, overrides=[override])
    assert found.startswith(what)
    assert at == where


def test_the_schema_tells_steps_apart_by_kind(registry):
    schema = json_schema(registry)
    json.dumps(schema, allow_nan=False)
    choices = [choice["$ref"].removeprefix("#/$defs/") for choice in schema["properties"]["steps"]["items"]["oneOf"]]
    assert choices == ["prune.test", "quant.test"]
    prune = schema["$defs"]["prune.test"]
    assert prune["properties"]["kind"]["const"] == "prune.test"
    assert prune["required"] == ["kind", "budget"]
    assert prune["additionalProperties"] is False
    assert prune["description"] == "Takes channels away."
    assert set(prune["properties"]) == {"kind", "name", *PruneConfig.model_fields}
    assert set(schema["$defs"]["train"]["properties"]) == set(FitConfig.model_fields)
    assert schema["$defs"]["WorkloadSpec"]["properties"]["model"]["examples"] == ["t/net"]


def test_every_reference_of_the_schema_leads_somewhere(registry):
    schema = json_schema(registry)

    def references(node):
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    found = set(references(schema))
    assert found
    assert all(reference.removeprefix("#/$defs/") in schema["$defs"] for reference in found)
