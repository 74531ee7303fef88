"""Globs over module paths, and the errors of patterns that match nothing."""

from __future__ import annotations

import numpy as np
import pytest

from slim_core.errors import PatternError
from slim_core.graph.types import ChannelGroup, Coupling, Frozen, Graph, Member, SourceLine
from slim_prune.selection import by_pattern, check_patterns, matches, select

PATHS = ["", "stem", "layer1", "layer1.0", "layer1.0.conv1", "layer1.0.conv2", "layer2", "layer2.0.conv1", "head"]


def group(name: str, *others: tuple[str, str]) -> ChannelGroup:
    index = np.arange(4)[:, None]
    members = [Member(f"{name}.weight", 0, index, "out", name)]
    members += [Member(f"{module}.weight", 1, index, kind, module) for module, kind in others]
    return ChannelGroup(name, 4, tuple(members))


GROUPS = (
    group("stem", ("layer1.0.conv2", "out"), ("layer1.0.conv1", "in"), ("layer2.0.conv1", "in")),
    group("layer1.0.conv1", ("layer1.0.conv2", "in")),
    group("layer2.0.conv1", ("head", "in")),
)
FROZEN = (Frozen("head.weight", 0, 10, "model output", SourceLine("net.py", 7, "return self.head(x)")),)
COUPLING = Coupling(Graph((), (), (), (), "meta", "Net"), GROUPS, FROZEN, (), {})


def names(**kwargs) -> list[str]:
    return [g.name for g in select(COUPLING, PATHS, **kwargs)]


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("stem", "stem", True),
        ("layer1", "layer1.0.conv1", True),
        ("layer1.*", "layer1.0.conv1", True),
        ("*.conv1", "layer1.0.conv1", True),
        ("layer", "layer1", False),
        ("layer?", "layer1.0.conv1", True),
        ("layer[2-9]*", "layer1.0", False),
        ("conv1", "layer1.0.conv1", False),
        ("LAYER1", "layer1", False),
    ],
)
def test_a_pattern_matches_a_module_or_one_around_it(pattern, path, expected) -> None:
    assert matches(pattern, path) is expected


def test_everything_is_selected_by_default() -> None:
    assert names() == ["stem", "layer1.0.conv1", "layer2.0.conv1"]


def test_include_looks_at_modules_that_make_channels() -> None:
    assert names(include=["layer1"]) == ["stem", "layer1.0.conv1"]  # layer1.0.conv2 makes the stem's channels too
    assert names(include=["layer2.*"]) == ["layer2.0.conv1"]  # it only consumes those of the stem


def test_exclude_looks_at_all_members_and_wins() -> None:
    assert names(exclude=["layer2"]) == ["layer1.0.conv1"]
    assert names(include=["layer1"], exclude=["stem"]) == ["layer1.0.conv1"]


def test_excluding_a_frozen_layer_is_no_error() -> None:
    assert names(exclude=["head"]) == ["stem", "layer1.0.conv1"]


def test_a_pattern_that_matches_nothing_lists_close_names() -> None:
    with pytest.raises(PatternError) as error:
        names(include=["layer3.0.conv1"])
    assert "'layer3.0.conv1' matches no module" in str(error.value)
    assert "layer1.0.conv1" in str(error.value)
    assert "layer2.0.conv1" in str(error.value)
    with pytest.raises(PatternError, match="stem"):
        names(exclude=["*stm*"])


def test_a_pattern_close_to_nothing_lists_some_names() -> None:
    with pytest.raises(PatternError, match="for example: stem"):
        check_patterns(["zzzzzzzzzzzzzz"], PATHS)


def test_including_only_what_is_frozen_says_why() -> None:
    with pytest.raises(PatternError) as error:
        names(include=["head"])
    assert "none whose channels can be pruned" in str(error.value)
    assert "'head.weight' is frozen: model output (net.py:7: return self.head(x))" in str(error.value)


def test_the_first_matching_pattern_gives_the_value() -> None:
    values = {"layer1.0.conv1": 0.25, "layer*": 0.5}
    assert [by_pattern(g, values) for g in GROUPS] == [0.5, 0.25, 0.5]
    assert by_pattern(GROUPS[0], {"layer2": 1}) is None
