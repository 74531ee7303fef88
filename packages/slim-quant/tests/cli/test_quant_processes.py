"""``slim quant`` as real processes: the whole way, Ctrl-C, and what is not installed."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from quant_cli import DATA, ended, process, started

from slim_core.checkpoint import verify

SLOW_DATA = """
import time
from pathlib import Path
from slim_core import hookimpl
from slim_zoo.data.digits import digits


class Slow:
    def __init__(self, source):
        self.source = source

    def __iter__(self):
        Path("begun").touch()
        for batch in self.source:
            time.sleep(1)
            yield batch


def slow(part="val"):
    import dataclasses

    data = digits(size=16, limit=320, batch_size=32)
    return dataclasses.replace(data, **{part: Slow(getattr(data, part))})


@hookimpl
def slim_register_datasets(register):
    register("slow", slow)
"""


@pytest.fixture
def slow(tmp_path):
    path = tmp_path / "slow.py"
    path.write_text(SLOW_DATA)
    return path


def until(happened, child, seconds: float = 240) -> None:
    limit = time.monotonic() + seconds
    while not happened():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.slow
def test_from_weights_to_an_int8_file_and_back(trained, tmp_path) -> None:
    done = process(
        "quant", "ptq", "--checkpoint", trained.checkpoint, *DATA, "--samples", 64, "-o", "int8.safetensors",
        "--format", "json", cwd=tmp_path,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert done.err == ""  # a program gets the result and nothing else
    assert json.loads(done.out)["checkpoint"]["path"] == "int8.safetensors"
    done = process("quant", "export", "int8.safetensors", "-o", "int8.onnx", *DATA, "--format", "quiet", cwd=tmp_path)
    assert done.status == 0, done.err
    agreement = float(done.out.rpartition("agreement ")[2].split()[0])
    assert agreement >= 99.5


@pytest.mark.slow
def test_ctrl_c_after_the_checkpoint_leaves_it_whole_and_says_where_it_is(trained, tmp_path, slow) -> None:
    output = tmp_path / "int8.safetensors"
    child = started(
        "quant", "ptq", "--load", slow, "--checkpoint", trained.checkpoint, "--data", "slow", "--samples", 32,
        "-o", output, cwd=tmp_path,
    )  # fmt: skip
    try:
        until(output.exists, child)
        os.killpg(child.pid, signal.SIGINT)
        done = ended(child, 60)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    assert done.status == 130, done.err
    assert f"the quantized model is in {output}" in done.err
    assert f"slim quant export {output}" in done.err
    assert "Traceback" not in done.err
    verify(output)
    assert {path.name for path in tmp_path.iterdir()} <= {"begun", "int8.safetensors", "slow.py"}


@pytest.mark.slow
def test_ctrl_c_during_calibration_leaves_nothing_behind(trained, tmp_path, slow) -> None:
    child = started(
        "-v", "quant", "ptq", "--load", slow, "--checkpoint", trained.checkpoint, "--data", "slow",
        "--data-kwargs", '{"part": "train"}', "-o", tmp_path / "int8.safetensors", cwd=tmp_path,
    )  # fmt: skip
    try:
        until((tmp_path / "begun").exists, child)
        os.killpg(child.pid, signal.SIGINT)
        done = ended(child, 60)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    assert done.status == 130, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun", "slow.py"]


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        (("export", "any.safetensors", "-o", "a.onnx"), "onnxscript", "slim-core[onnx]"),
        (("ptq", "--onnx", "a.onnx"), "onnx", "slim-core[onnx]"),
        (("ptq", "--measure"), "onnxruntime", "slim-quant[onnxruntime]"),
        (("ptq", "--never-slower", "--target", "openvino"), "openvino", "slim-quant[openvino]"),
    ],
)
def test_what_is_not_installed_is_said_before_the_work(tmp_path, arguments, module, extra) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / f"{module}.py").write_text(f"raise ModuleNotFoundError('hidden', name={module!r})\n")
    done = process("quant", *arguments, cwd=tmp_path, timeout=120, PYTHONPATH=str(hidden))
    assert done.status == 2, done.err
    assert f"{module} is not installed" in done.err
    assert f"pip install '{extra}'" in done.err


def test_help_needs_no_torch(tmp_path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    for words in (("quant",), ("quant", "ptq"), ("quant", "qat"), ("quant", "diff"), ("quant", "export")):
        done = process(*words, "--help", cwd=tmp_path, timeout=120, PYTHONPATH=str(hidden))
        assert done.status == 0, done.err
        assert "Usage: " in done.out
