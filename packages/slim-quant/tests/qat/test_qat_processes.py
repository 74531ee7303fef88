"""Two real processes with gloo train one prepared model: they agree, and find what one process finds on all samples."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from qat_gloo import WORLD, learn, run

States = list[dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> States:
    folder: Path = tmp_path_factory.mktemp("gloo")
    context = get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=run, args=(rank, str(folder), queue)) for rank in range(WORLD)]
    for worker in workers:
        worker.start()
    results = dict(queue.get(timeout=240) for _ in workers)
    for worker in workers:
        worker.join(120)
    assert all(worker.exitcode == 0 for worker in workers)
    return [results[rank] for rank in range(WORLD)]


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["moving_average", "lsq+"])
def test_processes_agree_with_each_other_and_ranges_are_those_of_all_samples(found: States, quantizer: str) -> None:
    first, second = (found[rank][quantizer] for rank in range(WORLD))
    assert first == second
    if quantizer == "moving_average":
        alone = learn(quantizer, 0, 1)
        for name, value in alone.items():
            if name.endswith((".low", ".high")):  # the weights differ by roundings of float sums
                torch.testing.assert_close(torch.tensor(first[name]), value, rtol=1e-3, atol=1e-3)
