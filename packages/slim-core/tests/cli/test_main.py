"""The command line: budget of imports, formats, errors, exit statuses."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import click
import pytest

from slim_core.cli.app import SlimGroup
from slim_core.cli.main import run
from slim_core.cli.output import Output
from slim_core.errors import PluginError, SlimError
from slim_core.registry import Lazy

PROJECT = r"""
    import click
    from slim_core import Lazy, SlimError, hookimpl
    from slim_core.errors import Interrupted

    @hookimpl
    def slim_register_commands(cli):
        @cli.command()
        @click.option("--width", type=int, default=1)
        @click.pass_obj
        def show(app, width):
            '''Shows a width.'''
            app.output.note("a note")
            app.output.emit({"width": width}, lambda: f"width is {width}", str(width))

        @cli.command()
        def wrong():
            '''Raises an error that a user can mend.'''
            error = SlimError("the thing is wrong", where="thing.yaml:3", hint="mend it")
            error.add_note("raised by hook x")
            raise error

        @cli.command()
        def defect():
            '''Raises something else.'''
            raise ZeroDivisionError("a defect")

        @cli.command()
        def stopped():
            '''Is interrupted, and knows how to go on.'''
            raise Interrupted("stopped after step 2", hint="resume with `slim run x.yaml`")

        @cli.command()
        def ctrl_c():
            '''Is interrupted.'''
            raise KeyboardInterrupt

        @cli.command()
        @click.option("--format", type=click.Choice(["onnx"]))
        @click.option("-v", "volume", type=int)
        def own(format, volume):
            '''Has options of the names that slim uses.'''
            click.echo(f"{format} {volume}")

        @cli.command()
        def kept():
            r'''Has lines that stay as they are.

            \b
            slim kept one
            slim kept two
            '''

        @cli.group()
        def outer():
            '''A group.'''

        @outer.command()
        @click.pass_obj
        def inner(app):
            '''In a group.'''
            app.output.emit([1], lambda: "one", "1")

        cli.add_lazy("nowhere", Lazy("a_module_that_is_not_there", "command"), "Cannot be imported.")
    """


class Result:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def slim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    project = tmp_path / "my_project.py"
    project.write_text(dedent(PROJECT))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("SLIM_PLUGINS", "")
    monkeypatch.delenv("SLIM_STRICT_PLUGINS", raising=False)

    def call(*arguments: str, load: bool = True) -> Result:
        out, err = io.StringIO(), io.StringIO()
        words = ["--load", str(project), *arguments] if load else list(arguments)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        try:
            status = run(words)
        finally:
            monkeypatch.undo()
            monkeypatch.setenv("SLIM_PLUGINS", "")
        return Result(status, out.getvalue(), err.getvalue())

    return call


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "pydantic", "yaml", "rich", "safetensors")
    script = (
        f"import sys; from slim_core.cli import main; main(['--help']); print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_importing_slim_core_imports_no_torch() -> None:
    script = "import sys, slim_core, slim_core.plugins, slim_core.register; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_help_lists_the_commands_of_core_and_plugins_apart(slim: Callable[..., Result]) -> None:
    result = slim("--help")
    assert result.status == 0
    core, plugins = result.out.split("Commands of plugin my_project.py:")
    assert "plugins     List installed plugins" in core
    assert "show     Shows a width." in plugins
    assert "nowhere  Cannot be imported." in plugins


def test_human_format_draws_on_stdout_and_notes_on_stderr(slim: Callable[..., Result]) -> None:
    result = slim("show", "--width", "3")
    assert (result.status, result.out, result.err) == (0, "width is 3\n", "a note\n")


@pytest.mark.parametrize(
    "words", [("--format", "json", "show"), ("show", "--format", "json"), ("show", "--format=json")]
)
def test_the_format_may_stand_before_or_after_the_command(slim: Callable[..., Result], words: tuple[str, ...]) -> None:
    result = slim(*words)
    assert (result.status, json.loads(result.out), result.err) == (0, {"width": 1}, "")


def test_quiet_prints_one_line(slim: Callable[..., Result]) -> None:
    assert slim("show", "--format", "quiet").out == "1\n"


def test_shared_options_reach_commands_of_groups(slim: Callable[..., Result]) -> None:
    assert json.loads(slim("outer", "inner", "--format", "json").out) == [1]
    assert json.loads(slim("outer", "--format", "json", "inner").out) == [1]


def test_a_command_keeps_its_own_options_of_the_same_name(slim: Callable[..., Result]) -> None:
    assert slim("own", "--format", "onnx", "-v", "7").out == "onnx 7\n"


def test_lines_after_a_backspace_mark_stay_apart_also_from_a_raw_docstring(slim: Callable[..., Result]) -> None:
    assert "  slim kept one\n  slim kept two\n" in slim("kept", "--help").out


def test_load_may_follow_the_command(slim: Callable[..., Result], tmp_path: Path) -> None:
    result = slim("plugins", "--format", "json", "--load", str(tmp_path / "my_project.py"), load=False)
    names = [outcome["name"] for outcome in json.loads(result.out)["plugins"]]
    assert "my_project.py" in names


def test_an_error_is_one_block_on_stderr_and_status_2(slim: Callable[..., Result]) -> None:
    result = slim("wrong")
    assert (result.status, result.out) == (2, "")
    assert result.err.splitlines() == [
        "error: the thing is wrong",
        "  where: thing.yaml:3",
        "  do:    mend it",
        "  note:  raised by hook x",
    ]


def test_an_error_in_json_is_one_object_on_stderr(slim: Callable[..., Result]) -> None:
    result = slim("wrong", "--format", "json")
    assert (result.status, result.out) == (2, "")
    assert json.loads(result.err) == {
        "error": {
            "type": "SlimError",
            "what": "the thing is wrong",
            "where": "thing.yaml:3",
            "hint": "mend it",
            "notes": ["raised by hook x"],
        }
    }


def test_an_unexpected_error_is_short_and_says_how_to_see_more(slim: Callable[..., Result]) -> None:
    result = slim("defect")
    assert result.status == 1
    assert "unexpected ZeroDivisionError: a defect" in result.err
    assert "`slim -v …` shows the traceback" in result.err
    assert "Traceback" not in result.err
    assert "Traceback (most recent call last)" in slim("-v", "defect").err
    assert "Traceback (most recent call last)" in slim("defect", "-v").err


def test_an_interrupted_command_says_in_one_line_how_to_resume(slim: Callable[..., Result]) -> None:
    result = slim("stopped")
    assert result.status == 130
    assert result.err.strip() == "stopped after step 2; resume with `slim run x.yaml`"


def test_ctrl_c_exits_with_130_and_no_traceback(slim: Callable[..., Result]) -> None:
    result = slim("ctrl-c")
    assert (result.status, result.err.strip()) == (130, "interrupted")


def test_an_unknown_command_gets_the_close_match(slim: Callable[..., Result]) -> None:
    result = slim("shwo")
    assert result.status == 2
    assert "there is no command 'shwo'" in result.err
    assert "did you mean 'show'?" in result.err


@pytest.mark.parametrize("words", [("show", "--width", "much"), ("show", "--widht", "3"), ("--format", "xml", "show")])
def test_wrong_usage_is_status_2_and_names_the_help(slim: Callable[..., Result], words: tuple[str, ...]) -> None:
    result = slim(*words)
    assert result.status == 2
    assert result.err.startswith("error: ")
    assert "--help` shows how it is used" in result.err


def test_a_lazy_command_that_cannot_be_imported_names_its_plugin(slim: Callable[..., Result]) -> None:
    result = slim("nowhere")
    assert result.status == 2
    assert "command 'nowhere' of plugin 'my_project.py' cannot be imported" in result.err


def test_a_broken_project_file_is_one_error_in_the_format_asked(slim: Callable[..., Result], tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\n1 / 0\n")
    result = slim("show", "--load", str(broken), "--format", "json")
    error = json.loads(result.err)["error"]
    assert (result.status, error["type"], error["where"]) == (2, "PluginError", f"{broken}:2")


def test_version(slim: Callable[..., Result]) -> None:
    assert slim("--version").out.startswith("slim-core 0.")
    assert list(json.loads(slim("--format", "json", "--version").out)) == ["slim-core"]


def test_no_argument_shows_the_help(slim: Callable[..., Result]) -> None:
    result = slim(load=False)
    assert "Usage: slim" in result.out + result.err


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m slim_core plugins --format json | head -c 1",
        shell=True, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert done.stderr == ""


def test_the_output_can_be_given_for_embedding() -> None:
    out, err = io.StringIO(), io.StringIO()
    assert run(["--version"], output=Output("quiet", out, err)) == 0
    assert out.getvalue().startswith("0.")


def test_errors_escape_nothing_when_raised_from_python() -> None:
    assert str(SlimError("what", where="here", hint="do this")) == "what\n  where: here\n  do:    do this"


def test_a_real_ctrl_c_ends_a_command_with_130_and_one_line(tmp_path: Path) -> None:
    project = tmp_path / "waiting.py"
    project.write_text(
        dedent("""
        import signal, time
        from slim_core import hookimpl
        from slim_core.errors import Interrupted

        @hookimpl
        def slim_register_commands(cli):
            @cli.command()
            def wait():
                try:
                    signal.alarm(60)  # ends it, and with it the test's wait for a line, whatever goes wrong
                    print("waiting", flush=True)
                    time.sleep(60)
                except KeyboardInterrupt:
                    raise Interrupted("stopped", hint="resume with `slim wait`") from None
        """)
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "slim_core", "--load", str(project), "wait"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "SLIM_PLUGINS": ""},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.strip() == "stopped; resume with `slim wait`"


def test_verbose_shows_the_log_on_stderr(slim: Callable[..., Result], tmp_path: Path) -> None:
    project = tmp_path / "logging_project.py"
    project.write_text(
        dedent("""
        import logging
        from slim_core import hookimpl

        @hookimpl
        def slim_register_commands(cli):
            @cli.command()
            def work():
                logging.getLogger("slim.work").debug("in detail")
                logging.getLogger("slim.work").info("what is done")
        """)
    )
    words = ("--load", str(project), "work")
    assert slim(*words, load=False).err == ""
    assert slim("-v", *words, load=False).err == "INFO slim.work: what is done\n"
    assert "DEBUG slim.work: in detail\n" in slim(*words, "-vv", load=False).err


@pytest.mark.parametrize("format", ["human", "json", "quiet"])
def test_a_terminal_without_unicode_is_no_reason_to_fail(tmp_path: Path, format: str) -> None:
    project = tmp_path / "greek.py"
    project.write_text("import slim_core\n@slim_core.register.model('my/αβγ😀')\ndef net(): ...\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "slim_core", "plugins", "--load", str(project), "--format", format],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "SLIM_PLUGINS": ""},
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    if format == "json":
        names = json.loads(done.stdout)["plugins"][-1]["registered"]["models"]
        assert names == ["my/αβγ😀"]


def test_a_command_whose_module_raises_anything_names_the_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lazy_command_module.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    group = SlimGroup("slim")
    added = group.fresh()
    added.add_lazy("bad", Lazy("lazy_command_module", "command"), "Cannot be imported.")
    group.adopt(added, "mine")
    with pytest.raises(PluginError, match="command 'bad' of plugin 'mine' cannot be imported: RuntimeError: no lic"):
        group.get_command(click.Context(group), "bad")


def test_a_groups_own_command_that_cannot_be_imported_is_named_without_a_plugin():
    group = SlimGroup("mine")
    group.add_lazy("broken", Lazy("slim_core.no_such_module", "command"), "Breaks.")
    with pytest.raises(PluginError, match=r"^command 'broken' cannot be imported: "):
        group._resolved("broken")
