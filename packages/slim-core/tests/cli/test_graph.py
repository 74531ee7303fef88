"""``slim graph``: what it takes, what it prints in each format, and what it says about bad input."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from slim_core.cli.main import run

PROJECT = """
    import torch
    from torch import nn
    from slim_core import register

    class Net(nn.Module):
        def __init__(self, *, width=8, in_channels=3, input_size=16):
            super().__init__()
            self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(width)
            self.head = nn.Linear(width, 5)

        def forward(self, x):
            x = torch.relu(self.norm(self.stem(x)))
            return self.head(x.mean((2, 3)))

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, ids, scale):
            return {"logits": self.head(self.embed(ids) * scale)}

    class Spectrum(nn.Module):
        example_inputs = (torch.zeros(2, 16),)

        def forward(self, x):
            return torch.fft.rfft(x).abs()

    @register.model("net")
    def net(**options):
        return Net(**options)

    @register.model("strict")
    def strict(width=8):
        return Net(width=width)

    @register.model("named")
    def named():
        return Named()

    @register.model("spectrum")
    def spectrum():
        return Spectrum()

    @register.model("quantized")
    def quantized():
        from slim_core.graph.export import export_graph

        graph = export_graph(Net(), (torch.zeros(2, 3, 16, 16),))
        graph.register_buffer("scale", torch.tensor(0.1))
        graph.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))
        for node in [node for node in graph.graph.nodes if "conv2d" in str(node.target)]:
            with graph.graph.inserting_before(node):
                parts = [graph.graph.get_attr(name) for name in ("scale", "zero_point")]
                fake = graph.graph.call_function(
                    torch.ops.aten.fake_quantize_per_tensor_affine.tensor_qparams, (node.args[1], *parts, -127, 127)
                )
            node.args = (node.args[0], fake, *node.args[2:])
        graph.recompile()
        return graph

    @register.model("broken")
    def broken():
        raise ValueError("no weights here")
"""


@pytest.fixture
def slim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    project = tmp_path / "project.py"
    project.write_text(dedent(PROJECT))

    def call(*args: str) -> tuple[int, str, str]:
        status = run(["--load", str(project), *args])
        return status, *capsys.readouterr()

    return call


def read(slim: Any, *args: str) -> dict[str, Any]:
    status, out, err = slim("--format", "json", "graph", *args)
    assert status == 0, err
    data: dict[str, Any] = json.loads(out)
    return data


class TestJson:
    def test_totals(self, slim: Any) -> None:
        data = read(slim, "net")
        assert data["class"] == "Net"
        assert data["inputs"] == [{"name": "x", "shape": [1, 3, 16, 16], "dtype": "float32"}]
        assert data["macs"] == 8 * 256 * 27 + 8 * 5
        assert data["params"] == 8 * 27 + 16 + 45
        assert data["bytes"] == 4 * data["params"]
        assert data["uncounted"] == []

    def test_modules_groups_and_frozen_dimensions(self, slim: Any) -> None:
        data = read(slim, "net")
        assert [row["path"] for row in data["modules"]] == ["", "stem", "norm", "head"]
        assert data["modules"][1]["peak_activation_bytes"] == 4 * 256 * (3 + 8)
        assert data["modules"][2]["peak_activation_bytes"] == 4 * 256 * (3 + 8 + 8)
        assert [(group["name"], group["units"]) for group in data["groups"]] == [("stem", 8)]
        members = {(member["name"], member["dim"], member["kind"]) for member in data["groups"][0]["members"]}
        assert {("stem.weight", 0, "out"), ("norm.weight", 0, "per_channel"), ("head.weight", 1, "in")} <= members
        frozen = {(item["name"], item["dim"]): item for item in data["frozen"]}
        assert {("stem.weight", 1), ("head.weight", 0), ("head.bias", 0)} <= set(frozen)
        assert "output of the model" in frozen["head.weight", 0]["reason"]
        assert "return self.head(x.mean((2, 3)))" in frozen["head.weight", 0]["source"]
        assert "nodes" not in data

    def test_how_much_can_be_pruned(self, slim: Any) -> None:
        data = read(slim, "net")
        # the stem, the norm and the head's weight; not the head's bias
        assert data["prunable_params"] == 8 * 27 + 16 + 40
        assert data["units"] == 8

    def test_single_views(self, slim: Any) -> None:
        data = read(slim, "net", "--nodes")
        assert {"modules", "groups", "frozen"}.isdisjoint(data)
        assert data["nodes"][0]["module"] == "stem"
        assert sum(row["macs"] for row in data["nodes"]) == data["macs"]
        assert data["nodes"][0]["inputs"] == [[1, 3, 16, 16], [8, 3, 3, 3]]
        assert data["nodes"][0]["param_names"] == ["stem.weight"]
        assert data["nodes"][0]["live_bytes"] == 4 * 256 * (3 + 8)
        assert {"groups", "frozen"} <= set(read(slim, "net", "--groups", "--frozen"))

    def test_arguments_reach_the_builder_and_the_size_of_the_picture(self, slim: Any) -> None:
        data = read(slim, "net", "--kwargs", '{"width": 16, "in_channels": 1, "input_size": 8}')
        assert data["inputs"][0]["shape"] == [1, 1, 8, 8]
        assert data["macs"] == 16 * 64 * 9 + 16 * 5

    def test_inputs_by_shape(self, slim: Any) -> None:
        assert read(slim, "net", "--input", "4,3,9,9")["macs"] == 4 * (8 * 81 * 27 + 8 * 5)

    def test_inputs_by_name_and_type(self, slim: Any) -> None:
        data = read(slim, "named", "--input", "ids=2,7:int64", "--input", "scale=1")
        assert data["macs"] == 2 * 7 * 8 * 3
        assert {(item["name"], item["dtype"]) for item in data["inputs"]} == {("ids", "int64"), ("scale", "float32")}

    def test_inputs_that_the_model_brings(self, slim: Any) -> None:
        assert read(slim, "spectrum")["inputs"][0]["shape"] == [2, 16]


class TestForPeople:
    def test_the_default_has_costs_groups_and_reasons(self, slim: Any) -> None:
        status, out, _ = slim("graph", "net")
        assert status == 0
        for text in ("Net on 1x3x16x16", "55.3 k", "channel group", "is an output of the model", "project.py:"):
            assert text in out

    def test_depth_hides_modules(self, slim: Any) -> None:
        assert "Conv2d" in slim("graph", "net", "--modules")[1]
        assert "Conv2d" not in slim("graph", "net", "--modules", "--depth", "0")[1]

    def test_work_that_is_not_counted_is_said(self, slim: Any) -> None:
        out = slim("graph", "spectrum")[1]
        assert "the work of aten._fft_r2c.default, 1x, is not counted" in out
        assert "torch.fft.rfft(x)" in out

    def test_quiet_is_one_line(self, slim: Any) -> None:
        assert slim("--format", "quiet", "graph", "net")[1] == (
            f"net: {8 * 256 * 27 + 40} MACs, {8 * 27 + 16 + 45} parameters, 1 channel groups\n"
        )


class TestBadInput:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["nett"], "did you mean 'net'?"),
            (["named"], "'named' does not say what inputs it takes"),
            (["net", "--kwargs", "{width: 1}"], "--kwargs is not JSON"),
            (["net", "--kwargs", "[1]"], "--kwargs takes a JSON object"),
            (["strict", "--kwargs", '{"widht": 3}'], "model 'strict' takes no argument 'widht'"),
            (["strict", "--kwargs", '{"widht": 3}'], "did you mean 'width'?"),
            (["broken"], "project.py:"),
            (["net", "--kwargs", '{"depth": 3}'], "model 'net' cannot be built: TypeError"),
            (["broken"], "model 'broken' cannot be built: ValueError: no weights here"),
            (["net", "--input", "1,x"], "cannot read --input '1,x'"),
            (["net", "--input", "1,3,0,8"], "cannot read --input"),
            (["net", "--input", "1,3,8,8:float33"], "unknown type"),
            (["named", "--input", "ids=1,2:int64", "--input", "1"], "give every input a different name"),
            (["net", "--input", "1,4,8,8"], "the forward of Net fails on its example inputs"),
        ],
    )
    def test_one_error_that_says_what_is_wrong(self, slim: Any, args: list[str], message: str) -> None:
        status, out, err = slim("graph", *args)
        assert status == 2
        assert out == ""
        assert message in err

    def test_a_file_that_is_no_checkpoint(self, slim: Any, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").write_bytes(b"not one")
        status, _, err = slim("graph", str(tmp_path / "model.safetensors"))
        assert status == 2
        assert "model.safetensors" in err


def test_a_quantized_graph_has_one_reason_for_everything(slim: Any) -> None:
    data = read(slim, "quantized", "--input", "1,3,16,16")
    assert data["macs"] == 8 * 256 * 27 + 8 * 5
    assert data["groups"] == []
    assert data["prunable_params"] == 0
    assert {item["reason"] for item in data["frozen"]} == {
        "the graph is quantized: prune the float model before quantizing it"
    }
    names = [(item["name"], item["dim"]) for item in data["frozen"]]
    assert {("stem.weight", 0), ("head.weight", 1)} <= set(names)
    assert len(set(names)) == len(names)
    _, out, _ = slim("graph", "quantized", "--input", "1,3,16,16", "--frozen")
    assert out.count("is quantized") == 1


def test_a_checkpoint_is_shown_as_it_is(slim: Any, tmp_path: Path) -> None:
    import torch
    from torch import nn

    from slim_core import checkpoint
    from slim_core.plugins import load_plugins
    from slim_core.workload import BuilderRef, Workload

    host = load_plugins()
    host.load_file(tmp_path / "project.py")
    model: nn.Module = host.registry.get("models", "net")(width=12)
    workload = Workload(model.eval(), (torch.zeros(1, 3, 10, 10),), builder=BuilderRef("net", {"width": 12}))
    checkpoint.save(workload, tmp_path / "m.safetensors")
    data = read(slim, str(tmp_path / "m.safetensors"))
    assert data["macs"] == 12 * 100 * 27 + 60
    assert data["groups"][0]["units"] == 12
