"""Each algorithm against trying everything; and what it asks for depends on seed and scores alone."""

from __future__ import annotations

import math
import sys

import pytest
from search_hand import Counting, Hand, drive, macs, params, quality

from slim_core.errors import MissingExtraError
from slim_prune.allocation.uniform import uniform
from slim_prune.evolution.cma import Cma
from slim_prune.evolution.searchers import Aging, Annealing, Random
from slim_prune.evolution.space import Space
from slim_prune.evolution.workers import Here

TRIALS = 300

MAKERS = {
    "aging": lambda space, seeds, seed, lag=4: Aging(space, seeds, seed, population=20, tournament=5, lag=lag),
    "annealing": lambda space, seeds, seed, lag=4: Annealing(space, seeds, seed, trials=TRIALS, lag=lag),
    "cmaes": lambda space, seeds, seed, lag=4: Cma(space, seeds, seed),
    "random": lambda space, seeds, seed, lag=4: Random(space, seeds, seed),
}


@pytest.fixture(scope="module")
def problem():
    return Hand([48] * 6, {"macs": macs, "params": params}, {"macs": 0.5, "params": 0.6})


@pytest.fixture(scope="module")
def ranked(problem):
    """The scores of all feasible choices, best first."""
    return sorted((quality(counts) for counts in problem.everywhere() if problem.meets(counts)), reverse=True)


def search(problem, name, seed, trials=TRIALS, **kwargs):
    space = Space(problem)
    return drive(space, MAKERS[name](space, (space.point(uniform(problem)),), seed, **kwargs), Counting(), trials)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["aging", "annealing", "cmaes"])
def test_it_finds_the_best_of_all_choices(problem, ranked, name, seed) -> None:
    assert len(ranked) > 50 * TRIALS
    driver = search(problem, name, seed)
    assert max(trial.score[0] for trial in driver.trials) == ranked[0]


def test_random_search_comes_near_and_not_there(problem, ranked) -> None:
    best = [max(trial.score[0] for trial in search(problem, "random", seed).trials) for seed in range(5)]
    assert all(ranked[200] <= figure <= ranked[0] for figure in best)
    assert sum(figure == ranked[0] for figure in best) < 5


@pytest.mark.parametrize("name", MAKERS)
def test_the_first_candidates_are_the_given_ones(problem, name) -> None:
    space = Space(problem)
    seeds = (space.point(uniform(problem)), space.project([1, 2, 3, 1, 2, 3]))
    driver = drive(space, MAKERS[name](space, seeds, 0), Counting(), 40)
    assert [space.point(trial.counts) for trial in driver.trials[:2]] == list(seeds)


class Shuffled(Here):
    """An executor that takes several candidates and gives their results in any order."""

    def __init__(self, scorer, capacity, order) -> None:
        super().__init__(scorer)
        self.capacity, self.order, self.number = capacity, order, 0

    @property
    def free(self) -> bool:
        return len(self._waiting) < self.capacity

    def next(self):
        self.number += 1
        self._waiting.rotate(-(self.order * self.number * 7919 % len(self._waiting)))
        return super().next()


@pytest.mark.parametrize("name", MAKERS)
def test_the_trials_are_the_same_however_many_run_at_once_and_whoever_is_first(problem, name) -> None:
    def trials(executor=None):
        space = Space(problem)
        searcher = MAKERS[name](space, (space.point(uniform(problem)),), 3)
        driver = drive(space, searcher, Counting(), 90, executor=executor)
        return [(trial.number, trial.counts, trial.score, trial.repeats) for trial in driver.trials]

    alone = trials()
    assert trials(Shuffled(Counting(), 3, 1)) == alone
    assert trials(Shuffled(Counting(), 16, 2)) == alone


@pytest.mark.parametrize("name", ["aging", "annealing"])
def test_a_candidate_is_chosen_without_the_results_of_those_under_way(problem, name) -> None:
    space = Space(problem)
    searcher = MAKERS[name](space, (space.point(uniform(problem)),), 0, lag=5)
    assert [searcher.needs(trial) for trial in (30, 31, 99)] == [26, 27, 95]


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_scored_twice_and_repeats_cost_nothing(name) -> None:
    problem = Hand([32, 32], {"params": params}, {"params": 0.5})
    space, scorer = Space(problem), Counting()
    searcher = MAKERS[name](space, (space.point(uniform(problem)),), 0)
    driver = drive(space, searcher, scorer, 80)
    seen = [tuple(counts.values()) for counts in scorer.seen]
    assert len(set(seen)) == len(seen) < 80 == len(driver.trials)
    assert sum(not trial.repeats for trial in driver.trials) == len(seen)
    full = {p for p in map(space.point, problem.everywhere()) if space.meets(p)}
    full = {p for p in full if not any((p[0] + a, p[1] + b) in full for a, b in ((1, 0), (0, 1)))}
    assert {space.point(counts) for counts in scorer.seen} == full, "a small space is searched whole"


def test_aging_forgets_the_oldest_not_the_worst(problem) -> None:
    space = Space(problem)
    searcher = Aging(space, (space.point(uniform(problem)),), 0, population=3, tournament=3, lag=1)
    points = [searcher.ask(number) for number in range(3)]
    for number, (point, score) in enumerate(zip(points, (9.0, 1.0, 2.0), strict=True)):
        searcher.tell(number, point, (score, 0.0))
    searcher.tell(3, searcher.ask(3), (3.0, 0.0))
    assert [score for _, score in searcher._alive] == [(1.0, 0.0), (2.0, 0.0), (3.0, 0.0)], "the best was the oldest"


def test_annealing_accepts_losses_as_metropolis_says(problem) -> None:
    """At the first temperature a typical loss is accepted in half of all cases; at the last one hardly ever."""
    space = Space(problem)
    seeds = (space.point(uniform(problem)),)
    searcher = Annealing(space, seeds, 0, trials=20_000, lag=1)
    searcher.tell(0, seeds[0], (1.0, 0.0))
    for trial in range(1, 9):
        searcher.tell(trial, seeds[0], (0.9 if searcher._now[1][0] == 1.0 else 1.0, 0.0))
    assert searcher.temperature(9) == pytest.approx(0.1 / math.log(2), rel=1e-3)
    assert searcher.temperature(20_000) == pytest.approx(0.001 / math.log(2), rel=1e-3)
    early = sum(searcher._accepts(trial, 0.1) for trial in range(9, 1009))
    late = sum(searcher._accepts(trial, 0.1) for trial in range(19_000, 20_000))
    assert 440 <= early <= 560
    assert late == 0
    assert not searcher._accepts(9, math.inf)


def test_candidates_that_fail_count_as_worst_and_the_search_goes_on(problem) -> None:
    def moody(counts):
        if counts["g0"] % 16:
            raise ValueError("no")
        return quality(counts)

    space = Space(problem)
    seed = next(p for p in (space.project([s, 1, 1, 1, 1, 1]) for s in (1, 2, 3)) if space.counts(p)["g0"] % 16 == 0)
    for name in MAKERS:
        driver = drive(space, MAKERS[name](space, (seed,), 0), Counting(moody), 60)
        failed = [trial for trial in driver.trials if trial.error]
        assert failed
        assert all(trial.score == (-math.inf, -math.inf) and trial.counts["g0"] % 16 for trial in failed)
        assert max(driver.trials, key=lambda trial: trial.score).counts["g0"] % 16 == 0


def test_without_the_library_one_line_says_what_to_install(problem, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    space = Space(problem)
    with pytest.raises(MissingExtraError) as caught:
        Cma(space, (space.point(uniform(problem)),), 0)
    assert str(caught.value).splitlines() == ["cmaes is not installed", "  do:    pip install 'slim-prune[search]'"]


def test_a_searcher_that_asks_for_what_breaks_a_bound_is_stopped_before_it_is_scored(problem) -> None:
    class Greedy(Random):
        def ask(self, trial):
            return self.space.full if trial == 3 else super().ask(trial)

    space, scorer = Space(problem), Counting()
    with pytest.raises(AssertionError, match="breaks a bound"):
        drive(space, Greedy(space, (space.point(uniform(problem)),), 0), scorer, 10)
    assert len(scorer.seen) == 3
    assert all(problem.meets(counts) for counts in scorer.seen)
