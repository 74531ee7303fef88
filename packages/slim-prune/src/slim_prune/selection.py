"""Which channel groups a plan may touch: include and exclude globs, and per-layer values by glob.

A pattern is a shell-style glob over module paths (``*`` also crosses dots). It matches a module when it matches the
module's path or the path of a module around it, so ``"layer1"`` covers everything inside ``layer1``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from slim_core.errors import PatternError, close_match
from slim_core.graph.types import ChannelGroup, Coupling

T = TypeVar("T")


def matches(pattern: str, path: str) -> bool:
    """Return whether ``pattern`` matches the module ``path`` or a module around it."""
    while True:
        if fnmatchcase(path, pattern):
            return True
        if "." not in path:
            return False
        path = path.rsplit(".", 1)[0]


def producers(group: ChannelGroup) -> list[str]:
    """Return the paths of the modules that make the group's channels."""
    making = [member.module for member in group.members if member.kind == "out"]
    return list(dict.fromkeys(making or [member.module for member in group.members]))


def select(
    coupling: Coupling, paths: Iterable[str], *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[ChannelGroup]:
    """Return the groups that may be pruned, in the order of the coupling.

    A group is included when the module of any member that *makes* its channels matches ``include`` (everything, when
    that is empty), and excluded when the module of *any* member matches ``exclude``: removing a channel changes all
    of them.

    Args:
        coupling: the analysis.
        paths: all module paths of the model, for finding patterns that match nothing.
        include: globs.
        exclude: globs; they win over ``include``.

    Raises:
        PatternError: a pattern matches no module, or ``include`` matches only modules that cannot be pruned.
    """
    known = list(paths)
    check_patterns([*include, *exclude], known)
    chosen = [group for group in coupling.groups if _touched(group, include, exclude)]
    for pattern in include:
        if not any(matches(pattern, path) for group in coupling.groups for path in producers(group)):
            raise PatternError(
                f"pattern '{pattern}' matches modules, but none whose channels can be pruned",
                hint=_why_frozen(coupling, pattern) or "`slim graph MODEL` lists the channel groups and what is frozen",
            )
    return chosen


def by_pattern(group: ChannelGroup, values: Mapping[str, T]) -> T | None:
    """Return the value of the first pattern that matches a module that makes the group's channels, or ``None``."""
    for pattern, value in values.items():
        if any(matches(pattern, path) for path in producers(group)):
            return value
    return None


def check_patterns(patterns: Iterable[str], paths: Sequence[str]) -> None:
    """Check that each pattern matches one of ``paths``.

    Raises:
        PatternError: one matches none; says which, with the close names.
    """
    for pattern in patterns:
        if any(matches(pattern, path) for path in paths):
            continue
        known = [path for path in paths if path]
        bare = pattern.replace("*", "").strip(".")
        hint = close_match(pattern, known) or close_match(bare, known) or close_match(bare, {_last(p) for p in known})
        raise PatternError(
            f"pattern '{pattern}' matches no module of the model",
            hint=hint or f"the model has for example: {', '.join(known[:5]) or 'no submodules'}",
        )


def _touched(group: ChannelGroup, include: Sequence[str], exclude: Sequence[str]) -> bool:
    if include and not any(matches(pattern, path) for pattern in include for path in producers(group)):
        return False
    return not any(matches(pattern, member.module) for pattern in exclude for member in group.members)


def _why_frozen(coupling: Coupling, pattern: str) -> str:
    for frozen in coupling.frozen:
        if matches(pattern, frozen.name.rpartition(".")[0]):
            line = f" ({frozen.source})" if frozen.source else ""
            return f"'{frozen.name}' is frozen: {frozen.reason}{line}"
    return ""


def _last(path: str) -> str:
    return path.rsplit(".", 1)[-1]
