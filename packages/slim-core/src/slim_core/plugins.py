"""The plugin host: loads every plugin in isolation, and keeps what became of each.

``load_plugins()`` makes a host; there is no global one. A plugin is a transaction: it is imported, its hooks are
checked against their specifications, its registering hooks run. If anything of that raises, everything that it
registered is taken back and the next plugin loads as if this one were not installed.

What isolation covers: every exception, ``SystemExit`` and exceptions outside ``Exception`` included, and text that
a plugin prints to ``sys.stdout`` while it loads (it is kept, and shown by ``slim plugins``). What it cannot cover:
``KeyboardInterrupt``, because that is the user's Ctrl-C and must end the program; and a plugin that ends or crashes
the process itself (``os._exit``, a segmentation fault).

Environment: ``SLIM_PLUGINS=a,b`` selects plugins by entry-point or distribution name (empty: none);
``SLIM_STRICT_PLUGINS=1`` raises on the first failure; ``SLIM_TRACE_PLUGINS=1`` prints each hook call to stderr.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, TypeVar

import pluggy

from slim_core import builtin, hookspecs
from slim_core.discovery import CORE, Candidate, core_version, describe, entry_point_candidates, import_file, place
from slim_core.errors import PluginError, close_match
from slim_core.register import marked
from slim_core.registry import Registry

T = TypeVar("T")
Status = Literal["ok", "failed", "skipped", "duplicate"]
_SLOW_IMPORT_MS = 300.0  # `slim --help` answers in half a second, and imports every plugin
_COMMANDS = "slim_register_commands"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one plugin.

    Args:
        name: entry-point name, module name or file name.
        distribution: the package that it came in.
        version: that package's version.
        status: ``"ok"``; ``"failed"``; ``"skipped"`` (not selected); ``"duplicate"`` (its name was taken).
        reason: why it is not ``"ok"``.
        hooks: the hooks that it implements.
        registered: registry kind (or ``"commands"``) to the names that it registered.
        import_ms: how long its import took.
        notes: what its author should know, although it loaded.
        traceback: the whole traceback of a failure.
    """

    name: str
    distribution: str | None
    version: str | None
    status: Status
    reason: str | None = None
    hooks: tuple[str, ...] = ()
    registered: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    import_ms: float | None = None
    notes: tuple[str, ...] = ()
    traceback: str | None = None

    def __str__(self) -> str:
        package = " ".join(part for part in (self.distribution, self.version) if part)
        return f"'{self.name}' ({package})" if package else f"'{self.name}'"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "distribution": self.distribution,
            "version": self.version,
            "status": self.status,
            "reason": self.reason,
            "hooks": list(self.hooks),
            "registered": {kind: list(names) for kind, names in self.registered.items()},
            "import_ms": None if self.import_ms is None else round(self.import_ms, 2),
            "notes": list(self.notes),
            "traceback": self.traceback,
        }


class CommandLine(Protocol):
    """What :meth:`PluginHost.register_commands` needs of a command line."""

    def fresh(self) -> Any:
        """Return an empty group for one plugin to add to."""

    def adopt(self, group: Any, plugin: str) -> tuple[str, ...]:
        """Take over the commands of ``group``; raise if a name is taken."""


class PluginHost:
    """The loaded plugins and what they registered. Made by :func:`load_plugins`."""

    def __init__(self, *, strict: bool = False, trace: bool = False) -> None:
        self.registry = Registry()
        self.manager = pluggy.PluginManager("slim")
        self.manager.add_hookspecs(hookspecs)
        self._strict = strict
        self._outcomes: dict[str, Outcome] = {}
        self._modules: dict[str, Any] = {}
        self._commands_of: set[str] = set()
        self.manager.add_hookcall_monitoring(self._before_call if trace else _ignore, self._after_call)

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What became of each plugin, in loading order."""
        return tuple(self._outcomes.values())

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The plugins that failed, or whose name was taken."""
        return tuple(outcome for outcome in self.outcomes if outcome.status in ("failed", "duplicate"))

    def load(self, candidates: Iterable[Candidate]) -> None:
        """Load plugins: import all, then let all add hookspecs, then let each register."""
        loaded = [candidate for candidate in candidates if self._import(candidate)]
        loaded = [candidate for candidate in loaded if self._add_hookspecs(candidate)]
        for candidate in loaded:
            self._enter(candidate)

    def load_file(self, path: str | os.PathLike[str]) -> Outcome:
        """Load one local Python file as a plugin: its hooks, and what ``slim_core.register`` marked.

        Raises:
            PluginError: the file is not there, raised, or its registrations clash; ``where`` is file and line.
        """
        file = Path(path).resolve()
        name = file.name if self._modules.get(file.name) is None else str(file)
        known = getattr(self._modules.get(file.name), "__file__", None)
        if known == str(file):
            return self._outcomes[file.name]
        strict, self._strict = self._strict, True
        try:
            held = _digest(file)
            self.load([Candidate(name, None, None, lambda: import_file(file))])
        except PluginError:
            self._outcomes.pop(name, None)
            raise
        finally:
            self._strict = strict
        self.registry.files[file.name] = held
        return self._outcomes[name]

    def register_commands(self, cli: CommandLine) -> None:
        """Let the plugins that have not done so add their commands to ``cli``."""
        for name, module in list(self._modules.items()):
            if name not in self._commands_of:
                self._commands_of.add(name)
                self._isolated(name, "adding its commands", partial(self._add_commands, name, module, cli))

    def _add_commands(self, name: str, module: Any, cli: CommandLine) -> None:
        group = cli.fresh()
        self._attempt(name, partial(self._call, module, _COMMANDS, cli=group))
        names = cli.adopt(group, name)
        outcome = self._outcomes[name]
        if names:
            self._outcomes[name] = replace(outcome, registered={**outcome.registered, "commands": names})

    def _import(self, candidate: Candidate) -> bool:
        name = candidate.name
        first = self._outcomes.get(name)
        if first is not None:
            taken = f"{name} ({candidate.distribution})"  # the key; the name that people read stays
            holder = " ".join(filter(None, [first.distribution, first.version])) or "another plugin"
            reason = f"the plugin name '{name}' is taken by {holder}"
            self._outcomes[taken] = Outcome(name, candidate.distribution, candidate.version, "duplicate", reason)
            self._raise_if_strict(self._outcomes[taken])
            return False
        self._outcomes[name] = Outcome(name, candidate.distribution, candidate.version, "ok")

        def body() -> None:
            if candidate.refusal is not None:
                raise PluginError(candidate.refusal)
            torch_before = "torch" in sys.modules
            start = time.perf_counter()
            module = self._attempt(name, candidate.load)
            took = (time.perf_counter() - start) * 1e3
            if module is None:
                raise PluginError("its entry point is None instead of a module or an object with hooks")
            notes = _import_notes(took, imported_torch=not torch_before and "torch" in sys.modules)
            outcome = self._outcomes[name]
            self._outcomes[name] = replace(outcome, import_ms=took, notes=(*outcome.notes, *notes))
            self._modules[name] = module

        return self._isolated(name, "importing", body)

    def _add_hookspecs(self, candidate: Candidate) -> bool:
        """Call ``slim_add_hookspecs``, on a manager of its own: the plugin is not yet registered in ours."""
        name, module = candidate.name, self._modules[candidate.name]
        hooks, kinds = set(vars(self.manager.hook)), set(self.registry.kinds())

        def body() -> None:
            scratch = pluggy.PluginManager("slim")
            scratch.add_hookspecs(hookspecs)
            scratch.register(module, name)
            scratch.hook.slim_add_hookspecs(pluginmanager=self.manager, registry=self.registry)

        if self._isolated(name, "adding hookspecs", partial(self._attempt, name, body)):
            return True
        for hook in set(vars(self.manager.hook)) - hooks:
            delattr(self.manager.hook, hook)
        for kind in set(self.registry.kinds()) - kinds:
            self.registry.remove_kind(kind)
        return False

    def _enter(self, candidate: Candidate) -> None:
        """Register a plugin in the manager and run its registering hooks."""
        name, module = candidate.name, self._modules[candidate.name]

        def body() -> None:
            holder = self.manager.get_name(module)
            if holder is not None:
                raise PluginError(f"its module is loaded already, as plugin {self.label(holder)}")
            hooks, unmarked = self._hooks_of(module)
            self._attempt(name, partial(self.manager.register, module, name))
            for kind in self.registry.kinds():
                if f"slim_register_{kind}" in hooks:
                    self._attempt(name, partial(self._register, name, module, kind))
            if isinstance(module, ModuleType):
                for kind, key, value in marked(module):
                    self.registry.register(kind, key, value, plugin=name)
            outcome = self._outcomes[name]
            notes = [f"defines {hook} without @hookimpl: it is never called" for hook in unmarked]
            self._outcomes[name] = replace(
                outcome, hooks=hooks, registered=self.registry.registered_by(name), notes=(*outcome.notes, *notes)
            )

        if self._isolated(name, "registering", body) and candidate.distribution is not None:
            self.registry.installed.add(candidate.distribution)

    def _hooks_of(self, module: Any) -> tuple[tuple[str, ...], list[str]]:
        """Return the hooks that ``module`` implements, and functions that look like hooks and are not marked.

        Raises:
            PluginError: it implements a hook that nobody specified.
        """
        known = [name for name, caller in vars(self.manager.hook).items() if getattr(caller, "spec", None) is not None]
        hooks, unmarked = [], []
        for attribute in dir(module):
            options = self.manager.parse_hookimpl_opts(module, attribute)
            if options is None:
                if attribute in known and callable(getattr(module, attribute, None)):
                    unmarked.append(attribute)
                continue
            hook = options.get("specname") or attribute
            if hook not in known and not options.get("optionalhook"):
                optional = "for a hook of a plugin that may be absent: @hookimpl(optionalhook=True)"
                raise PluginError(
                    f"implements '{hook}', which neither slim-core nor a loaded plugin specifies",
                    hint="; ".join(filter(None, [close_match(hook, known), optional])),
                )
            hooks.append(hook)
        return tuple(sorted(hooks)), unmarked

    def _register(self, name: str, module: Any, kind: str) -> None:
        """Run one registering hook of one plugin."""
        running = True

        def register(key: str, value: Any) -> None:
            if not running:
                raise PluginError(f"'{key}' was registered after the hook had returned")
            self.registry.register(kind, key, value, plugin=name)

        try:
            self._call(module, f"slim_register_{kind}", register=register)
        finally:
            running = False

    def _call(self, module: Any, hook: str, **arguments: Any) -> None:
        """Call one plugin's implementations of a hook."""
        others = [other for other in self._modules.values() if other is not module]
        self.manager.subset_hook_caller(hook, remove_plugins=others)(**arguments)

    def _attempt(self, name: str, action: Callable[[], T]) -> T:
        """Run a plugin's code with its standard output kept apart."""
        printed = _Kept()
        try:
            with redirect_stdout(printed):
                return action()
        finally:
            if printed.getvalue():
                text = " ".join(printed.getvalue().split())
                shown = text if len(text) <= 60 else text[:57] + "..."
                outcome = self._outcomes[name]
                note = f"printed to standard output while loading: {shown!r}"
                self._outcomes[name] = replace(outcome, notes=(*outcome.notes, note))

    def _isolated(self, name: str, doing: str, body: Callable[[], object]) -> bool:
        """Run ``body``; whatever it raises becomes a failed outcome, and what the plugin registered is taken back."""
        try:
            body()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything: SystemExit, pytest's Skipped, …
            self._fail(name, doing, error)
            return False
        return True

    def _fail(self, name: str, doing: str, error: BaseException) -> None:
        outcome = self._outcomes[name]
        self._modules.pop(name, None)
        if self.manager.has_plugin(name):
            self.manager.unregister(name=name)
        self.registry.forget(name)
        where = error.where if isinstance(error, PluginError) else place(error)
        reason = describe(error)
        if isinstance(error, pluggy.PluginValidationError):
            reason = f"bad hook signature: {' '.join(str(error).split())}"
        elif not isinstance(error, PluginError):
            reason = f"{doing}: {reason}"
        self._outcomes[name] = replace(
            outcome,
            status="failed",
            reason=f"{reason} ({where})" if where else reason,
            hooks=(),
            registered={},
            traceback="".join(traceback.format_exception(error)),
        )
        if self._strict and isinstance(error, PluginError) and outcome.distribution is None:
            raise error  # a local file: the error names it already
        self._raise_if_strict(self._outcomes[name], error)

    def _raise_if_strict(self, outcome: Outcome, cause: BaseException | None = None) -> None:
        if self._strict:
            raise PluginError(
                f"plugin {outcome} failed: {outcome.reason}",
                hint="`slim plugins` lists every plugin; SLIM_PLUGINS selects which are loaded",
            ) from cause

    def _before_call(self, hook: str, impls: Sequence[Any], arguments: Mapping[str, Any]) -> None:
        for impl in reversed(impls):
            sys.stderr.write(f"slim: {hook} -> {self.label(impl.plugin_name)}\n")

    def _after_call(self, result: Any, hook: str, impls: Sequence[Any], arguments: Mapping[str, Any]) -> None:
        """Say in an exception which plugin's hook raised it."""
        error = result.exception
        if error is None:
            return
        codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
        for impl in impls:
            function = getattr(impl.function, "__func__", impl.function)
            if getattr(function, "__code__", None) in codes:
                error.add_note(f"raised by hook {hook} of plugin {self.label(impl.plugin_name)}")

    def label(self, name: str) -> str:
        """Return a plugin's name with its package and version, for messages."""
        return str(self._outcomes[name]) if name in self._outcomes else f"'{name}'"


def load_plugins(
    *,
    group: str = "slim",
    select: Sequence[str] | None = None,
    strict: bool | None = None,
    extra: Sequence[ModuleType | str | os.PathLike[str]] = (),
) -> PluginHost:
    """Find and load all plugins.

    Args:
        group: the entry-point group to look in.
        select: names of plugins or distributions to load; ``None``: what ``SLIM_PLUGINS`` says, or all.
        strict: raise on the first failure; ``None``: what ``SLIM_STRICT_PLUGINS`` says.
        extra: modules, dotted module names, or paths of Python files (``*.py``) to load as plugins too.

    Raises:
        PluginError: ``strict``, and a plugin failed; or a file in ``extra`` cannot be loaded.
    """
    if select is None and "SLIM_PLUGINS" in os.environ:
        select = [name.strip() for name in os.environ["SLIM_PLUGINS"].split(",") if name.strip()]
    if strict is None:
        strict = _switched_on("SLIM_STRICT_PLUGINS")
    host = PluginHost(strict=strict, trace=_switched_on("SLIM_TRACE_PLUGINS"))
    candidates = [Candidate(CORE, CORE, core_version(), lambda: builtin)]
    files = []
    wanted, left_out = _choose(entry_point_candidates(group), select)
    candidates += wanted
    for item in extra:
        if isinstance(item, ModuleType):
            candidates.append(Candidate(item.__name__, None, None, partial(_same, item)))
        elif isinstance(item, str) and not item.endswith(".py"):
            candidates.append(Candidate(item, None, None, partial(import_module, item)))
        else:
            files.append(item)
    host.load(candidates)
    for outcome in left_out:
        host._outcomes.setdefault(outcome.name, outcome)
        if outcome.status == "failed":
            host._raise_if_strict(outcome)
    for file in files:
        host.load_file(file)
    return host


def _choose(found: list[Candidate], select: Sequence[str] | None) -> tuple[list[Candidate], list[Outcome]]:
    """Split what was found into what is selected and outcomes for the rest."""
    if select is None:
        return found, []
    chosen = {_canonical(name) for name in select}
    wanted = [c for c in found if chosen & {_canonical(c.name), _canonical(c.distribution or c.name)}]
    rest = [
        Outcome(c.name, c.distribution, c.version, "skipped", "not selected (SLIM_PLUGINS)")
        for c in found
        if c not in wanted
    ]
    names = {c.name for c in found} | {c.distribution for c in found if c.distribution} | {CORE}
    canonical = {_canonical(name) for name in names}
    for name in select:
        if _canonical(name) not in canonical:
            reason = " ".join(filter(None, ["selected, but not installed;", close_match(name, names)])).rstrip(";")
            rest.append(Outcome(name, None, None, "failed", reason))
    return wanted, rest


class _Kept(io.StringIO):
    """Takes what a plugin prints, also when the plugin closes it."""

    def close(self) -> None:
        pass


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def _switched_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no")


def _import_notes(took_ms: float, *, imported_torch: bool) -> list[str]:
    if imported_torch:
        return ["imports torch at import time, which makes every command slow: register slim_core.Lazy references"]
    if took_ms > _SLOW_IMPORT_MS:
        return [f"took {took_ms:.0f} ms to import, which makes every command slow: register slim_core.Lazy references"]
    return []


def _ignore(hook: str, impls: Sequence[Any], arguments: Mapping[str, Any]) -> None:
    pass


def _same(module: ModuleType) -> ModuleType:
    return module


def _digest(file: Path) -> str:
    """Return what tells versions of a local file apart; of a file that cannot be read, whose import says so."""
    try:
        return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
    except OSError:
        return "unreadable"
