"""What every command gets (``@click.pass_obj``), and the group that ``slim`` and plugins' commands live in."""

from __future__ import annotations

import copy
import inspect
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from slim_core.cli.output import Output
from slim_core.errors import PluginError, SlimError, close_match
from slim_core.plugins import PluginHost, load_plugins
from slim_core.registry import Lazy, Registry, said


class App:
    """One run of the command line. Commands take it with ``@click.pass_obj``.

    Args:
        output: where results, notes and progress go.
        group: the ``slim`` command, which plugins add to.
    """

    def __init__(self, output: Output, group: SlimGroup) -> None:
        self.output = output
        self.verbose = 0
        self._group = group
        self._files: list[Path] = []
        self._host: PluginHost | None = None
        self._warned = False

    @property
    def host(self) -> PluginHost:
        """The plugin host; plugins are loaded when it is first asked for."""
        if self._host is None:
            self._host = load_plugins()
            files, self._files = self._files, []
            for file in files:
                self._host.load_file(file)
            self._host.register_commands(self._group)
        return self._host

    @property
    def registry(self) -> Registry:
        """Everything that plugins registered."""
        return self.host.registry

    def load(self, file: Path) -> None:
        """Load a project's own file, now or together with the plugins."""
        if self._host is None:
            self._files.append(file)
            return
        self._host.load_file(file)
        self._host.register_commands(self._group)

    def warn_about_plugins(self) -> None:
        """Say once, in one line, that plugins failed."""
        failures = self.host.failures
        if not failures or self._warned:
            return
        self._warned = True
        first = failures[0]
        more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        verb = "plugins" if len(failures) > 1 else "plugin"
        self.output.warn(f"{verb} {first}{more} did not load; `slim plugins` says why")


class SlimGroup(click.Group):
    """A click group whose commands may be imported when they are run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy: dict[str, tuple[Lazy, str]] = {}
        self.owners: dict[str, str] = {}

    def add_lazy(self, name: str, target: Lazy, help: str) -> None:
        """Add a command that is imported when it is run.

        Args:
            name: the command's name.
            target: where the click command is.
            help: its line in ``slim --help``.
        """
        self._lazy[name] = (target, help)

    def fresh(self) -> SlimGroup:
        """Return an empty group for one plugin to add to."""
        return SlimGroup(self.name)

    def adopt(self, group: SlimGroup, plugin: str) -> tuple[str, ...]:
        """Take over a plugin's commands.

        Raises:
            SlimError: another plugin has a command of that name.
        """
        names = (*group.commands, *group._lazy)
        for name in names:
            if name in self.owners:
                raise SlimError(f"command '{name}' is already added by plugin '{self.owners[name]}'")
        self.commands.update(group.commands)
        self._lazy.update(group._lazy)
        self.owners.update(dict.fromkeys(names, plugin))
        return names

    def list_commands(self, ctx: click.Context) -> list[str]:
        ctx.ensure_object(App).host  # noqa: B018 - plugins add their commands
        return sorted({*self.commands, *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        app = ctx.find_object(App)
        if app is not None:
            app.host  # noqa: B018 - plugins add their commands
        if cmd_name in self._lazy:
            self.commands[cmd_name] = self._resolved(cmd_name)
            del self._lazy[cmd_name]
        command = self.commands.get(cmd_name)
        return None if command is None else with_shared_options(command)

    def _resolved(self, name: str) -> click.Command:
        target, _ = self._lazy[name]
        try:
            command = target.resolve()
        except SlimError:  # it says already what is wrong: an extra is missing, for one
            raise
        except Exception as error:  # a plugin's module may raise anything
            raise PluginError(
                f"{self._called(name)} cannot be imported: {said(error)}",
                where=f"{target.module}:{target.attribute}",
            ) from error
        if not isinstance(command, click.Command):
            raise PluginError(f"{self._called(name)} is not a click command")
        return command

    def _called(self, name: str) -> str:
        owner = self.owners.get(name)  # commands of a plugin's own group have none
        return f"command '{name}'" if owner is None else f"command '{name}' of plugin '{owner}'"

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            known = self.list_commands(ctx)
            hint = close_match(name, known) or f"`{ctx.command_path} --help` lists the commands"
            raise SlimError(f"there is no command '{name}'", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            if name in self._lazy:
                help = self._lazy[name][1]
            else:
                command = self.commands[name]
                if command.hidden:
                    continue
                help = command.get_short_help_str(100)
            owner = self.owners.get(name, "slim-core")
            title = "Commands" if owner == "slim-core" else f"Commands of plugin {owner}"
            sections.setdefault(title, []).append((name, help))
        for title in sorted(sections):
            with formatter.section(title):
                formatter.write_dl(sections[title])


def shared_options(*, root: bool) -> list[click.Option]:
    """The options that stand before or after the command; hidden in the help of single commands."""

    def setter(action: Callable[[App, Any], None]) -> Callable[[click.Context, click.Parameter, Any], Any]:
        def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
            app = ctx.find_object(App)
            if app is not None and value not in (None, (), False, 0):
                action(app, value)
            return value

        return callback

    common: dict[str, Any] = {"expose_value": False, "hidden": not root, "is_eager": True}
    return [
        click.Option(
            ["--format"],
            type=click.Choice(["human", "json", "quiet"]),
            callback=setter(lambda app, value: setattr(app.output, "format", value)),
            help="For people, for programs, or one line.",
            **common,
        ),
        click.Option(
            ["--load"],
            type=click.Path(path_type=Path),
            multiple=True,
            metavar="FILE",
            callback=setter(_load),
            help="Load one Python file of yours as a plugin: models, data sets, tasks.",
            **{**common, "is_eager": root},
        ),
        click.Option(
            ["-v", "--verbose"],
            count=True,
            callback=setter(_set_verbose),
            help="Log what is done; twice: in detail. Shows tracebacks.",
            **common,
        ),
        click.Option(
            ["--no-color"],
            is_flag=True,
            callback=setter(lambda app, value: setattr(app.output, "color", False)),
            help="No colours (as does NO_COLOR).",
            **common,
        ),
    ]


def _load(app: App, files: tuple[Path, ...]) -> None:
    for file in files:
        app.load(file)


def _set_verbose(app: App, value: int) -> None:
    app.verbose = max(app.verbose, value)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger("slim").setLevel(logging.DEBUG if app.verbose > 1 else logging.INFO)


def with_shared_options(command: click.Command) -> click.Command:
    """Return a copy of ``command`` that takes the shared options too, except those that it defines itself."""
    changed = copy.copy(command)
    own = {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)}
    shared = [option for option in shared_options(root=False) if not own.intersection(option.opts)]
    changed.params = [*command.params, *shared]
    if command.help:
        # click's mark for "keep these lines" is a backspace character; in a raw docstring it is two characters.
        changed.help = re.sub(r"(?m)^[ \t]*\\b[ \t]*$", "\b", inspect.cleandoc(command.help))
    if isinstance(changed, click.Group) and not isinstance(changed, SlimGroup):
        changed.commands = {name: with_shared_options(child) for name, child in changed.commands.items()}
    return changed
