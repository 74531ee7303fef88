"""``slim latency``: files in, a table or JSON out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slim_core.cli.main import run
from slim_core.export import to_onnx
from slim_core.testing.workloads import TinyNet

FAST = ("--rounds", "6", "--seconds", "5", "--threads", "1")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("files")
    paths = []
    for width in (32, 8):
        torch.manual_seed(0)
        path = folder / f"w{width}.onnx"
        to_onnx(TinyNet(width).eval(), (torch.rand(1, 3, 16, 16),), path, check=False)
        paths.append(str(path))
    return paths


def read(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    status = run(["--format", "json", "latency", *args])
    out, err = capsys.readouterr()
    assert status == 0, err
    data: dict[str, Any] = json.loads(out)
    return data


class TestCompare:
    def test_the_figures_and_what_they_belong_to(self, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        data = read(capsys, "compare", *files, *FAST, "--batch", "4")
        assert [timing["name"] for timing in data["timings"]] == ["w32.onnx", "w8.onnx"]
        assert data["batch"] == 4
        assert data["protocol"]["rounds"] == 6
        assert data["timings"][0]["info"]["settings"]["graph_level"] == "all"
        assert data["timings"][0]["info"]["threads"] == 1
        assert data["files"]["w8.onnx"]["bytes"] == Path(files[1]).stat().st_size
        assert data["versions"]["onnxruntime"]

    def test_how_far_the_outputs_differ_is_told(self, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        data = read(capsys, "compare", files[0], files[0], files[1], *FAST)
        same, other = data["differences"].values()
        assert same["max_diff"] == 0
        assert other["max_diff"] > 0

    def test_files_of_one_name_are_told_apart(
        self, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for folder, file in zip(("before", "after"), files, strict=True):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "model.onnx").write_bytes(Path(file).read_bytes())
        paths = [str(tmp_path / folder / "model.onnx") for folder in ("before", "after")]
        data = read(capsys, "compare", *paths, *FAST)
        assert [timing["name"] for timing in data["timings"]] == ["before/model.onnx", "after/model.onnx"]

    def test_inputs_from_a_file_decide_the_outputs(
        self, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.savez(tmp_path / "in.npz", x=np.zeros((2, 3, 16, 16), np.float32))
        data = read(capsys, "compare", *files, *FAST, "--inputs", str(tmp_path / "in.npz"))
        assert len(data["timings"]) == 2

    def test_samples_are_written_to_a_file(
        self, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = read(capsys, "compare", *files, *FAST, "-o", str(tmp_path / "out.json"))
        assert json.loads((tmp_path / "out.json").read_text()) == data

    def test_the_table(self, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["latency", "compare", *files, *FAST]) == 0
        out = capsys.readouterr().out
        for text in ("w32.onnx", "w8.onnx", "speed-up", "onnxruntime", "6 interleaved rounds", "outputs differ"):
            assert text in out

    def test_one_line(self, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["--format", "quiet", "latency", "compare", *files, *FAST]) == 0
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        assert out.startswith("w32.onnx ")

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["absent.onnx"], "there is no file absent.onnx"),
            (["FILE", "--backend", "onnxruntim"], "did you mean 'onnxruntime'?"),
            (["FILE", "--backend", "eager"], "backend 'eager' runs PyTorch models"),
            (["FILE", "--shape", "y=1,2"], "the model has no input 'y'"),
            (["FILE", "--shape", "x=1,2,z"], "cannot read --shape"),
            (["FILE", "--inputs", "absent.npz"], "cannot read inputs"),
            (["FILE", "-o", "/nowhere/times.json"], "there is no folder '/nowhere'"),
        ],
    )
    def test_bad_input_gives_one_error(
        self, files: list[str], capsys: pytest.CaptureFixture[str], args: list[str], message: str
    ) -> None:
        assert run(["latency", "compare", *(files[0] if arg == "FILE" else arg for arg in args)]) == 2
        assert message in capsys.readouterr().err


class TestBackends:
    def test_what_works_here(self, capsys: pytest.CaptureFixture[str]) -> None:
        data = read(capsys, "backends")
        rows = {row["name"]: row for row in data["backends"]}
        assert {"eager", "compile", "onnxruntime"} <= set(rows)
        assert rows["onnxruntime"] == {
            "name": "onnxruntime", "plugin": "latency", "available": True, "reason": None,
        }  # fmt: skip
        assert data["device"]["cores"] >= 1

    def test_what_is_missing_and_how_to_get_it(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
        row = next(row for row in read(capsys, "backends")["backends"] if row["name"] == "onnxruntime")
        assert row["available"] is False
        assert row["reason"] == "onnxruntime is not installed; pip install 'slim-latency[onnxruntime]'"
