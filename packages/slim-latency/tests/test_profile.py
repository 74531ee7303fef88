"""Profiles: real ones of a file made by hand, and the figures that are drawn."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from slim_core.errors import MeasureError
from slim_latency.profile import KernelTime, Profile, Profiles, profile
from slim_latency.profile_views import costliest, show, svg, timeline
from slim_latency.results import table_of


def chain(path: Path, width: int, size: int = 32) -> Path:
    """Write two convolutions and an activation."""
    generator = np.random.default_rng(0)
    weights = [numpy_helper.from_array(generator.random((width, width, 3, 3), np.float32), f"w{n}") for n in range(2)]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1, 1, 1, 1], kernel_shape=[3, 3], name="one"),
        helper.make_node("Relu", ["a"], ["b"], name="act"),
        helper.make_node("Conv", ["b", "w1"], ["y"], pads=[1, 1, 1, 1], kernel_shape=[3, 3], name="two"),
    ]
    shape = [1, width, size, size]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], weights,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Profiles:
    folder = tmp_path_factory.mktemp("profile")
    files = {"small": chain(folder / "s.onnx", 16), "large": chain(folder / "l.onnx", 64)}
    return profile(files, rounds=4, sample_ms=2.0)


def by_hand() -> Profile:
    key = "Conv.nchwc f32[1,16,8,8] f32[16,16,3,3] -> f32[1,16,8,8]"
    kernels = (
        KernelTime("one", key, 60.0, 55.0, 65.0, 0.6),
        KernelTime("two", "Gemm f32[1,16] -> f32[1,4]", 10.0, 10.0, 10.0, 0.1),
        KernelTime("three", key, 30.0, 29.0, 33.0, 0.3),
    )
    return Profile("net", "0" * 64, 0.1, 0.09, 0.11, 0.01, 0.0, 0.12, kernels, (0.1,))


class TestReal:
    def test_the_kernels_are_those_of_the_optimised_graph(self, found: Profiles) -> None:
        for item in found.profiles:
            ops = [kernel.key.split()[0] for kernel in item.kernels]
            assert sum(op.startswith(("Conv", "FusedConv")) for op in ops) == 2
            assert "Relu" not in ops
            assert sum(kernel.share for kernel in item.kernels) == pytest.approx(1)
            assert item.q1_ms <= item.median_ms <= item.q3_ms

    def test_more_work_takes_longer(self, found: Profiles) -> None:
        small, large = found.profiles
        assert large.macs == 16 * small.macs
        assert large.sum_ms > small.sum_ms

    def test_what_decides_the_figures_is_recorded(self, found: Profiles) -> None:
        data = found.to_json()
        assert data["runtime"]["name"] == "onnxruntime"
        assert data["settings"]["threads"] == 1
        assert data["settings"]["level"] == "all"
        assert {"cpu", "flags", "cores", "affinity", "governor", "mhz"} <= set(data["device"])
        assert len(data["profiles"][0]["samples_ms"]) == 4
        assert len(data["profiles"][0]["sha256"]) == 64

    def test_the_lines_make_a_table(self, found: Profiles) -> None:
        table = table_of("here", found.rows)
        assert set(table.networks) == {"small", "large"}
        assert table.networks["small"].kernels == tuple(kernel.key for kernel in found.profiles[0].kernels)

    def test_the_level_reaches_the_runtime(self, tmp_path: Path) -> None:
        plain = profile({"n": chain(tmp_path / "n.onnx", 16, 8)}, rounds=1, level="basic", sample_ms=1.0)
        ops = [kernel.key.split()[0] for kernel in plain.profiles[0].kernels]
        assert ops == ["Conv", "Relu", "Conv"]

    def test_what_cannot_be_profiled(self, tmp_path: Path) -> None:
        (tmp_path / "bad.onnx").write_bytes(b"text")
        with pytest.raises(MeasureError, match="does not run the file"):
            profile({"bad": tmp_path / "bad.onnx"}, rounds=1)
        with pytest.raises(MeasureError, match="there is no file"):
            profile({"no": tmp_path / "no.onnx"})
        with pytest.raises(MeasureError, match="nothing to profile"):
            profile({})
        with pytest.raises(MeasureError, match="unknown graph level"):
            profile({"bad": tmp_path / "bad.onnx"}, level="turbo")
        with pytest.raises(MeasureError, match="at least 1"):
            profile({"bad": tmp_path / "bad.onnx"}, rounds=0)


class TestViews:
    def test_the_strip_has_every_kernel_where_it_ran(self) -> None:
        assert [(bar.start_us, bar.width_us) for bar in timeline(by_hand())] == [(0, 60), (60, 10), (70, 30)]

    def test_kinds_are_summed_and_sorted(self) -> None:
        assert by_hand().by_kind() == (("Conv.nchwc/dense", 2, 90.0, 0.9), ("Gemm", 1, 10.0, 0.1))

    def test_the_costliest_come_first(self) -> None:
        assert [kernel.name for kernel in costliest(by_hand(), 2)] == ["one", "three"]

    def test_the_drawing_is_to_scale(self) -> None:
        text = svg(by_hand(), "a <machine> & more")
        root = ET.fromstring(text)
        bars = [item for item in root.iter("{http://www.w3.org/2000/svg}rect") if item.get("height") == "34"]
        widths = [float(item.get("width", 0)) + 0.4 for item in bars]
        assert widths == pytest.approx([940 * share for share in (0.6, 0.1, 0.3)], abs=0.1)
        assert "60 µs, 60.0%" in text
        assert "<machine>" not in text

    def test_the_table_names_machine_settings_and_kernels(self, found: Profiles) -> None:
        from rich.console import Console

        console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(show(found))
        text = console.export_text()
        for part in ("small", "large", "graph level all", "1 thread", "4 shuffled rounds"):
            assert part in text
        assert re.search(r"Conv\S* f32\[1,64,32,32\]", text)
