"""Optional dependencies: imported when present, named with their command when absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slim_core.errors import MissingExtraError
from slim_core.extras import require


def test_an_installed_module_is_imported() -> None:
    assert require("json", "slim-core[json]") is json
    assert require("importlib.metadata", "slim-core[x]").__name__ == "importlib.metadata"


@pytest.mark.parametrize("module", ["a_module_that_is_not_there", "a_module_that_is_not_there.inside"])
def test_an_absent_module_names_the_install_command(module: str) -> None:
    with pytest.raises(MissingExtraError) as caught:
        require(module, "slim-latency[onnxruntime]")
    assert caught.value.what == "a_module_that_is_not_there is not installed"
    assert caught.value.hint == "pip install 'slim-latency[onnxruntime]'"


def test_a_module_that_is_broken_inside_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_extra.py").write_text("import another_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="another_that_is_not_there"):
        require("broken_extra", "slim-core[broken]")
