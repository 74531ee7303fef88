"""``slim prune sparsify`` and ``slim prune show`` on a plan of sparsity."""

from __future__ import annotations

import io
import json
from textwrap import dedent

import pytest

from slim_core.checkpoint import inspect, load, save
from slim_core.cli.main import run
from slim_core.cli.output import Output
from slim_core.plugins import load_plugins
from slim_core.testing.workloads import TinyNet, tiny_workload
from slim_prune.sparsity import SparsityMasks, SparsityPlan


@pytest.fixture
def slim(tmp_path, monkeypatch):
    """Run ``slim`` on the tiny model; return exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project.py").write_text(
        dedent("""
        from slim_core import hookimpl
        from slim_core.testing.workloads import TinyNet

        @hookimpl
        def slim_register_models(register):
            register("tiny", TinyNet)
        """)
    )
    from dataclasses import replace

    from slim_core.workload import BuilderRef

    save(replace(tiny_workload(), builder=BuilderRef("tiny")), tmp_path / "base.safetensors")

    def invoke(*arguments: object) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        options = ["--load", "project.py", "--checkpoint", "base.safetensors"]
        words = [str(item) for item in arguments]
        status = run(
            ["prune", *words, *(options if words[0] == "sparsify" else [])], output=Output(stdout=out, stderr=err)
        )
        return status, out.getvalue(), err.getvalue()

    return invoke


def test_a_checkpoint_with_the_zeros_that_were_asked(slim, tmp_path) -> None:
    status, out, err = slim("sparsify", "--sparsity", 0.9, "-o", "s.safetensors", "--format", "json")
    assert status == 0, err
    data = json.loads(out)
    assert data["sparsity"] == pytest.approx(0.9, abs=0.01)
    assert data["checkpoint"]["bytes"] == (tmp_path / "s.safetensors").stat().st_size
    registry = load_plugins(select=["slim-prune"], strict=True).registry
    again = load(tmp_path / "s.safetensors", registry=registry, factory=TinyNet, check_parity=True)
    assert SparsityMasks.of(again.model).sparsity == pytest.approx(data["sparsity"])
    assert inspect(tmp_path / "s.safetensors").transforms[-1].kind == "prune.sparse"


def test_a_plan_that_is_written_shown_and_applied(slim, tmp_path) -> None:
    status, _, err = slim("sparsify", "--scheme", "2:4", "--permute", "--plan", "plan.safetensors", "--format", "quiet")
    assert status == 0, err
    plan = SparsityPlan.load(tmp_path / "plan.safetensors")
    assert plan.scheme.permute
    status, out, _ = slim("show", "plan.safetensors", "--format", "json")
    assert (status, json.loads(out)["sparsity"]) == (0, plan.sparsity)
    status, _, err = slim("sparsify", "--from", "plan.safetensors", "-o", "s.safetensors", "--format", "quiet")
    assert status == 0, err
    registry = load_plugins(select=["slim-prune"], strict=True).registry
    assert plan.masks.violations(load(tmp_path / "s.safetensors", registry=registry, factory=TinyNet).model) == 0


@pytest.mark.parametrize(
    ("arguments", "scheme"),
    [
        (["--block", "4x2", "--sparsity", 0.5], {"name": "block", "shape": [4, 2]}),
        (["--scheme", "1:2:layout=flat"], {"name": "n_m", "n": 1, "m": 2, "layout": "flat"}),
        (["--scheme", "unstructured:scope=layer", "--budget", "nonzero=60%"], {"scope": "layer"}),
        (["--threshold", 0.01], {"name": "unstructured"}),
        (["--ratio", "hidden=0.5", "--ratio", "head=0.25"], {"name": "unstructured"}),
    ],
)
def test_options_reach_the_plan(slim, arguments, scheme) -> None:
    status, out, err = slim("sparsify", *arguments, "--format", "json")
    assert status == 0, err
    assert scheme.items() <= json.loads(out)["scheme"].items()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "how sparse"),
        (["--block", "4", "--sparsity", 0.5], "--block takes"),
        (["--scheme", "2:4", "--sparsity", 0.5], "says itself"),
        (["--scheme", "2:x"], "N:M in numbers"),
        (["--sparsity", 0.5, "-o", "model.pt"], ".safetensors file"),
        (["--sparsity", 0.5, "-o", "base.safetensors"], "there already"),
        (["--sparsity", 0.5, "--importance", "taylor"], "looks at data"),
        (["--ratio", "hidden=half"], "not a number"),
    ],
)
def test_mistakes_are_said_with_what_to_do(slim, arguments, words) -> None:
    status, _, err = slim("sparsify", *arguments)
    assert status != 0
    assert words in err


def test_the_table_names_weights_and_totals(slim) -> None:
    status, out, _ = slim("sparsify", "--sparsity", 0.5)
    assert status == 0
    assert "hidden.weight" in out
    assert "selected weights stay (50.0" in out
