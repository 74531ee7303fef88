"""What is said when a command is stopped, or a file cannot be written."""

from __future__ import annotations

import pytest

from slim_core.errors import Interrupted, OutputFolderError
from slim_quant.cli.delivery import kept, writing


def test_ctrl_c_after_the_file_was_written_says_where_it_is(tmp_path) -> None:
    path = tmp_path / "int8.safetensors"

    def written() -> None:
        path.write_text("new")
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as error, kept(path):
        written()
    assert str(path) in error.value.what
    assert error.value.hint == f"to go on: slim quant export {path} -o FILE.onnx"


@pytest.mark.parametrize("old", [False, True])
def test_ctrl_c_before_it_was_written_says_nothing_about_an_older_file(tmp_path, old) -> None:
    path = tmp_path / "int8.safetensors"
    if old:
        path.write_text("old")
    with pytest.raises(KeyboardInterrupt), kept(path):
        raise KeyboardInterrupt


def test_what_the_system_says_becomes_an_error_about_the_file(tmp_path) -> None:
    path = tmp_path / "int8.onnx"
    with pytest.raises(OutputFolderError, match="No space left on device") as error, writing(path):
        raise OSError(28, "No space left on device")
    assert error.value.where == str(path)
