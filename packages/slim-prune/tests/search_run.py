"""A search as a script of its own, which a test kills: ``python search_run.py FOLDER ALGORITHM WORKERS``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from search_nets import untrained

import slim_prune


def main() -> None:
    folder, algorithm, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    net = untrained()
    net.model.load_state_dict(state())
    result = slim_prune.search(
        net.model,
        net.example_inputs,
        {"macs": 0.5, "params": 0.6},
        task=net.task,
        train=net.train,
        algorithm=algorithm,
        trials=36,
        population=8,
        round_to=2,
        holdout=300,
        samples=128,
        workers=workers,
        folder=folder,
    )
    found = {"trials": [trial.to_json() | {"seconds": 0} for trial in result.trials], "plan": result.plan.to_json()}
    (folder / "result.json").write_text(json.dumps(found))


def state():
    """Weights that are the same in every process."""
    import torch

    torch.manual_seed(4)
    return untrained().model.state_dict()


if __name__ == "__main__":
    main()
