"""The agent: what it reads, what it writes, and that a kill or a changed byte is noticed."""

from __future__ import annotations

import ast
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from slim_core.errors import MeasureError
from slim_latency import agent
from slim_latency.bundle import write_bundle
from slim_latency.kernels import parse_key
from slim_latency.reading import kernels_of_file
from slim_latency.results import read_results
from slim_latency.table import TableError


def network(path: Path, width: int = 16, size: int = 8) -> Path:
    """Write convolution, activation, convolution and pooling by hand."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(generator.random((width, 3, 3, 3), np.float32), "w0"),
        numpy_helper.from_array(generator.random((width, width, 1, 1), np.float32), "w1"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="first", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="act"),
        helper.make_node("Conv", ["b", "w1"], ["c"], name="second", kernel_shape=[1, 1], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["y"], name="pool"),
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, size, size])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width, 1, 1])
    graph = helper.make_graph(nodes, "by hand", [value], [out], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    files = {f"net-{width}": network(tmp_path / f"w{width}.onnx", width) for width in (8, 16, 32)}
    settings = {"rounds": 3, "sample_ms": 1.0, "warmup": 1}
    return write_bundle(tmp_path / "bundle", files, macs={"net-8": 123}, settings=settings)


class TestReader:
    def test_it_reads_what_onnx_reads(self, tmp_path: Path) -> None:
        path = network(tmp_path / "n.onnx")
        expected = onnx.load(path).graph.node
        found = agent.read_nodes(path.read_bytes())
        assert [(n.name, n.op, n.inputs, n.outputs) for n in found] == [
            (n.name, n.op_type, list(n.input), list(n.output)) for n in expected
        ]
        for mine, its in zip(found, expected, strict=True):
            attributes = {a.name: helper.get_attribute_value(a) for a in its.attribute}
            assert mine.attributes == attributes

    def test_attributes_of_every_kind(self) -> None:
        node = helper.make_node("Any", [], ["y"], a=-3, b=1.5, c="text", d=[-1, 2], e=[0.5, 2.0], f=["x", "z"])
        graph = helper.make_graph([node], "g", [], [])
        data = helper.make_model(graph).SerializeToString()
        assert agent.read_nodes(data)[0].attributes == {
            "a": -3, "b": 1.5, "c": "text", "d": [-1, 2], "e": [0.5, 2.0], "f": ["x", "z"],
        }  # fmt: skip

    @given(st.binary(max_size=200))
    def test_other_bytes_are_refused_or_hold_no_nodes(self, data: bytes) -> None:
        try:
            nodes = agent.read_nodes(data)
        except agent.Refused:
            return
        assert nodes == []

    def test_damaged_files_raise_nothing_else(self, tmp_path: Path) -> None:
        data = network(tmp_path / "n.onnx").read_bytes()
        draw, refused = random.Random(0), 0
        for _ in range(300):
            changed = bytearray(data[: draw.randrange(1, len(data))])
            changed[draw.randrange(len(changed))] ^= 255
            try:
                agent.read_nodes(bytes(changed))
            except agent.Refused:
                refused += 1
        assert 0 < refused <= 300

    def test_files_written_by_hand_compute(self) -> None:
        import onnxruntime as ort

        data = agent._onnx([("Sqrt", [b"x"], b"v"), ("Sqrt", [b"v"], b"y")], b"", (1, 4), (1, 4))
        onnx.checker.check_model(onnx.load_from_string(data))
        values = np.array([[16.0, 81.0, 0.0, 1.0]], np.float32)
        found = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": values})[0]
        np.testing.assert_allclose(found, [[2, 3, 0, 1]])


def test_the_file_is_python_that_old_devices_have() -> None:
    text = Path(agent.__file__).read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 8))
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {*sys.stdlib_module_names, "numpy", "onnxruntime"}


class TestFigures:
    def test_events_are_counted_by_call_and_the_first_ones_left_out(self) -> None:
        def event(name: str, micros: int) -> dict[str, Any]:
            args = {
                "op_name": "Add", "input_type_shape": [{"float": [1, 4]}, {"float": [4]}],
                "output_type_shape": [{"float": [1, 4]}],
            }  # fmt: skip
            return {"cat": "Node", "name": f"{name}_kernel_time", "dur": micros, "args": args}

        events: list[dict[str, Any]] = [{"cat": "Session", "name": "session_initialization", "dur": 9}]
        for call in range(4):
            events += [event("a", 10 + call), event("b", 20 + call)]
            events.append({"cat": "Session", "name": "model_run", "dur": 1000 * (call + 1)})
        kernels, runs = agent.fold_events(events, {}, warmup=2)
        assert [(kernel.name, kernel.micros) for kernel in kernels] == [("a", [12.0, 13.0]), ("b", [22.0, 23.0])]
        assert kernels[0].key == "Add f32[1,4] -> f32[1,4]"
        assert runs == [3.0, 4.0]

    def test_bursts_do_not_move_a_sample(self) -> None:
        assert agent.trimmed([1.0, 1.0, 1.0, 500.0]) == 1.0
        assert agent.trimmed([4.0]) == 4.0
        assert agent.trimmed([3.0, 1.0, 2.0, 4.0]) == 2.0

    def test_the_sum_of_kernels_and_the_graph_are_the_runtimes(self, tmp_path: Path) -> None:
        path = network(tmp_path / "n.onnx", 32, 64)
        model = agent.Model("n", str(path), dict(agent.SETTINGS, sample_ms=5.0))
        row = model.sample()
        ops = Counter(key.split()[0].split(".")[0] for key, _ in row["kernels"])
        assert ops["Conv"] == 2
        assert "Relu" not in ops  # it was taken into the convolution
        assert row["ms"] > 0
        assert len(row["nodes"]) == len(row["kernels"])
        assert sum(micros for _, micros in row["kernels"]) / 1e3 <= row["profiled_ms"] * 1.05

    def test_the_packing_is_what_the_optimised_graph_says(self, tmp_path: Path) -> None:
        block = agent.layout_block()
        assert block in (0, 8, 16)
        path, made = network(tmp_path / "n.onnx", 3), tmp_path / "made.onnx"
        agent.open_session(str(path), 1, "all", optimized=str(made))
        shapes = [tuple(item.dims) for item in onnx.load(made).graph.initializer if len(item.dims) == 4]
        assert max(shape[0] for shape in shapes) == (block or 3)

    def test_the_profilers_overhead_is_a_few_microseconds(self) -> None:
        assert 0 <= agent.profiler_overhead(1, "all") < 50

    def test_inputs_are_drawn_from_the_signature(self, tmp_path: Path) -> None:
        session = agent.open_session(str(network(tmp_path / "n.onnx")), 1, "all")
        feeds = agent.draw_inputs(session, None, 2, 0)
        assert feeds["x"].shape == (2, 3, 8, 8)
        assert np.array_equal(feeds["x"], agent.draw_inputs(session, None, 2, 0)["x"])

    def test_every_round_has_its_own_order_and_every_agent_the_same(self) -> None:
        names = [str(number) for number in range(20)]
        orders = [agent.order_of(names, 0, number) for number in range(3)]
        assert all(sorted(order) == sorted(names) for order in orders)
        assert orders[0] != orders[1] != orders[2]
        assert orders == [agent.order_of(names, 0, number) for number in range(3)]


class TestOpenVino:
    """The same file on the other runtime: its own graph, the same arithmetic."""

    def test_kernels_are_those_of_the_plugins_graph(self, tmp_path: Path) -> None:
        pytest.importorskip("openvino")
        path = str(network(tmp_path / "n.onnx", 32, 16))
        model = agent.Model("n", path, dict(agent.SETTINGS, runtime="openvino", sample_ms=2.0))
        row = model.sample()
        convs = [parse_key(key) for key, _ in row["kernels"] if key.startswith("Conv.openvino")]
        # the plugin moves the second one's stride into the first: only a quarter of the positions is needed
        assert [conv.macs for conv in convs] == [32 * 8 * 8 * 27, 32 * 8 * 8 * 32]
        assert [conv.attributes.get("strides") for conv in convs] == ["2,2", None]
        assert not any(key.startswith("Relu") for key, _ in row["kernels"])
        assert row["ms"] > 0

    def test_a_bundle_can_ask_for_it(self, bundle: Path) -> None:
        pytest.importorskip("openvino")
        added = agent.run_bundle(str(bundle), lambda text: None, {"runtime": "openvino", "rounds": 1}, "other.jsonl")
        assert added == 3
        rows = read_results(bundle / "other.jsonl")
        assert rows[0]["runtime"]["name"] == "openvino"
        assert not (bundle / "results.jsonl").exists()

    def test_depthwise_weights_are_brought_to_one_form(self, tmp_path: Path) -> None:
        pytest.importorskip("openvino")
        weights = numpy_helper.from_array(np.ones((24, 1, 3, 3), np.float32), "w")
        node = helper.make_node("Conv", ["x", "w"], ["y"], group=24, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        value, out = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 24, 8, 8]) for n in "xy")
        graph = helper.make_graph([node], "g", [value], [out], [weights])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "d.onnx"
        )
        keys = [parse_key(key) for key in kernels_of_file(tmp_path / "d.onnx", runtime="openvino")]
        conv = next(kernel for kernel in keys if kernel.op == "Conv.openvino")
        assert conv.family == "Conv.openvino/depthwise"
        assert conv.macs == 24 * 64 * 9


class TestLog:
    def test_lines_come_back(self, tmp_path: Path) -> None:
        log = agent.Log(str(tmp_path / "r.jsonl"))
        for number in range(3):
            log.append({"number": number})
        log.close()
        again = agent.Log(str(tmp_path / "r.jsonl"))
        assert [row["number"] for row in again.rows] == [0, 1, 2]
        again.close()

    def test_a_line_that_was_cut_is_dropped_and_the_rest_goes_on(self, tmp_path: Path) -> None:
        path = tmp_path / "r.jsonl"
        log = agent.Log(str(path))
        log.append({"number": 0})
        log.close()
        whole = path.read_bytes()
        path.write_bytes(whole + whole[:20])
        again = agent.Log(str(path))
        again.append({"number": 1})
        again.close()
        assert path.read_bytes().startswith(whole)
        assert len(path.read_bytes().splitlines()) == 2

    def test_changed_lost_and_moved_lines_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "r.jsonl"
        log = agent.Log(str(path))
        for number in range(4):
            log.append({"kind": "header", "schema": agent.SCHEMA, "number": number})
        log.close()
        lines = path.read_bytes().splitlines(keepends=True)
        bad = {
            "changed": [lines[0], lines[1].replace(b'"number":1', b'"number":9'), *lines[2:]],
            "lost": [lines[0], *lines[2:]],
            "moved": [lines[0], lines[2], lines[1], lines[3]],
            "blank": [lines[0], b"\n", *lines[1:]],
        }
        for name, changed in bad.items():
            path.write_bytes(b"".join(changed))
            with pytest.raises(agent.Refused):
                agent.Log(str(path)).close()
            with pytest.raises(TableError, match="line 2"):
                read_results(path)
            assert name

    def test_one_agent_at_a_time(self, tmp_path: Path) -> None:
        log = agent.Log(str(tmp_path / "r.jsonl"))
        with pytest.raises(agent.Refused, match="another agent"):
            agent.Log(str(tmp_path / "r.jsonl"))
        log.close()
        agent.Log(str(tmp_path / "r.jsonl")).close()


class TestBundle:
    def test_the_agent_in_it_runs_without_slim_and_torch(self, bundle: Path) -> None:
        code = (
            "import runpy, sys; sys.argv = ['agent.py', '.']\n"
            "try: runpy.run_path('agent.py', run_name='__main__')\n"
            "except SystemExit as end: assert not end.code, end.code\n"
            "heavy = {'torch', 'slim_core', 'slim_latency'}\n"
            "assert not heavy & {name.split('.')[0] for name in sys.modules}\n"
        )
        subprocess.run([sys.executable, "-I", "-c", code], cwd=bundle, check=True, capture_output=True, timeout=120)
        rows = read_results(bundle / "results.jsonl")
        assert Counter(row.get("model") for row in rows[1:]) == {"net-8": 3, "net-16": 3, "net-32": 3}
        assert rows[0]["runtime"]["name"] == "onnxruntime"
        assert rows[0]["device"]["affinity"] == sorted(os.sched_getaffinity(0))

    def test_a_killed_agent_goes_on_and_loses_no_finished_line(self, bundle: Path) -> None:
        results = bundle / "results.jsonl"
        kept: list[bytes] = []
        for _ in range(3):
            command = [sys.executable, "-I", "agent.py", "."]
            silent = subprocess.DEVNULL
            running = subprocess.Popen(command, cwd=bundle, stdout=silent, stderr=silent)
            wanted, end = len(kept) + 2, time.monotonic() + 60
            while _lines(results) < wanted and running.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            running.send_signal(signal.SIGKILL)
            running.wait()
            now = results.read_bytes().split(b"\n")[:-1]
            assert now[: len(kept)] == kept
            kept = now
        agent.run_bundle(str(bundle), lambda text: None)
        rows = read_results(results)
        assert results.read_bytes().split(b"\n")[: len(kept)] == kept
        pairs = Counter((row["round"], row["model"]) for row in rows[1:])
        assert set(pairs.values()) == {1}
        assert len(pairs) == 9

    def test_a_finished_bundle_is_left_alone_and_rounds_can_be_added(self, bundle: Path) -> None:
        assert agent.run_bundle(str(bundle), lambda text: None) == 9
        before = (bundle / "results.jsonl").read_bytes()
        assert agent.run_bundle(str(bundle), lambda text: None) == 0
        assert (bundle / "results.jsonl").read_bytes() == before
        assert agent.run_bundle(str(bundle), lambda text: None, {"rounds": 4}) == 3

    @pytest.mark.parametrize("changes", [{"threads": 2}, {"level": "basic"}])
    def test_results_of_other_settings_are_not_mixed(self, bundle: Path, changes: dict[str, Any]) -> None:
        agent.run_bundle(str(bundle), lambda text: None, {"rounds": 1})
        with pytest.raises(agent.Refused, match="another bundle, runtime, setting"):
            agent.run_bundle(str(bundle), lambda text: None, {"rounds": 1, **changes})

    @pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core only")
    def test_another_set_of_cores_is_another_device(self, bundle: Path) -> None:
        agent.run_bundle(str(bundle), lambda text: None, {"rounds": 1})
        core = min(os.sched_getaffinity(0))
        done = subprocess.run([sys.executable, "-I", "agent.py", ".", "--rounds", "1", "--cpus", str(core)],
                              cwd=bundle, capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
        assert done.returncode == 2
        assert "set of cores" in done.stderr

    def test_a_changed_model_or_manifest_is_refused(self, bundle: Path) -> None:
        data = (bundle / "net-8.onnx").read_bytes()
        (bundle / "net-8.onnx").write_bytes(data + b"\0")
        with pytest.raises(agent.Refused, match=r"net-8\.onnx is not the file that was bundled"):
            agent.read_manifest(str(bundle))
        (bundle / "net-8.onnx").write_bytes(data)
        text = (bundle / "manifest.json").read_text()
        (bundle / "manifest.json").write_text(text.replace('"rounds": 3', '"rounds": 4'))
        with pytest.raises(agent.Refused, match=r"manifest\.json was changed"):
            agent.read_manifest(str(bundle))

    @pytest.mark.parametrize("name", ["../net-8.onnx", "/etc/passwd", ".hidden", "a/b.onnx"])
    def test_a_manifest_names_files_of_its_folder_only(self, bundle: Path, name: str) -> None:
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["models"][0]["file"] = name
        manifest.pop("hash")
        manifest["hash"] = agent._digest(manifest)
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(agent.Refused, match="no plain file name"):
            agent.read_manifest(str(bundle))

    def test_a_folder_that_is_no_bundle(self, tmp_path: Path) -> None:
        assert agent.main([str(tmp_path)]) == 2

    def test_what_cannot_be_bundled(self, tmp_path: Path) -> None:
        path = network(tmp_path / "n.onnx")
        with pytest.raises(MeasureError, match="has no setting 'round'"):
            write_bundle(tmp_path / "b", {"n": path}, settings={"round": 3})
        with pytest.raises(MeasureError, match="cannot name a model"):
            write_bundle(tmp_path / "b", {"../n": path})
        with pytest.raises(MeasureError, match="there is no file"):
            write_bundle(tmp_path / "b", {"n": tmp_path / "no.onnx"})
        with pytest.raises(MeasureError, match="at least one"):
            write_bundle(tmp_path / "b", {})


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0
