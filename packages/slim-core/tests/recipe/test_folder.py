from pathlib import Path

import pytest

from slim_core.errors import OutputFolderError, SlimError
from slim_core.recipe import run
from slim_core.recipe.folder import open_folder


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "files", [("steps/notes.txt",), ("README.md",), ("steps/notes.txt", "README.md", "model.onnx")]
)
def test_files_of_the_user_are_never_removed(recipe, registry, tmp_path, files, overwrite):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("# mine")
    if files == ("steps/notes.txt",) and not overwrite:
        run(recipe, tmp_path, registry=registry)  # nothing there is in the way
    else:
        with pytest.raises(OutputFolderError, match=r"not Slim's|not the work of a run"):
            run(recipe, tmp_path, registry=registry, overwrite=overwrite)
        assert set(tree(tmp_path)) == set(files)
    assert all((tmp_path / name).read_text() == "# mine" for name in files)


def test_overwrite_removes_the_run_and_nothing_else(recipe, registry, tmp_path):
    run(recipe, tmp_path, registry=registry)
    for name in ("steps/notes.txt", "steps/01-t.nudge.txt", "more/README.md", "data.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    recipe["steps"] = recipe["steps"][1:]
    with pytest.raises(OutputFolderError) as caught:
        run(recipe, tmp_path, registry=registry)
    assert "removes model.safetensors, report.json" in caught.value.hint
    assert "steps/01-t.nudge, steps/02-fit" in caught.value.hint
    run(recipe, tmp_path, registry=registry, overwrite=True)
    assert (tmp_path / "steps/notes.txt").read_text() == (tmp_path / "data.csv").read_text() == "mine"
    assert (tmp_path / "more/README.md").exists()
    assert (tmp_path / "steps/01-t.nudge.txt").exists()
    assert not (tmp_path / "steps/02-fit").exists()


def test_a_readme_written_over_the_model_card_is_kept(recipe, registry, tmp_path):
    run(recipe, tmp_path, registry=registry)
    (tmp_path / "README.md").write_text("# What I found out")
    for overwrite in (False, True):
        with pytest.raises(OutputFolderError, match="not Slim's"):
            run(recipe, tmp_path, registry=registry, overwrite=overwrite)
    assert (tmp_path / "README.md").read_text() == "# What I found out"
    assert (tmp_path / "model.safetensors").exists()


def test_a_run_that_computed_nothing_leaves_nothing(recipe, registry, tmp_path):
    recipe["workload"]["kwargs"]["broken"] = True
    for folder in (tmp_path / "new", tmp_path):
        with pytest.raises(SlimError, match="forward fails"):
            run(recipe, folder, registry=registry)
    assert list(tmp_path.iterdir()) == []
    recipe["workload"]["kwargs"]["broken"] = False
    run(recipe, tmp_path, registry=registry)  # is not refused as another run


def test_a_refused_folder_is_left_as_it_was(recipe, registry, tmp_path):
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(OutputFolderError, match="would replace"):
        run(recipe, tmp_path, registry=registry)
    assert tree(tmp_path) == {"model.onnx": "mine"}


def test_what_was_computed_is_kept_when_a_run_fails(tmp_path):
    def fail():
        with open_folder(tmp_path, "x", {}, versions={}) as folder:
            (folder.work_folder(0, "original") / "state").write_text("epoch 3")
            raise SlimError("later")

    with pytest.raises(SlimError, match="later"):
        fail()
    assert (tmp_path / "steps/run.json").is_file()
    assert (tmp_path / "steps/00-original/work/state").is_file()
