"""What plugins register by name, and the errors for names that nobody registered.

Registering must stay cheap, because ``slim --help`` loads every plugin: register a :class:`Lazy` reference
for whatever would import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from slim_core.errors import PluginError, SlimError, UnknownNameError, close_match

#: kind -> (word for messages, prefix or name -> package that would bring it)
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "techniques": (
        "technique",
        {"prune.": "slim-prune", "quant.": "slim-quant", "distill.": "slim-distill", "nas.": "slim-nas"},
    ),
    "models": ("model", {"zoo/": "slim-zoo"}),
    "datasets": ("data set", {"digits": "slim-zoo", "fashion-mnist": "slim-zoo"}),
    "tasks": ("task", {}),
    "cost_models": ("cost model", {"latency:": "slim-latency"}),
    "backends": ("backend", {"onnxruntime": "slim-latency", "openvino": "slim-latency", "ncnn": "slim-latency"}),
    "losses": ("loss", {"distill.": "slim-distill"}),
    "exporters": ("exporter", {}),
    "transforms": ("checkpoint transform", {"prune.": "slim-prune", "quant.": "slim-quant", "nas.": "slim-nas"}),
    "op_rules": ("operator rule", {}),
    "recipes": ("recipe", {}),
}

_FEW = 8  # so many names are listed beside a close match; more would hide it


@dataclass(frozen=True, slots=True)
class Lazy:
    """A reference to ``module:attribute`` that is imported when it is first asked for.

    Plugins write these in Python; no data file ever names one.
    """

    module: str
    attribute: str

    def resolve(self) -> Any:
        """Import the module and return the attribute; whatever the import raises comes through."""
        return getattr(import_module(self.module), self.attribute)


def said(error: Exception) -> str:
    """Return what an import raised: the words of an ImportError or AttributeError, of others the type too."""
    if isinstance(error, ImportError | AttributeError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered thing and the plugin that registered it."""

    name: str
    value: Any
    plugin: str


class Register(Protocol):
    """The callback that a ``slim_register_*`` hook receives."""

    def __call__(self, name: str, value: Any) -> None: ...


class Commands(Protocol):
    """What ``slim_register_commands`` receives: a click group with one more method."""

    def add_command(self, cmd: Any, name: str | None = None) -> None:
        """Add a click command."""

    def add_lazy(self, name: str, target: Lazy, help: str) -> None:
        """Add a click command that is imported when it is run; ``help`` is its line in ``slim --help``."""


class Registry:
    """Names of all kinds, filled by the plugin host."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
        self._words: dict[str, tuple[str, dict[str, str]]] = dict(KINDS)
        #: distributions whose plugins are loaded, so that an error does not ask to install one of them
        self.installed: set[str] = set()
        #: local files that are loaded as plugins (``--load``), by name: ``sha256:…`` of what they held, shortened
        self.files: dict[str, str] = {}

    def add_kind(self, kind: str, word: str, providers: dict[str, str] | None = None) -> None:
        """Declare a further kind (``"importances"``), as plugins with hookspecs of their own do."""
        self._entries.setdefault(kind, {})
        self._words.setdefault(kind, (word, providers or {}))

    def remove_kind(self, kind: str) -> None:
        """Take a kind back, with everything registered in it."""
        self._entries.pop(kind, None)
        self._words.pop(kind, None)

    def kinds(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def register(self, kind: str, name: str, value: Any, *, plugin: str) -> None:
        """Add ``value`` under ``name``.

        Raises:
            SlimError: another plugin registered this name already, or the name has blanks or is not text.
        """
        entries = self._of(kind)
        if not isinstance(name, str) or not name or any(character.isspace() for character in name):
            raise SlimError(
                f"{name!r} cannot be the name of a {self._words[kind][0]}", hint="a name is text without blanks"
            )
        if value is None:
            raise SlimError(f"{self._words[kind][0]} '{name}' was registered as None")
        if name in entries:
            raise SlimError(
                f"{self._words[kind][0]} '{name}' is registered twice: by plugin "
                f"'{entries[name].plugin}' and by plugin '{plugin}'",
                hint=f"rename it in '{plugin}', or set SLIM_PLUGINS to leave one of the two out",
            )
        entries[name] = Entry(name, value, plugin)

    def forget(self, plugin: str) -> None:
        """Remove everything that ``plugin`` registered."""
        for entries in self._entries.values():
            for name in [name for name, entry in entries.items() if entry.plugin == plugin]:
                del entries[name]

    def registered_by(self, plugin: str) -> dict[str, tuple[str, ...]]:
        """Return what ``plugin`` registered: kind to names, without the kinds where it has none."""
        owned = {
            kind: tuple(name for name, entry in entries.items() if entry.plugin == plugin)
            for kind, entries in self._entries.items()
        }
        return {kind: names for kind, names in owned.items() if names}

    def names(self, kind: str) -> tuple[str, ...]:
        return tuple(sorted(self._of(kind)))

    def entries(self, kind: str) -> tuple[Entry, ...]:
        return tuple(self._of(kind)[name] for name in self.names(kind))

    def __contains__(self, key: tuple[str, str]) -> bool:
        kind, name = key
        return name in self._of(kind)

    def get(self, kind: str, name: str) -> Any:
        """Return what is registered, importing it if it was registered lazily.

        Raises:
            UnknownNameError: nobody registered ``name``; says the close match and the package that brings it.
            PluginError: it was registered lazily and cannot be imported, whatever its module raises.
        """
        entries = self._of(kind)
        if name not in entries:
            raise self._unknown(kind, name)
        value = entries[name].value
        if not isinstance(value, Lazy):
            return value
        try:
            return value.resolve()
        except SlimError:  # it says already what is wrong: an extra is missing, for one
            raise
        except Exception as error:  # a plugin's module may raise anything
            raise PluginError(
                f"{self._words[kind][0]} '{name}' of plugin '{entries[name].plugin}' cannot be imported: {said(error)}",
                where=f"{value.module}:{value.attribute}",
                hint="reinstall or update the package; `slim plugins` shows its version",
            ) from error

    def _of(self, kind: str) -> dict[str, Entry]:
        try:
            return self._entries[kind]
        except KeyError:
            raise SlimError(f"the registry has no kind '{kind}'; it has: {', '.join(self._entries)}") from None

    def _unknown(self, kind: str, name: str) -> UnknownNameError:
        word, providers = self._words[kind]
        known = self.names(kind)
        hints = [close_match(name, known)]
        for prefix, package in providers.items():
            if name.startswith(prefix) and package not in self.installed:
                hints.append(f"pip install {package} would bring names that begin with '{prefix}'")
        if not known:
            hints.append("none is registered; `slim plugins` lists what is installed")
        elif len(known) <= _FEW or not hints[0]:
            hints.append(f"known: {', '.join(known)}")
        return UnknownNameError(f"unknown {word} '{name}'", hint="; ".join(hint for hint in hints if hint))
