"""Calibration over several processes: two real ones with gloo see half of the data each, and find the whole's range."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from quant_gloo import WORLD, batches, observe

from slim_quant.observers import OBSERVERS, MovingAverageObserver, make_observer
from slim_quant.schemes import Scheme

Found = list[dict[str, tuple[float, float]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder: Path = tmp_path_factory.mktemp("gloo")
    context = get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=observe, args=(rank, str(folder), queue)) for rank in range(WORLD)]
    for worker in workers:
        worker.start()
    results = dict(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(30)
    assert all(worker.exitcode == 0 for worker in workers)
    return [results[rank] for rank in range(WORLD)]


@pytest.mark.parametrize("name", OBSERVERS)
def test_all_processes_find_the_range_of_the_whole(found: Found, name: str) -> None:
    assert found[0][name] == found[1][name]
    if name == "moving_average":
        averages = []
        for rank in range(WORLD):
            observer = MovingAverageObserver()
            for batch in batches()[rank::WORLD]:
                observer.update(batch)
            averages.append(torch.stack(observer.range(Scheme(8, False))))
        expected = tuple(float(end) for end in torch.stack(averages).mean(0))
    else:
        whole = make_observer(name)
        for batch in batches():
            whole.update(batch)
        expected = tuple(float(end) for end in whole.range(Scheme(8, False)))
    assert found[0][name] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_process_that_saw_nothing_takes_the_others_range(found: Found, name: str) -> None:
    alone = make_observer(name)
    alone.update(batches()[1])
    expected = tuple(float(end) for end in alone.range(Scheme(8, False)))
    assert found[0][f"{name} alone"] == found[1][f"{name} alone"] == pytest.approx(expected, rel=1e-9)
