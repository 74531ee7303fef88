"""The JSON schema of recipes, for editors: the core's keys, and those of every technique that is installed."""

from __future__ import annotations

from typing import Any

from slim_core.errors import SlimError
from slim_core.recipe.schema import Skeleton
from slim_core.registry import Registry


def json_schema(registry: Registry) -> dict[str, Any]:
    """Return a JSON schema (draft 2020-12) whose steps are told apart by ``kind``.

    Techniques that cannot be imported are left out, with the reason in ``$comment``.
    """
    from slim_core.training import FitConfig

    schema = Skeleton.model_json_schema(ref_template="#/$defs/{model}")
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Slim recipe"
    schema.pop("description", None)
    properties = schema["properties"]
    about = properties["train"].get("description", "")
    _add(definitions, "train", FitConfig.model_json_schema(ref_template="#/$defs/train.{model}"))
    properties["train"] = {
        "anyOf": [{"$ref": "#/$defs/train"}, {"type": "null"}],
        "default": None,
        "description": about,
    }

    kinds, left_out = [], []
    for name in registry.names("techniques"):
        try:
            technique = registry.get("techniques", name)
            config = technique.Config.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        except (SlimError, ImportError) as error:
            left_out.append(f"{name}: {error}")
            continue
        _add(definitions, name, _step(name, config, technique.__doc__))
        kinds.append(name)
    properties["steps"]["items"] = {
        "oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in kinds],
        "discriminator": {"propertyName": "kind", "mapping": {kind: f"#/$defs/{kind}" for kind in kinds}},
    }
    if left_out:
        schema["$comment"] = "not importable here: " + "; ".join(left_out)
    for block, key, kind in (
        ("WorkloadSpec", "model", "models"),
        ("WorkloadSpec", "data", "datasets"),
        ("WorkloadSpec", "task", "tasks"),
        ("ExportSpec", "format", "exporters"),
    ):
        _suggest(definitions[block]["properties"][key], registry.names(kind))
    _suggest(definitions["MeasureSpec"]["properties"]["backends"]["items"], registry.names("backends"))
    return schema


def _step(name: str, config: dict[str, Any], doc: str | None) -> dict[str, Any]:
    step = dict(config)
    step["title"] = name
    if doc:
        step["description"] = doc.strip().splitlines()[0]
    own = {
        "kind": {"const": name, "description": "the technique"},
        "name": {"type": "string", "minLength": 1, "maxLength": 200, "description": "what the report calls the step"},
    }
    step["properties"] = {**own, **step.get("properties", {})}
    step["required"] = ["kind", *step.get("required", [])]
    step["type"] = "object"
    step["additionalProperties"] = False
    return step


def _add(definitions: dict[str, Any], name: str, schema: dict[str, Any]) -> None:
    """Add a schema and, under ``name.``, the definitions that it brings."""
    inner = schema.pop("$defs", {})
    definitions[name] = schema
    definitions.update({f"{name}.{key}": value for key, value in inner.items()})


def _suggest(schema: dict[str, Any], names: tuple[str, ...]) -> None:
    """Offer registered names to the editor without forbidding others: a ``--load`` file may bring more."""
    if names:
        schema["examples"] = list(names)
