"""The ``slim`` command itself: global options, errors, exit statuses.

Exit status: 0 done; 1 an unexpected error; 2 bad input (every :class:`SlimError`, and wrong usage);
130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from slim_core.cli.app import App, SlimGroup, shared_options
from slim_core.cli.output import FORMATS, Format, Output
from slim_core.errors import Interrupted, SlimError

_NO_WARNING = ("plugins",)  # commands that show failed plugins themselves


def run(argv: Sequence[str] | None = None, *, output: Output | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode is no reason to fail
    output = output or Output(_asked_format(arguments))
    group = build_group()
    app = App(output, group)
    try:
        if "_SLIM_COMPLETE" in os.environ:
            from click.shell_completion import shell_complete

            return shell_complete(group, {"obj": app}, "slim", "_SLIM_COMPLETE", os.environ["_SLIM_COMPLETE"])
        with group.make_context("slim", arguments, obj=app) as ctx:
            group.invoke(ctx)
        return 0
    except click.exceptions.Exit as exit:
        return exit.exit_code
    except Interrupted as error:
        return _interrupted(output, error)
    except (KeyboardInterrupt, click.Abort):
        return _interrupted(output, Interrupted("interrupted"))
    except SlimError as error:
        _traceback_if_asked(app)
        output.error(type(error).__name__, error.what, error.where, error.hint, list(getattr(error, "__notes__", ())))
        return 2
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "slim"
        output.error(type(error).__name__, error.format_message(), None, f"`{command} --help` shows how it is used")
        return 2
    except click.ClickException as error:
        output.error(type(error).__name__, error.format_message())
        return 2
    except BrokenPipeError:
        # The reader of a pipe went away (`slim … | head`): nothing is left to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the outermost frame: a person gets a message, not a traceback
        _traceback_if_asked(app)
        hint = None if app.verbose else "this is a defect of Slim or of a plugin; `slim -v …` shows the traceback"
        notes = list(getattr(error, "__notes__", ()))
        output.error(type(error).__name__, f"unexpected {type(error).__name__}: {error}", None, hint, notes)
        return 1


def build_group() -> SlimGroup:
    """Return a new ``slim`` group, without any command yet."""
    return SlimGroup(
        "slim",
        callback=_before_command,
        params=[_version_option(), *shared_options(root=True)],
        help="Make a PyTorch model smaller and faster, and prove that it did not break.",
        epilog="The options may also follow the command: `slim run recipe.yaml --load my_project.py`.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )


@click.pass_context
def _before_command(ctx: click.Context) -> None:
    if ctx.invoked_subcommand not in _NO_WARNING:
        ctx.ensure_object(App).warn_about_plugins()


def _version_option() -> click.Option:
    def show(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if not value:
            return
        from slim_core.discovery import CORE, core_version

        version = core_version() or "unknown"
        ctx.ensure_object(App).output.emit({CORE: version}, lambda: f"slim-core {version}", version)
        ctx.exit()

    return click.Option(
        ["--version"], is_flag=True, expose_value=False, callback=show, help="Show the version and exit."
    )


def _asked_format(arguments: Sequence[str]) -> Format:
    """Return the format that is asked for anywhere, so that also an error before it is parsed obeys it."""
    for position, word in enumerate(arguments):
        value = word.removeprefix("--format=") if word.startswith("--format=") else None
        if word == "--format" and position + 1 < len(arguments):
            value = arguments[position + 1]
        if value in FORMATS:
            return value
    return "human"


def _interrupted(output: Output, error: Interrupted) -> int:
    if output.format == "json":
        output.error("Interrupted", error.what, error.where, error.hint)
    elif output.format == "human":
        output.stderr.write("\n" + error.what + (f"; {error.hint}" if error.hint else "") + "\n")
    return 130


def _traceback_if_asked(app: App) -> None:
    if app.verbose:
        app.output.stderr.write(traceback.format_exc())
