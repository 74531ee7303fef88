"""Writing files: the old one or the new one, never a torn one."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slim_core.errors import ExportError, OutputFolderError
from slim_core.files import STAGING_SUFFIX, atomic_path, require_folder, write_bytes, write_json, write_text


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"\x00\xff")
    write_text(tmp_path / "b", "grüße\n")
    write_json(tmp_path / "c" / "d.json", {"b": 1, "a": [1.5, None]})
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_bytes() == "grüße\n".encode()
    assert (tmp_path / "c" / "d.json").read_text() == '{\n  "a": [\n    1.5,\n    null\n  ],\n  "b": 1\n}\n'


def test_a_file_that_a_user_names_needs_a_folder(tmp_path: Path) -> None:
    require_folder(tmp_path / "x")
    with pytest.raises(OutputFolderError, match="there is no folder") as caught:
        require_folder(tmp_path / "a b" / "x")
    assert caught.value.hint is not None
    assert f"mkdir -p '{tmp_path / 'a b'}'" in caught.value.hint
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="is no folder") as caught:
        require_folder(tmp_path / "file" / "x", ExportError)
    assert caught.value.hint is None


def test_json_without_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_the_old_file_stays_when_writing_raises(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_text("old")

    def write_half() -> None:
        with atomic_path(target) as staging:
            staging.write_text("ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_target_does_not_change_before_the_end(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_text("old")
    with atomic_path(target) as staging:
        staging.write_text("new")
        assert target.read_text() == "old"
        assert staging.parent == target.parent  # a rename across file systems is not atomic
    assert target.read_text() == "new"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_file_has_the_mode_of_any_new_file(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "x", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode


def test_staging_files_of_dead_processes_are_swept_and_others_left(tmp_path: Path) -> None:
    code = "import os; print(os.getpid())"
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    names = {
        f".x.{dead.stdout.strip()}{STAGING_SUFFIX}": False,  # its process is gone
        f".x.0123abcd.{dead.stdout.strip()}{STAGING_SUFFIX}": False,
        f".x.1{STAGING_SUFFIX}": True,  # process 1 always lives
        f".x.0123abcd.1{STAGING_SUFFIX}": True,
        f".x.0123abcd.{os.getpid()}{STAGING_SUFFIX}": True,  # another thread writes it
        f".y.{dead.stdout.strip()}{STAGING_SUFFIX}": True,  # another target's
        ".x.notes": True,
    }
    for name in names:
        (tmp_path / name).write_text("left behind")
    write_text(tmp_path / "x", "new")
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_two_threads_that_write_one_target_each_write_a_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "x"
    both = threading.Barrier(2, timeout=20)

    def write(text: str) -> Path:
        with atomic_path(target) as staging:
            staging.write_text(text[:1])
            both.wait()  # both have begun
            staging.write_text(text)
            both.wait()
        return staging

    with ThreadPoolExecutor(2) as pool:
        stagings = list(pool.map(write, ("one", "two")))
    assert stagings[0] != stagings[1]
    assert target.read_text() in ("one", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


WRITER = """
import signal, sys
from slim_core.files import write_json
path, count = sys.argv[1], 0
signal.alarm(30)  # it ends, and with it the test's wait for a line, whatever goes wrong
print("ready", flush=True)
while True:
    count += 1
    write_json(path, {"count": count, "filler": [count] * 20000})
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    for attempt in range(12):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True)
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            time.sleep(0.02 + 0.009 * attempt)  # at different points of writing
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.communicate(timeout=60)
        if target.exists():
            state = json.loads(target.read_text())
            assert state["filler"] == [state["count"]] * 20000
    assert target.exists()
    write_json(target, {"count": 0})
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
