"""Gradual pruning: the cubic curve's closed form, masks that only grow, ``fit`` with resume and averages."""

from __future__ import annotations

import numpy as np
import pytest
import sparsity_nets as nets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slim_core.testing.workloads import tiny_workload
from slim_core.training import Callback, FitConfig, fit
from slim_prune import sparsity
from slim_prune.sparsity import NM, CubicSchedule, Gradual, GradualSparsity, KeepMasks, SparsityError, cubic
from slim_prune.sparsity.callbacks import schedule_for
from slim_prune.sparsity.selecting import is_n_of_m


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 100), st.integers(1, 100), st.integers(1, 20), st.floats(0, 0.9), st.floats(0, 0.99))
def test_the_curve_is_that_of_the_paper(begin, raises, every, initial, final) -> None:
    """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 for t in {t_0, t_0 + dt, ..., t_0 + n dt}."""
    schedule = CubicSchedule(begin, begin + raises * every, every, initial)
    steps = [step for step in range(begin + raises * every + 10) if schedule.due(step)]
    assert steps == [begin + k * every for k in range(raises + 1)]
    for k, step in enumerate(steps):
        expected = final + (initial - final) * (1 - k / raises) ** 3
        assert schedule.sparsity(step, final) == pytest.approx(expected, abs=1e-12)
        if k < raises:
            assert schedule.sparsity(step + every - 1, final) == schedule.sparsity(step, final)
    assert schedule.sparsity(begin + raises * every + 5, final) == final
    assert begin == 0 or schedule.sparsity(begin - 1, final) == 0


def test_the_curve_by_hand() -> None:
    assert [cubic(t, 0, 4, 0.0, 0.8) for t in range(-1, 6)] == pytest.approx(
        [0.0, 0.0, 0.8 * (1 - 27 / 64), 0.8 * (1 - 8 / 64), 0.8 * (1 - 1 / 64), 0.8, 0.8]
    )


@pytest.mark.parametrize(
    ("begin", "end", "every", "initial"), [(5, 4, 1, 0), (-1, 4, 1, 0), (0, 4, 0, 0), (0, 4, 1, 1.0)]
)
def test_schedules_that_mean_nothing_are_refused(begin, end, every, initial) -> None:
    with pytest.raises(SparsityError):
        CubicSchedule(begin, end, every, initial)


def test_shares_of_a_run_become_steps() -> None:
    schedule = schedule_for(100, 0.1, 0.75, None, 0.0)
    assert (schedule.begin, schedule.end, schedule.every) == (10, 75, 2)
    assert schedule_for(3, 0.0, 1.0, None, 0.0).end == 2
    with pytest.raises(SparsityError, match="shares of the run"):
        schedule_for(100, 0.5, 0.5, None, 0.0)


def train(model: nn.Module, gradual: Gradual, steps: int):
    """Train with plain SGD, and yield the masks after each step."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    generator = torch.Generator().manual_seed(0)
    for number in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 6, 6, generator=generator)).square().mean().backward()
        optimizer.step()
        gradual.step(number)
        yield gradual.masks


def test_each_raise_prunes_the_smallest_of_the_weights_of_that_moment() -> None:
    model = nets.mixed()
    gradual = Gradual(model, CubicSchedule(1, 9, 2), sparsity=0.9)
    before = None
    for number, masks in enumerate(train(model, gradual, 12)):
        if number < 1:
            assert not masks
            continue
        total = masks.total
        asked = gradual.schedule.sparsity(number, 0.9)
        assert masks.kept == int(np.floor(total * (1 - asked) + 1e-6))
        assert masks.violations(model) == 0
        if before is not None:
            assert all(not (masks[name] & ~before[name]).any() for name in masks)
        kept = torch.cat([model.get_parameter(name)[mask].abs() for name, mask in masks.items()])
        assert masks.kept == kept.numel()
        before = masks
    assert masks.sparsity == pytest.approx(0.9, abs=1 / total)


def test_n_of_m_loosens_in_whole_steps() -> None:
    model = nets.mixed()
    gradual = Gradual(model, CubicSchedule(0, 8, 1), scheme="1:4")
    seen = []
    for masks in train(model, gradual, 10):
        n = next(n for n in range(1, 5) if n == 4 or is_n_of_m(masks["left.weight"].numpy(), 1, NM(n, 4)))
        seen.append(n)
    # 4 (1 - 0.75 (1 - (1 - t / 8)^3)), rounded up
    assert seen == [int(np.ceil(4 * (1 - 0.75 * (1 - (1 - min(t, 8) / 8) ** 3)) - 1e-9)) if t < 8 else 1
                    for t in range(10)]  # fmt: skip
    assert is_n_of_m(gradual.masks["up.weight"].numpy(), 0, NM(1, 4))


def test_ratios_rise_along_the_same_curve() -> None:
    model = nets.mixed()
    gradual = Gradual(model, CubicSchedule(0, 4, 1), ratios={"up": 0.2})
    seen = [masks.kept for masks in train(model, gradual, 5)]
    total = model.up.weight.numel()
    assert seen == [int(np.floor(total * (1 - cubic(t, 0, 4, 0, 0.8)) + 1e-6)) for t in range(5)]


def test_what_cannot_work_is_said_before_training() -> None:
    with pytest.raises(SparsityError, match="how sparse"):
        Gradual(nets.mixed(), CubicSchedule(0, 4, 1))
    with pytest.raises(SparsityError, match="permuted once"):
        Gradual(nets.mixed(), CubicSchedule(0, 4, 1), scheme=NM(permute=True))


# --- fit ---

CONFIG = {"epochs": 4, "lr": 0.02, "device": "cpu", "seed": 3}


class Watch(Callback):
    """Records the sparsity of the weights after each step, before averages are taken."""

    def __init__(self, gradual: GradualSparsity) -> None:
        self.gradual, self.seen = gradual, []

    def on_step_end(self, state) -> None:
        self.seen.append(1 - sum(int((state.model.get_parameter(n) != 0).sum()) for n in self.gradual.masks)
                         / self.gradual.masks.total)  # fmt: skip


def test_fit_raises_sparsity_along_the_curve_and_holds_it() -> None:
    gradual = GradualSparsity(0.8, end=0.5, every=1)
    watch = Watch(gradual)
    result = fit(tiny_workload(), FitConfig(**CONFIG), callbacks=[gradual, watch])
    expected = [cubic(min(t, 8), 0, 8, 0, 0.8) for t in range(16)]
    total = gradual.masks.total
    assert watch.seen == pytest.approx(expected, abs=1.5 / total)
    assert gradual.masks.violations(result.workload.model) == 0
    assert gradual.masks.sparsity == pytest.approx(0.8, abs=1 / total)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, ema) -> None:
    class Stop(Exception):
        pass

    class Killer(Callback):
        def on_epoch_start(self, state) -> None:
            if state.epoch == 2:
                raise Stop

    config = FitConfig(**CONFIG, ema=ema)

    def run(folder, *more):
        gradual = GradualSparsity(0.8, end=0.9, every=1)
        return fit(tiny_workload(), config, callbacks=[gradual, *more], folder=folder), gradual

    whole, one = run(tmp_path / "a")
    with pytest.raises(Stop):
        run(tmp_path / "b", Killer())

    # the interrupted run had one callback more, which is part of a run's identity: run without it up to there instead
    class Quiet(Killer):
        def on_epoch_start(self, state) -> None:
            pass

    Quiet.__name__ = "Killer"
    again, two = run(tmp_path / "b", Quiet())
    assert again.resumed_at == 2
    assert one.masks == two.masks
    for (name, a), b in zip(
        whole.workload.model.state_dict().items(), again.workload.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert two.masks.violations(again.workload.model) == 0


def test_averages_are_masked_at_the_end() -> None:
    work = tiny_workload()
    plan = sparsity.plan(work.model, scheme="2:4")
    for callback in (KeepMasks(plan.masks), GradualSparsity(scheme="2:4", end=1.0)):
        result = fit(work, FitConfig(**CONFIG, ema=0.99), callbacks=[callback])
        masks = plan.masks if isinstance(callback, KeepMasks) else callback.masks
        assert masks.violations(result.workload.model) == 0


def test_data_without_a_length_is_refused_with_what_to_do() -> None:
    from dataclasses import replace

    work = tiny_workload()

    class Stream:
        def __iter__(self):
            return iter(work.train)

    with pytest.raises(SparsityError, match="how many batches"):
        fit(replace(work, train=Stream()), FitConfig(**CONFIG), callbacks=[GradualSparsity(0.5)])
