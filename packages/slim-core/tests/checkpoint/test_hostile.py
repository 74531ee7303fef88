"""Damaged and hostile files: whatever stands in them, nothing but ``CheckpointError`` comes out."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import checkpoint_kit as kit
import pytest
import torch
from torch import nn

from slim_core.checkpoint import inspect, load, save, verify
from slim_core.checkpoint.header import header_of, read_header
from slim_core.checkpoint.limits import MAX_CONTAINER_HEADER
from slim_core.errors import CheckpointError
from slim_core.workload import BuilderRef, Workload

DEEP: Any = []
for _ in range(60):
    DEEP = [DEEP]

#: What each value of a header is replaced by.
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 2**40, 2**63, 2**70, 10**400, 0.5, float("nan"), float("inf"), "", "x", "../../etc/passwd",
    "a b", "\u0000", "\ud800", "x" * 600, [], [1], {}, {"x": 1}, DEEP,
)  # fmt: skip

#: Parts of the header whose content is not Slim's: another value there may be a valid file.
FREE = ("recipe", "metrics", "producers", "builder.kwargs", "builder.name", "transforms[0].data", "transforms[1].data")


#: One tensor of each kind: with a layout and zero points, tied and int4, frozen, and of each role.
TENSORS = ("conv.weight", "left.weight", "norm.bias", "mask", "slim:buffer/steps", "slim:transform/0/kept",
           "slim:transform/1/c.scale", "slim:input/0", "slim:output/0")  # fmt: skip


def walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from walk(inner, (*path, index))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy with another value at a path; what lies beside the path is shared."""
    if not path:
        return new
    fresh = copy.copy(value)
    fresh[path[0]] = replaced(value[path[0]], path[1:], new) if len(path) > 1 else new
    return fresh


def named(path: tuple[Any, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")


def refusal(reader: Callable[[Path], Any], path: Path) -> CheckpointError | None:
    try:
        reader(path)
    except CheckpointError as error:
        return error
    return None


@pytest.fixture(scope="module")
def parts(rich_file):
    return kit.split(rich_file.read_bytes())


@pytest.fixture
def attempt(tmp_path, registry):
    """Read a file in every way; return where it was refused (``inspect``, ``verify``, ``load``), or ``None``."""
    path = tmp_path / "hostile.safetensors"

    def read(raw: bytes) -> str | None:
        path.write_bytes(raw)
        for name, reader in (
            ("inspect", inspect),
            ("verify", verify),
            ("load", lambda item: load(item, registry=registry)),
        ):
            error = refusal(reader, path)
            if error is not None:
                assert error.where == str(path)
                assert all(line.isprintable() for line in str(error).splitlines())
                assert len(error.what) < 2000
                return name
        return None

    return read


def test_the_untouched_parts_make_a_valid_file(parts, attempt) -> None:
    assert attempt(kit.joined(*parts)) is None


@pytest.mark.slow
def test_every_field_of_the_header_replaced(parts, attempt) -> None:
    container, slim, data = parts
    accepted = set()
    for path in walk(slim):
        if path == ("sha256",) or (path[:1] == ("tensors",) and len(path) > 2 and path[1] not in TENSORS):
            continue  # made anew, see the tests of the seal; like one of TENSORS
        old = at(slim, path)
        for new in WRONG[::5] if named(path).startswith(FREE) else WRONG:
            if type(new) is type(old) and new == old:
                continue
            if attempt(kit.joined(container, replaced(slim, path, new), data)) is None:
                accepted.add((named(path), repr(new)))
    strict = {item for item in accepted if not item[0].startswith(FREE)}
    assert strict == {
        # other values of these make other valid files: nothing contradicts them
        ("inputs.tensors[0].scale", "1099511627776"),
        ("inputs.tensors[0].scale", "0.5"),
        ("parity.tolerance", "0"),
        ("parity.tolerance", "0.5"),
        ("transforms[0].schema", "0"),
        ("transforms[1].schema", "0"),
    }


def test_every_field_of_a_scheme_replaced_or_deleted(parts, attempt) -> None:
    """A transform's data is its own, but its schemes say how the stored bytes are read."""
    container, slim, data = parts
    accepted = set()
    start = ("transforms", 1, "data", "schemes")
    for path in walk(at(slim, start), start):
        old = at(slim, path)
        for new in WRONG:
            if (type(new) is not type(old) or new != old) and attempt(
                kit.joined(container, replaced(slim, path, new), data)
            ) is None:
                accepted.add((named(path[4:]), repr(new)))
        fresh = copy.deepcopy(slim)
        del at(fresh, path[:-1])[path[-1]]
        if attempt(kit.joined(container, fresh, data)) is None:
            accepted.add((named(path[4:]), "deleted"))
    assert accepted == {
        ("conv.weight.zero_point", "None"),  # other values of the same tensor
        ("conv.weight.zero_point", "deleted"),
        ("conv.weight.symmetric", "True"),  # int8 is signed, whatever it is called
        ("right.weight.zero_point", "deleted"),  # what it says is the default
    }


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("conv.bias", {"role": "parameter"}),
        ("conv.bias", {"role": "transform"}),
        ("conv.bias", {"dtype": "float32"}),
        ("conv.bias", {"shape": [3]}),
        ("conv.weight", {"role": "parameter"}),
        ("conv.weight", {"packing": {}}),
        ("slim:buffer/steps", {"role": "transient"}),
        ("slim:buffer/steps", {"role": "buffer"}),
        ("slim:transform/0/kept", {"role": "transform"}),
        ("slim:transform/0/kept", {"layout": "channels_last"}),
        ("slim:input/0", {"dtype": "int8"}),
    ],
)
def test_what_follows_is_not_said_again(parts, attempt, name, more) -> None:
    container, slim, data = parts
    record = slim["tensors"][name]
    assert attempt(kit.joined(container, replaced(slim, ("tensors", name), {**record, **more}), data)) == "inspect"


def test_a_buffer_that_is_called_a_parameter_does_not_fit_the_model(parts, attempt) -> None:
    container, slim, data = parts
    bare = {"sha256": slim["tensors"]["mask"]["sha256"]}
    assert attempt(kit.joined(container, replaced(slim, ("tensors", "mask"), bare), data)) == "load"
    called = {**slim["tensors"]["conv.bias"], "role": "buffer"}
    assert attempt(kit.joined(container, replaced(slim, ("tensors", "conv.bias"), called), data)) == "load"


def test_every_key_of_the_header_deleted(parts, attempt) -> None:
    container, slim, data = parts
    accepted = set()
    for path in walk(slim):
        if not path:
            continue
        fresh = copy.deepcopy(slim)
        del at(fresh, path[:-1])[path[-1]]
        if attempt(kit.joined(container, fresh, data)) is None:
            accepted.add(named(path))
    optional = {name for name in accepted if not name.startswith(FREE)}
    # What is not said of a tensor has its default: it takes a gradient, it is row-major.
    assert optional == {"tensors.norm.bias.frozen", "tensors.conv.weight.layout"}


def test_an_unknown_key_in_every_object_of_the_header(parts, attempt) -> None:
    container, slim, data = parts
    accepted = set()
    for path in walk(slim):
        if isinstance(at(slim, path), dict):
            fresh = copy.deepcopy(slim)
            at(fresh, path)["unknown"] = 1
            if attempt(kit.joined(container, fresh, data)) is None:
                accepted.add(named(path))
    assert {name for name in accepted if not name.startswith(FREE)} == set()


def test_every_field_of_the_container_replaced_deleted_or_joined_by_another(parts, attempt) -> None:
    container, slim, data = parts
    for path in walk(container):
        if not path or path[0] not in TENSORS:
            continue
        old = at(container, path)
        for new in WRONG:
            if type(new) is not type(old) or new != old:
                assert attempt(kit.joined(replaced(container, path, new), slim, data)) == "inspect", (path, new)
        fresh = copy.deepcopy(container)
        del at(fresh, path[:-1])[path[-1]]
        assert attempt(kit.joined(fresh, slim, data)) == "inspect", path
        if isinstance(old, dict):
            fresh = replaced(container, (*path, "unknown"), 1)
            assert attempt(kit.joined(fresh, slim, data)) == "inspect", path


def test_tensors_that_overlap_leave_holes_or_are_swapped(parts, attempt) -> None:
    container, slim, data = parts
    names = [name for name in container if name != "__metadata__"]
    for name in names:
        start, stop = container[name]["data_offsets"]
        for shift in (-4, 4, -(2**40), 2**40):
            moved = replaced(container, (name, "data_offsets"), [start + shift, stop + shift])
            if stop > start:
                assert attempt(kit.joined(moved, slim, data)) == "inspect"
    one, two = "norm.weight", "norm.running_var"
    swapped = copy.deepcopy(container)
    swapped[one], swapped[two] = swapped[two], swapped[one]
    assert attempt(kit.joined(swapped, slim, data)) == "verify"


def test_a_flipped_bit_anywhere_is_found(rich_file, attempt) -> None:
    raw = rich_file.read_bytes()
    chosen = random.Random(0).sample(range(len(raw)), 1000)
    for position in [*range(16), *chosen, len(raw) - 1]:
        flipped = bytearray(raw)
        flipped[position] ^= 1 << (position % 8)
        assert attempt(bytes(flipped)) in ("inspect", "verify"), position


def test_without_verification_a_flipped_bit_still_raises_nothing_else(rich_file, registry, tmp_path) -> None:
    raw = rich_file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    path = tmp_path / "a.safetensors"
    for position in range(start, len(raw), 5):
        flipped = bytearray(raw)
        flipped[position] ^= 0xFF
        path.write_bytes(bytes(flipped))
        refusal(lambda item: load(item, registry=registry, verify=False), path)


def test_every_truncation_is_found_before_tensors_are_read(rich_file, attempt) -> None:
    raw = rich_file.read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    lengths = {*range(18), *range(18, header, 97), *range(header - 3, header + 3), *range(header, len(raw), 61)}
    lengths |= {len(raw) - 1, len(raw) - 2}
    for length in sorted(lengths):
        assert attempt(raw[:length]) == "inspect", length


def test_trailing_bytes_are_found(rich_file, attempt) -> None:
    for tail in (b"\0", b"x" * 64, b"PK\x03\x04"):
        assert attempt(rich_file.read_bytes() + tail) == "inspect"


def test_header_lengths_beyond_the_file_or_the_limit(rich_file, attempt) -> None:
    raw = rich_file.read_bytes()
    for length in (0, 1, len(raw), MAX_CONTAINER_HEADER, MAX_CONTAINER_HEADER + 1, 2**31, 2**63, 2**64 - 1):
        assert attempt(length.to_bytes(8, "little") + raw[8:]) == "inspect"


def test_keys_that_stand_twice(parts, attempt, rich_file) -> None:
    container, slim, data = parts
    text = json.dumps(slim)
    for twice in ('{"format_version": 1, ' + text[1:], text[:-1] + ', "recipe": null}'):
        assert attempt(kit.joined(container, twice, data)) == "inspect"
    whole = json.dumps(container)
    for head in (
        whole[:-1] + ', "gain": ' + json.dumps(container["gain"]) + "}",
        whole[:-1] + ', "__metadata__": {}}',
    ):
        raw = head.encode()
        assert attempt(len(raw).to_bytes(8, "little") + raw + data) == "inspect"


def test_the_seal_covers_what_no_other_check_does(parts, attempt, registry, tmp_path) -> None:
    container, slim, data = parts
    sealed = kit.split(kit.joined(container, slim, data))[1]
    for change in ({"recipe": None}, {"metrics": {"accuracy": 0.99}}, {"sha256": "0" * 64}, {"sha256": "f" * 64}):
        text = json.dumps({**sealed, **change})
        assert attempt(kit.joined(container, text, data)) == "inspect"


def test_two_metadata_keys_are_refused(parts, attempt) -> None:
    container, _, data = parts
    raw = json.dumps({**container, "__metadata__": {**container["__metadata__"], "format": "pt"}}).encode()
    assert attempt(len(raw).to_bytes(8, "little") + raw + data) == "inspect"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "the file is empty"),
        (b"\x10\0\0", "the file ends after 3 bytes"),
        (b"PK\x03\x04" + bytes(100), "a file of torch.save"),
        (b"\x80\x02}q\x00(X\x01\0\0\0aq" + bytes(100), "a file of torch.save"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
        (b"not a checkpoint at all, just some text", "the header claims"),
        (b"\x02\0\0\0\0\0\0\0[]", "begins with '{'"),
        (b"\x02\0\0\0\0\0\0\0{}", "Slim did not write"),
        (b"\x02\0\0\0\0\0\0\0\xff\xff", "begins with '{'"),
    ],
)
def test_other_files_are_told_apart(tmp_path, raw, words) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=words):
        inspect(path)


def test_a_foreign_safetensors_file_says_how_to_load_it(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 tensors that Slim did not write") as caught:
        load(tmp_path / "a.safetensors")
    assert "load_file" in caught.value.hint


def test_a_file_of_torch_save_is_never_unpickled(tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/exploded",))

    for name, new in (("zip", True), ("pickle", False)):
        torch.save(Bomb(), tmp_path / name, _use_new_zipfile_serialization=new)
        with pytest.raises(CheckpointError, match="run code when it is loaded"):
            load(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_missing_files_folders_and_pipes(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    for path, words in (
        (tmp_path / "nowhere", "no such file"),
        (tmp_path, "a folder"),
        (tmp_path / "pipe", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (tmp_path / "file" / "x", "cannot be opened"),
        ("nul\0byte", "cannot be opened"),
    ):
        for reader in (inspect, verify, load):
            with pytest.raises(CheckpointError, match=words):
                reader(path)


def test_a_newer_format_says_what_reads_it(parts, tmp_path) -> None:
    container, slim, data = parts
    path = tmp_path / "a.safetensors"
    path.write_bytes(kit.joined(container, {**slim, "format_version": 2, "new": 1}, data))
    with pytest.raises(CheckpointError, match="format version 2") as caught:
        inspect(path)
    assert caught.value.hint == "pip install -U slim-core"


def test_names_that_nobody_registered(tmp_path, registry) -> None:
    workload = kit.pruned()
    save(workload, tmp_path / "a.safetensors")
    empty = type(registry)()
    with pytest.raises(CheckpointError, match=r"builder\.name: unknown model 'test/net'"):
        load(tmp_path / "a.safetensors", registry=empty)
    with pytest.raises(CheckpointError, match=r"transforms\[0\]\.kind: unknown checkpoint transform 'test\.keep'"):
        load(tmp_path / "a.safetensors", registry=empty, factory=kit.Net)
    from slim_core.workload import Transform

    other = workload.with_model(workload.model, Transform("prune.channels", 1, {}))
    save(other, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "b.safetensors", registry=registry)
    assert "pip install slim-prune" in caught.value.hint


def test_without_builder_a_factory_is_asked_for(tmp_path) -> None:
    save(Workload(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="builder") as caught:
        load(tmp_path / "a.safetensors")
    assert "factory=" in caught.value.hint


@pytest.mark.parametrize("kwargs", [{"width": "wide"}, {"width": -1}, {"nothing": 1}, {"width": 2**62}])
def test_a_builder_that_fails_on_its_arguments(tmp_path, registry, kwargs) -> None:
    workload = kit.workload()
    wrong = Workload(workload.model, workload.example_inputs, builder=BuilderRef("test/net", kwargs))
    save(wrong, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"builder: .*cannot be built"):
        load(tmp_path / "a.safetensors", registry=registry)


def test_a_model_that_does_not_fit_is_described(tmp_path) -> None:
    class Wider(kit.Net):
        def __init__(self) -> None:
            super().__init__(7)
            self.more = nn.Linear(2, 2)
            del self.gain

    save(kit.workload(), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "a.safetensors", factory=Wider)
    message = str(caught.value)
    assert "the model lacks gain" in message
    assert "the file lacks more.bias, more.weight" in message
    assert (
        "conv.weight is a parameter of float32 [7, 3, 3, 3] in the model, a parameter of float32 [6, 3, 3, 3]"
        in message
    )


def test_another_dtype_does_not_fit(tmp_path) -> None:
    save(kit.workload(), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="float16"):
        load(tmp_path / "a.safetensors", factory=lambda: kit.Net().half())


def test_a_factory_that_returns_no_module(tmp_path) -> None:
    save(kit.workload(), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="returned a dict"):
        load(tmp_path / "a.safetensors", factory=dict)


def test_bools_that_are_neither_0_nor_1(parts, tmp_path, registry) -> None:
    container, slim, data = parts
    start = container["mask"]["data_offsets"][0]
    changed = bytearray(data)
    changed[start] = 7
    path = tmp_path / "a.safetensors"
    path.write_bytes(kit.joined(container, slim, bytes(changed)))
    with pytest.raises(CheckpointError, match="neither 0 nor 1"):
        load(path, registry=registry, verify=False)


def test_reading_the_header_reads_nothing_else(rich_file, tmp_path, monkeypatch) -> None:
    read = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda handle, size, offset: read.append(size) or real(handle, size, offset))
    header = read_header(rich_file)
    assert sum(read) == header.data_start
    assert header_of is not None


BOMBS = """
    import json, os, resource, sys, time
    from slim_core.checkpoint import inspect, verify
    from slim_core.errors import CheckpointError

    resource.setrlimit(resource.RLIMIT_AS, (1536 * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    path = sys.argv[1]

    def container(text):
        return json.dumps({"__metadata__": {"slim": text}}).encode()

    def tensors(count):
        return json.dumps({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)}
                          | {"__metadata__": {"slim": "{}"}}).encode()

    n = 16 * 2**20 - 64
    bombs = {
        "deep lists": b'{"a":' + b"[" * 10**6,
        "deep objects": b'{"a":' * 10**6,
        "deep slim": container("[" * 10**6),
        "deep and closed": container("[" * 10**5 + "]" * 10**5),
        "many lists": container("[" + "[]," * (n // 3) + "[]]"),
        "many objects": container("[" + "{}," * (n // 3) + "{}]"),
        "many numbers": container("[" + "0," * (n // 2) + "0]"),
        "many at the limit": container("[" + "{}," * 990_000 + "{}]"),
        "long text": container('"' + "x" * n + '"'),
        "long number": container("1" * n),
        "long float": container("0." + "1" * n),
        "many quotes": container('["' + '","' * (n // 4) + '"]'),
        "escapes": container('"' + "\\\\u0000" * (n // 8) + '"'),
        "too long": container("x" * (n + 1000)),
        "blanks": b"{" + b" " * (40 * 2**20),
        "many tensors": tensors(150_000),
        "tensors at the limit": tensors(100_000),
        "huge shape": json.dumps({"__metadata__": {"slim": "{}"}, "t": {"dtype": "F64", "shape": [2**48] * 16,
                                  "data_offsets": [0, 2**63 - 1]}}).encode(),
        "sparse": json.dumps({"__metadata__": {"slim": "{}"}, "t": {"dtype": "U8", "shape": [2**40],
                              "data_offsets": [0, 2**40]}}).encode(),
    }
    for name, raw in bombs.items():
        with open(path, "wb") as handle:
            handle.write(len(raw).to_bytes(8, "little") + raw)
            if name == "sparse":
                handle.truncate(8 + len(raw) + 2**40)
        for reader in (inspect, verify) if name == "sparse" else (inspect,):
            begin = time.process_time()
            try:
                reader(path)
            except CheckpointError:
                pass
            else:
                raise SystemExit(f"{name} was accepted")
            assert time.process_time() - begin < 15, name
    print("done")
"""


@pytest.mark.slow
def test_bombs_cost_little_time_and_memory(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", dedent(BOMBS), str(tmp_path / "bomb")], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "done\n"


LIMITED = """
    import resource, sys
    sys.path.insert(0, sys.argv[1])
    import checkpoint_kit as kit
    from slim_core.checkpoint import load
    from slim_core.errors import CheckpointError

    registry = kit.registry()
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]),) * 2)
    try:
        load(sys.argv[2], registry=registry)
    except CheckpointError as error:
        print(error.field)
"""


def test_a_tensor_larger_than_memory_is_an_error_that_names_it(parts, tmp_path) -> None:
    """A sparse file may claim any size; what cannot be allocated is refused."""
    container, slim, data = parts
    size = 2**42
    name = "slim:transform/0/kept"
    container, slim = copy.deepcopy(container), copy.deepcopy(slim)
    end = max(item["data_offsets"][1] for key, item in container.items() if key != "__metadata__")
    order = sorted((item["data_offsets"], key) for key, item in container.items() if key != "__metadata__")
    blob, position = b"", 0
    for (start, stop), key in order:
        if key != name:
            container[key]["data_offsets"] = [position, position + stop - start]
            blob += data[start:stop]
            position += stop - start
    container[name] = {"dtype": "I32", "shape": [size // 4], "data_offsets": [position, position + size]}
    path = tmp_path / "sparse.safetensors"
    raw = kit.joined(container, slim, blob)
    path.write_bytes(raw)
    os.truncate(path, len(raw) + size)
    assert end < size
    limit = 16 * 2**30
    done = subprocess.run(
        [sys.executable, "-c", dedent(LIMITED), str(Path(__file__).parent), str(path), str(limit)],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stdout == f"tensors.{name}\n", done.stderr[-2000:]
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != limit
