"""What errors say, and that they survive the ways in which errors travel."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from slim_core import errors
from slim_core.errors import CheckpointError, RecipeError, SlimError, close_match

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, SlimError)]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SlimError("what"), "what"),
        (SlimError("what", where="here"), "what\n  where: here"),
        (SlimError("what", hint="that"), "what\n  do:    that"),
        (SlimError("what", where="here", hint="that"), "what\n  where: here\n  do:    that"),
        (CheckpointError("is cut off", field="tensors.a"), "tensors.a: is cut off"),
    ],
)
def test_an_error_says_what_where_and_what_to_do(error: SlimError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_caught_as_slim_error(kind: type[SlimError]) -> None:
    with pytest.raises(SlimError, match="what"):
        raise kind("what", where="here", hint="that")


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("travel", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_errors_cross_processes_whole(kind: type[SlimError], travel: object) -> None:
    error = kind("what", where="here", hint="that")
    again = travel(error)  # type: ignore[operator]
    assert type(again) is kind
    assert str(again) == str(error)
    assert (again.what, again.where, again.hint) == ("what", "here", "that")


def test_a_recipe_error_is_its_own_only_problem() -> None:
    error = RecipeError("unknown key")
    assert error.problems == (error,)
    assert RecipeError("two problems", problems=[error, error]).problems == (error, error)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mobilenet", "did you mean 'mobilenet_v1'?"),
        ("resnet8", "did you mean 'resnet18' or 'resnet50'?"),
        ("xyz", ""),
    ],
)
def test_close_match(name: str, text: str) -> None:
    assert close_match(name, ["resnet18", "resnet50", "mobilenet_v1"]) == text


def test_no_error_class_lacks_a_docstring() -> None:
    assert [kind.__name__ for kind in CLASSES if not kind.__doc__] == []
