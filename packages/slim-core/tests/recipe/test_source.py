import sys

import pytest

from slim_core.errors import RecipeError
from slim_core.recipe.source import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_VALUES,
    from_mapping,
    parse_scalar,
    read_file,
    read_text,
    show_path,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E5", 1e5), ("-2.5e+2", -250.0), (".5", 0.5), ("5.", 5.0), ("0.1", 0.1),
        ("12", 12), ("-3", -3), ("+4", 4), ("007", 7),
        ("true", True), ("False", False), ("on", "on"), ("no", "no"), ("yes", "yes"),
        ("null", None), ("~", None), ("", None), ("None", "None"),
        ("2024-01-01", "2024-01-01"), ("12:30:00", "12:30:00"), ("0x10", "0x10"), ("1_000", "1_000"),
        ("1.2M", "1.2M"), (".inf", ".inf"), (".nan", ".nan"), ("1e999", "1e999"), ("e5", "e5"),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema_of_yaml_1_2(text, value):
    result = parse_scalar(text)
    assert result == value
    assert type(result) is type(value)


def test_quoted_numbers_stay_text():
    assert read_text("a: '1'\nb: \"true\"\nc: |\n  2\n").data == {"a": "1", "b": "true", "c": "2\n"}


def test_lines_of_keys_and_list_items_are_known():
    source = read_text("version: 1\nsteps:\n  - kind: a\n    fit:\n      epochs: 3\n  - kind: b\n", name="r.yaml")
    assert source.where(("version",)) == "r.yaml:1"
    assert source.where(("steps", 0, "kind")) == "r.yaml:3"
    assert source.where(("steps", 0, "fit", "epochs")) == "r.yaml:5"
    assert source.where(("steps", 1)) == "r.yaml:6"


def test_a_key_that_is_not_written_has_the_line_of_what_surrounds_it():
    source = read_text("version: 1\nworkload:\n  model: m\n", name="r.yaml")
    assert source.where(("workload", "data")) == "r.yaml:2"
    assert source.where(("nothing", "here")) == "r.yaml:1"


def test_aliases_are_unfolded():
    assert read_text("a: &x {b: 1}\nc: *x\n").data == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_duplicate_key_is_refused_with_both_lines():
    with pytest.raises(RecipeError) as caught:
        read_text("a:\n  seed: 1\n  b: 2\n  seed: 3\n", name="r.yaml")
    assert caught.value.what == "key 'a.seed' is written twice"
    assert caught.value.where == "r.yaml:4"
    assert "line 2" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    ["a: !!python/object/apply:os.system ['true']", "a: !custom 1", "!!map {a: 1}", "a: !!str 5", "? !!int 3\n: 1"],
)
def test_tags_are_refused(text):
    with pytest.raises(RecipeError, match="tags are not allowed"):
        read_text(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\nb: [1, 2\nc: 3\n", 3), ("a: 1\n\tb: 2\n", 2), ("a: 'x\n", 2), ("a: *nothing", 1), ("a: 1\n---\nb: 2", 2)],
)
def test_broken_yaml_names_the_line(text, line):
    with pytest.raises(RecipeError) as caught:
        read_text(text, name="r.yaml")
    assert caught.value.where == f"r.yaml:{line}"


def test_an_alias_bomb_is_refused_before_it_is_unfolded():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    calls = 0

    def count(_frame, event, _argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        with pytest.raises(RecipeError, match=f"more than {MAX_VALUES} values"):
            read_text("\n".join(lines))
    finally:
        sys.setprofile(None)
    assert calls < 20 * MAX_VALUES  # unfolding it would take 10**12 values


def test_a_recursive_alias_is_refused():
    with pytest.raises(RecipeError, match="unfolds into more than"):
        read_text("a: &a [*a]")


def test_deep_nesting_is_refused():
    assert read_text("[" * MAX_DEPTH + "]" * MAX_DEPTH).data
    with pytest.raises(RecipeError, match="nested deeper"):
        read_text("[" * 100_000)


def test_a_large_file_is_refused(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(RecipeError, match="larger than"):
        read_file(file)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_bytes(b"a: \xff")
    with pytest.raises(RecipeError, match="not UTF-8"):
        read_file(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="No such file") as caught:
        read_file(tmp_path / "r.yaml")
    assert caught.value.where == str(tmp_path / "r.yaml")


@pytest.mark.parametrize("text", ["{1: 2, [a]: 3}", "? {a: 1}\n: 2"])
def test_keys_must_be_scalars(text):
    with pytest.raises(RecipeError, match="a key must be text"):
        read_text(text)


def test_control_characters_are_refused():
    with pytest.raises(RecipeError, match="not valid YAML"):
        read_text("a: \x00")


def test_mappings_from_programs_are_copied_as_json_values():
    given = {"a": (1, 2), "b": {"c": None}}
    assert from_mapping(given).data == {"a": [1, 2], "b": {"c": None}}
    assert from_mapping(given).data["b"] is not given["b"]


@pytest.mark.parametrize("value", [object(), float("nan"), float("inf"), {1: 2}, {"x": {2, 3}}, b"bytes"])
def test_a_program_cannot_pass_what_json_cannot_hold(value):
    with pytest.raises(RecipeError):
        from_mapping({"a": value})


def test_a_recursive_mapping_is_refused():
    given: dict = {}
    given["a"] = given
    with pytest.raises(RecipeError, match="nested deeper"):
        from_mapping(given)


def test_paths_are_shown_as_people_write_them():
    assert show_path(("steps", 1, "fit", "epochs")) == "steps[1].fit.epochs"
    assert show_path(()) == ""
