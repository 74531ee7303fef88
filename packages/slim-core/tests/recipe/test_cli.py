import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from slim_core.cli.main import run as slim
from slim_core.cli.output import Output

PROJECT = Path(__file__).parent / "project.py"


@pytest.fixture
def file(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("SLIM_PLUGINS", "")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def call(*arguments, format="human"):
    out, err = io.StringIO(), io.StringIO()
    status = slim(["--load", str(PROJECT), *map(str, arguments)], output=Output(format, out, err))
    return status, out.getvalue(), err.getvalue()


def test_run_prints_the_table_and_where_the_report_is(file, tmp_path):
    status, out, _ = call("run", file, "-o", tmp_path / "out")
    assert status == 0
    assert "top1" in out
    assert f"Report: {tmp_path / 'out'}/report.html" in out.replace("\n", "")


def test_run_in_json_is_the_report(file, tmp_path):
    status, out, _ = call("run", file, "-o", tmp_path / "out", "--set", "seed=9", format="json")
    assert status == 0
    data = json.loads(out)
    assert data["report"]["seed"] == 9
    assert data["report"] == json.loads((tmp_path / "out/report.json").read_text())


def test_run_in_quiet_is_one_line(file, tmp_path):
    status, out, err = call("run", file, "-o", tmp_path / "out", format="quiet")
    assert (status, err) == (0, "")
    assert out.count("\n") == 1
    assert out.startswith(f"{tmp_path / 'out'}: ")


def test_the_default_folder_is_named_after_the_recipe(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = call("run", file, "--set", "name='My net: v2'", "--set", "steps=[]", format="json")
    assert status == 0
    assert json.loads(out)["out"] == "out/My-net-v2"


def test_report_draws_a_finished_run_again(file, tmp_path):
    call("run", file, "-o", tmp_path / "out")
    (tmp_path / "out/report.html").unlink()
    status, out, _ = call("report", tmp_path / "out")
    assert status == 0
    assert "top1" in out
    assert (tmp_path / "out/report.html").is_file()


def test_report_without_a_run_is_an_error(file, tmp_path):
    status, _, err = call("report", tmp_path)
    assert status == 2
    assert "there is no report" in err


def test_another_run_in_the_folder_is_an_error_that_names_the_way_out(file, tmp_path):
    call("run", file, "-o", tmp_path / "out")
    status, _, err = call("run", file, "-o", tmp_path / "out", "--set", "seed=1")
    assert status == 2
    assert "there seed is 5, here 1" in err
    assert "--overwrite" in err
    assert call("run", file, "-o", tmp_path / "out", "--set", "seed=1", "--overwrite")[0] == 0


def test_check_accepts_a_good_recipe(file):
    status, out, _ = call("recipe", "check", file)
    assert status == 0
    assert "valid recipe" in out


def test_check_tells_every_problem(file):
    file.write_text(file.read_text().replace("epochs: 3", "epoch: 3").replace("t/data", "t/dta"))
    status, _, err = call("recipe", "check", file)
    assert status == 2
    assert "2 problems" in err
    assert "did you mean 'epochs'" in err
    assert "did you mean 't/data'?" in err
    status, out, _ = call("recipe", "check", file, format="json")
    assert status == 2
    data = json.loads(out)
    assert data["valid"] is False
    assert {item["where"].rpartition(":")[2] for item in data["problems"]} == {"7", "9"}


def test_schema_is_json_and_may_go_to_a_file(file, tmp_path):
    status, out, _ = call("recipe", "schema")
    assert status == 0
    schema = json.loads(out)
    assert "t.nudge" in schema["$defs"]
    assert call("recipe", "schema", "-o", tmp_path / "s.json")[0] == 0
    assert json.loads((tmp_path / "s.json").read_text()) == schema
    status, _, err = call("recipe", "schema", "-o", tmp_path / "a" / "s.json")
    assert status == 2
    assert "there is no folder" in err
    assert not (tmp_path / "a").exists()


def test_list_and_show_without_installed_recipes(file):
    status, out, _ = call("recipe", "list")
    assert status == 0
    assert "slim-zoo" in out
    status, _, err = call("recipe", "show", "nothing")
    assert status == 2
    assert "unknown recipe 'nothing'" in err


def test_installed_recipes_are_listed_and_shown(file, tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from slim_core import hookimpl\n\n@hookimpl\ndef slim_register_recipes(register):\n"
        f"    register('my-recipe', {str(file)!r})\n"
    )
    status, out, _ = call("--load", plugin, "recipe", "list", format="json")
    assert status == 0
    (row,) = json.loads(out)["recipes"]
    assert (row["name"], row["steps"]) == ("my-recipe", ["t.nudge", "fit"])
    status, out, _ = call("--load", plugin, "recipe", "show", "my-recipe")
    assert out.strip() == file.read_text().strip()
    assert call("--load", plugin, "run", "my-recipe", "-o", tmp_path / "out", "--set", "steps=[]")[0] == 0


def test_listing_recipes_imports_no_torch():
    code = "import sys; from slim_core.cli.main import run; run(['recipe', 'list']); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "SLIM_PLUGINS": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0


@pytest.mark.slow
def test_ctrl_c_exits_with_130_and_the_command_that_resumes(file, recipe, tmp_path):
    recipe["workload"]["data_kwargs"] = {"slow": 0.5}
    file.write_text(yaml.safe_dump(recipe))
    log = tmp_path / "log"
    command = ["run", str(file), "--load", str(PROJECT), "-o", str(tmp_path / "out")]
    child = subprocess.Popen(
        [sys.executable, "-m", "slim_core", *command],
        env={**os.environ, "SLIM_TEST_EPOCHS": str(log), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    try:
        deadline = time.monotonic() + 120
        while not log.exists() or len(log.read_text().split()) < 2:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130
    (line,) = [line for line in err.splitlines() if line.strip()]
    assert line == f"interrupted while training the original; to resume: slim {' '.join(command)}"
