"""``slim inspect``, ``slim verify`` and ``slim diff`` on files of every kind."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "checkpoint"))

import checkpoint_kit as kit
import sparse_kit

from slim_core.checkpoint import inspect, save
from slim_core.cli.main import run
from slim_core.cli.output import Output
from slim_core.workload import Transform


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    save(kit.workload(), folder / "plain.safetensors", metrics={"accuracy": 0.75})
    save(kit.pruned(), folder / "pruned.safetensors", metrics={"accuracy": 0.5})
    kit.save_rich(folder / "rich.safetensors")
    sparse_kit.save_holder(folder / "sparse.safetensors")
    damaged = bytearray((folder / "plain.safetensors").read_bytes())
    damaged[-1] ^= 1
    (folder / "damaged.safetensors").write_bytes(damaged)
    (folder / "project.py").write_text(
        dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(kit.__file__).parent)!r})
        import checkpoint_kit as kit
        from slim_core import hookimpl

        @hookimpl
        def slim_register_models(register):
            register("test/net", kit.Net)

        @hookimpl
        def slim_register_transforms(register):
            register("test.keep", kit.Keep())
            register("test.grid", kit.Grid)
        """)
    )
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture
def slim(monkeypatch, tmp_path):
    """Run ``slim`` in this process; return exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        status = run([str(item) for item in arguments], output=Output(stdout=out, stderr=err))
        return status, out.getvalue(), err.getvalue()

    return invoke


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_inspect_tells_people_what_was_done(slim, files) -> None:
    status, out, _ = slim("inspect", files["rich"])
    assert status == 0
    for words in (
        "test/net(width=6)",
        "test.keep, test.grid",
        "accuracy 0.75, loss not finite",
        "slim-core 0.1.0",
        "0: float32 (N, 3, 4, 4)",
        "rich",
    ):
        assert words in out
    lines = [line.split() for line in out.splitlines()]
    assert ["conv", "3", "6", "50", "%", "██████████"] in lines
    row = next(line for line in lines if line[:1] == ["conv.weight"])
    assert row == ["conv.weight", "3", "x", "3", "x", "3", "x", "3", "8", "per", "channel,", "axis", "0,", "zero",
                   "point", "int8"]  # fmt: skip
    row = next(line for line in lines if line[:1] == ["left.weight"])
    assert row[-1] == "int4"
    assert "groups of 2" in out


def test_inspect_shows_each_packed_tensor_once_with_the_transform_that_counts(slim, tmp_path) -> None:
    workload = kit.rich()
    (_, grid) = workload.transforms
    model = workload.model
    model.register_buffer("own", grid.tensors["c.scale"])
    schemes = {"conv.weight": {**grid.data["schemes"]["conv.weight"], "scale": "own"}}
    later = Transform("test.grid", 3, {"schemes": schemes}, {"c.zero": grid.tensors["c.zero"]})
    header = save(workload.with_model(model, later), tmp_path / "two.safetensors")
    assert header.tensors["conv.weight"].packing.scale == "own"
    assert [sorted(header.packed_by(index)) for index in range(3)] == [[], ["left.weight"], ["conv.weight"]]
    _, out, _ = slim("inspect", tmp_path / "two.safetensors")
    second, third = out.split("transform 2")[1].split("transform 3")
    assert ("conv.weight" in second, "left.weight" in second) == (False, True)
    assert ("conv.weight" in third, "left.weight" in third) == (True, False)


def test_inspect_lists_tensors(slim, files) -> None:
    _, out, _ = slim("inspect", files["plain"], "--tensors")
    header = inspect(files["plain"])
    for name, record in header.tensors.items():
        assert any(name in line and record.sha256[:12] in line for line in out.splitlines()), name


def test_inspect_gives_programs_the_header(slim, files) -> None:
    status, out, _ = slim("--format", "json", "inspect", files["rich"])
    data = json.loads(out)
    header = inspect(files["rich"])
    assert status == 0
    written = json.loads(header.to_text())
    assert {key: data[key] for key in header.to_json() if key != "tensors"} | {"tensors": None} == (
        written | {"tensors": None}
    )
    assert data["tensors"] == header.to_json()["tensors"]
    for name, record in data["tensors"].items():  # complete, though the file leaves out what follows
        assert record == record | written["tensors"][name]
        assert {"role", "dtype", "shape", "sha256"} <= record.keys()
    raw = files["rich"].read_bytes()
    place = data["stored"]["mask"]
    assert raw[place["offset"] : place["offset"] + place["bytes"]] == bytes([1, 0, 1, 1, 0])


def test_inspect_gives_scripts_one_line(slim, files) -> None:
    _, out, _ = slim("--format", "quiet", "inspect", files["pruned"])
    count = 3 * 27 + 3 + 3 + 3 + 15 + 5 + 5
    assert out == f"test/net: test.keep; {count} parameters; {files['pruned'].stat().st_size / 1000:.2f} kB\n"


def test_verify_says_that_every_hash_is_right(slim, files) -> None:
    status, out, _ = slim("verify", files["rich"])
    assert status == 0
    assert "every SHA-256 is right" in out
    assert slim("--format", "quiet", "verify", files["rich"])[:2] == (0, "valid\n")


def test_verify_names_the_damaged_tensor(slim, files) -> None:
    status, out, err = slim("verify", files["damaged"])
    header = inspect(files["damaged"])
    last = max(header.stored, key=lambda name: header.stored[name].stop)
    assert status == 2
    assert out == ""
    assert last in err
    assert "copy it again" in err


def test_verify_rebuilds_the_model(slim, files) -> None:
    status, out, _ = slim("--format", "json", "--load", files["project"], "verify", files["rich"], "--model")
    assert status == 0
    assert json.loads(out)["parity"] == {"error": 0.0, "tolerance": 0.1}


def test_verify_says_which_plugin_is_missing(slim, files) -> None:
    status, _, err = slim("verify", files["rich"], "--model")
    assert status == 2
    assert "unknown model 'test/net'" in err


def test_diff_tells_people_and_programs(slim, files) -> None:
    status, out, _ = slim("diff", files["plain"], files["pruned"])
    assert status == 1
    assert "accuracy: 0.75 -> 0.5" in out
    assert "none -> test.keep" in out
    assert any(line.split()[:3] == ["conv.weight", "shape,", "values"] for line in out.splitlines())
    status, out, _ = slim("--format", "json", "diff", files["plain"], files["pruned"])
    assert (status, json.loads(out)["identical"]) == (1, False)
    assert slim("--format", "quiet", "diff", files["plain"], files["plain"])[:2] == (0, "identical\n")


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_file_that_is_no_checkpoint_is_an_error_in_one_block(slim, files, command) -> None:
    status, out, err = slim(command, files["project"])
    assert (status, out) == (2, "")
    assert err.startswith("error: header length")
    assert str(files["project"]) in err


def test_the_three_commands_import_no_torch(files) -> None:
    script = f"""
        import sys
        from slim_core.cli.main import run

        for arguments in (["inspect", {str(files["rich"])!r}], ["verify", {str(files["rich"])!r}],
                          ["diff", {str(files["plain"])!r}, {str(files["pruned"])!r}]):
            assert run(arguments) in (0, 1)
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", dedent(script)], check=True, capture_output=True, text=True, timeout=60)


def test_inspect_says_how_sparse_tensors_are_stored(slim, files) -> None:
    status, out, _ = slim("inspect", files["sparse"])
    assert status == 0
    header = inspect(files["sparse"])
    lines = {line.split()[0]: line for line in out.splitlines() if line.split()}
    for name, form in (("blocks", "blocks of 4 x 8"), ("pairs", "2:4"), ("rare", "gaps"), ("dense", "dense")):
        assert form in lines[name]
        assert f"{header.stored[name].nbytes:,}" in lines[name]
    status, out, _ = slim("--format", "json", "inspect", files["sparse"])
    assert json.loads(out)["tensors"]["halves"]["sparse"] == {
        "packing": "n_m", "n": 1, "m": 4, "layout": "flat", "axis": 0
    }  # fmt: skip
