"""The main job on real pictures: train, prune half of the MACs, fine-tune, quantize, export, measure.

Runs the shipped recipe ``mobilenet_v1-DATA`` and keeps its ``report.json`` as ``results/main_job_DATA.json``. On
Fashion-MNIST (60,000 pictures of 32x32) that takes about half an hour on two cores; a stopped run resumes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from slim_core.files import write_json
from slim_core.plugins import load_plugins
from slim_core.recipe import load_recipe, run_recipe

ROOT = Path(__file__).parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "fashion-mnist"), default="fashion-mnist")
    parser.add_argument("--output", type=Path, help="folder of the run (default: out/main-job-DATA)")
    arguments = parser.parse_args()
    folder = arguments.output or ROOT / "out" / f"main-job-{arguments.data}"
    registry = load_plugins().registry
    run_recipe(load_recipe(f"mobilenet_v1-{arguments.data}", registry), folder, registry=registry)
    report = json.loads((folder / "report.json").read_text())
    name = f"main_job_{arguments.data.replace('-', '_')}.json"
    write_json(Path(__file__).parent / "results" / name, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
