"""A search that is killed with SIGKILL, again and again, ends with the result of one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "search_run.py"


def start(folder: Path, algorithm: str, workers: int) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(SCRIPT), str(folder), algorithm, str(workers)], env=environment)


def lines(folder: Path) -> int:
    journal = folder / "search.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def killed_at(folder: Path, algorithm: str, workers: int, result: int) -> bool:
    """Run until the journal has ``result`` lines, then kill the searching process alone. False: it was done before."""
    process = start(folder, algorithm, workers)
    try:
        while lines(folder) < result:
            if process.poll() is not None:
                assert process.returncode == 0
                return False
            time.sleep(0.002)
        started = children(process.pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    end = time.monotonic() + 20
    while any(map(alive, started)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, started)), "workers end when the search does"
    return True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "workers"),
    [
        ("aging", 2),
        pytest.param("cmaes", 0, marks=pytest.mark.long),
        pytest.param("annealing", 1, marks=pytest.mark.long),
    ],
)
def test_killed_and_resumed_it_gives_the_same_result(tmp_path, algorithm, workers) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert start(whole, algorithm, 0).wait() == 0
    kills = sum(killed_at(broken, algorithm, workers, result) for result in (2, 12))
    assert kills == 2
    assert not (broken / "result.json").exists()
    assert start(broken, algorithm, workers).wait() == 0
    assert json.loads((broken / "result.json").read_text()) == json.loads((whole / "result.json").read_text())

    def results(folder: Path) -> list[dict]:
        rows = [json.loads(line) | {"seconds": 0} for line in (folder / "search.jsonl").read_text().splitlines()]
        return sorted(rows[1:], key=lambda row: (row["by"], row["trial"]))

    assert results(broken) == results(whole), "no candidate was scored twice or left out"
