"""The commands ``profile``, ``bundle``, ``import``, ``calibrate``, ``predict``, ``devices`` and ``table``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from slim_core.cli.main import run
from slim_latency import agent
from slim_latency.predict import fit
from slim_latency.table import DeviceTable, read_table, with_model, write_table

Make = Callable[..., DeviceTable]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "devices").mkdir()
    monkeypatch.setenv("SLIM_DEVICES", str(tmp_path / "devices"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "devices"


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    weights = np.random.default_rng(0).random((32, 16, 3, 3), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], name="conv")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 8, 8])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32, 8, 8])
    graph = helper.make_graph([node], "g", [value], [out], [numpy_helper.from_array(weights, "w")])
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return str(path)


def read(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    status = run(["--format", "json", "latency", *args])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


@pytest.fixture
def table(make_table: Make, folder: Path) -> DeviceTable:
    found = make_table(20)
    found = with_model(found, fit(found, trees=False))
    write_table(found, folder / "synthetic.table.json")
    return found


class TestProfile:
    def test_figures_drawing_and_table(self, net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data = read(capsys, "profile", net, "--rounds", "2", "-o", str(tmp_path / "p.json"), "--svg",
                    str(tmp_path / "p.svg"), "--table", str(tmp_path / "here.table.json"))  # fmt: skip
        assert [item["name"] for item in data["profiles"]] == ["net"]
        assert json.loads((tmp_path / "p.json").read_text()) == data
        assert (tmp_path / "p.svg").read_text().startswith("<svg")
        assert set(read_table(tmp_path / "here.table.json").networks) == {"net"}

    def test_the_words(self, net: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["latency", "profile", net, "--rounds", "1", "--batch", "3"]) == 0
        assert "f32[3,16,8,8]" in capsys.readouterr().out

    def test_errors(self, net: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["latency", "profile", "absent.onnx"]) == 2
        assert "there is no file absent.onnx" in capsys.readouterr().err
        assert run(["latency", "profile", net, "--svg", "/nowhere/p.svg"]) == 2
        assert "there is no folder" in capsys.readouterr().err


class TestBundleAndImport:
    def test_from_a_bundle_to_a_budget(
        self, net: str, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = read(capsys, "bundle", str(tmp_path / "b"), net, "--networks", "0", "--rounds", "2")
        assert data["models"] == 1
        assert {path.name for path in (tmp_path / "b").iterdir()} == {
            "README.txt", "agent.py", "manifest.json", "net.onnx",
        }  # fmt: skip
        assert agent.run_bundle(str(tmp_path / "b"), lambda text: None) == 2
        found = read(capsys, "import", str(tmp_path / "b"), "--name", "board")
        assert found["path"] == str(folder / "board.table.json")
        rows = read(capsys, "devices")["devices"]
        assert "board" in [row["name"] for row in rows]
        guess = read(capsys, "predict", net, "--device", "board")["devices"]["board"]
        measured = read_table(folder / "board.table.json").networks["net"].median_ms
        assert guess["value_ms"] == pytest.approx(measured, rel=0.05)
        assert guess["shares"]["table"]["share"] == 1

    def test_results_that_were_changed(self, net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        read(capsys, "bundle", str(tmp_path / "b"), net, "--networks", "0", "--rounds", "1")
        agent.run_bundle(str(tmp_path / "b"), lambda text: None)
        path = tmp_path / "b" / "results.jsonl"
        path.write_bytes(path.read_bytes().replace(b'"calls":', b'"calls":1'))
        assert run(["latency", "import", str(tmp_path / "b"), "--name", "board"]) == 2
        assert "line 2 of the results was changed" in capsys.readouterr().err

    def test_this_machine_in_one_go(self, net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        found = read(capsys, "calibrate", net, "--name", "here", "--networks", "0", "--rounds", "1", "-o",
                     str(tmp_path / "here.table.json"))  # fmt: skip
        assert found["networks"] == 1
        assert read_table(tmp_path / "here.table.json").name == "here"

    def test_a_random_network_is_exported_and_its_macs_are_told(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        read(capsys, "bundle", str(tmp_path / "b"), "--networks", "1", "--size", "32")
        manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
        assert [entry["name"] for entry in manifest["models"]] == ["mobilenet-000"]
        assert manifest["models"][0]["macs"] > 1e5

    def test_a_table_of_another_tool(self, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "t.txt").write_text("phone,lite,2021\nrelu,1,8,4,4\t0.5\n")
        read(capsys, "import", str(tmp_path / "t.txt"), "--from", "paddleslim", "--name", "old-phone")
        assert read_table(folder / "old-phone.table.json").header["device"]["cpu"] == "phone"


class TestPredict:
    def test_the_words(self, net: str, table: DeviceTable, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["latency", "predict", net, "--device", "synthetic"]) == 0
        out = capsys.readouterr().out
        for part in ("synthetic", "interval", "learned", "by MACs alone", "90%"):
            assert part in out

    def test_an_unknown_device(self, net: str, table: DeviceTable, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["latency", "predict", net, "--device", "synthetik"]) == 2
        assert "did you mean 'synthetic'" in capsys.readouterr().err

    def test_all_devices_when_none_is_named(
        self, net: str, table: DeviceTable, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "synthetic" in read(capsys, "predict", net)["devices"]

    def test_one_bad_table_hinders_no_other(
        self, net: str, table: DeviceTable, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / "broken.table.json").write_text("nonsense")
        assert run(["latency", "predict", net]) == 0
        out, err = capsys.readouterr()
        assert "synthetic" in out
        assert "broken is left out: not a device table" in err
        assert run(["latency", "predict", net, "--device", "broken"]) == 2


class TestTables:
    def test_check_diff_merge_and_fit(
        self, table: DeviceTable, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = str(folder / "synthetic.table.json")
        assert read(capsys, "table", "check", path)[0]["kernels"] == len(table.kernels)
        key = next(iter(table.kernels))
        row = table.kernels[key]
        slow = dataclasses.replace(row, median_us=3 * row.median_us, q1_us=3 * row.q1_us, q3_us=3 * row.q3_us)
        write_table(dataclasses.replace(table, kernels={**table.kernels, key: slow}), tmp_path / "slow.table.json")
        found = read(capsys, "table", "diff", path, str(tmp_path / "slow.table.json"))
        assert [item["key"] for item in found["changes"]] == [key]
        assert found["changes"][0]["ratio"] == pytest.approx(3)
        read(capsys, "table", "merge", path, str(tmp_path / "slow.table.json"), "-o", str(tmp_path / "both.table.json"))
        merged = read_table(tmp_path / "both.table.json")
        assert merged.kernels[key].median_us == pytest.approx(2 * row.median_us)
        assert merged.model is not None
        assert read(capsys, "table", "fit", path, "--no-trees")["median_error"] < 0.05

    def test_a_changed_byte_is_an_error(
        self, table: DeviceTable, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = folder / "synthetic.table.json"
        path.write_text(path.read_text().replace('"threads":1', '"threads":2'))
        assert run(["latency", "table", "check", str(path)]) == 2
        assert "was changed after it was written" in capsys.readouterr().err
        rows = read(capsys, "devices")["devices"]
        assert next(row for row in rows if row["name"] == "synthetic")["error"].startswith("the table was changed")

    def test_devices_in_words(self, table: DeviceTable, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["latency", "devices"]) == 0
        assert "onnxruntime 1.0" in capsys.readouterr().out
