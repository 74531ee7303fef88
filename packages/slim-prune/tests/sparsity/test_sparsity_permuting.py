"""Channel orders: the model computes the same, bit for bit where sums are exact, and more magnitude stays."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import sparsity_nets as nets
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from slim_core.testing.strategies import networks
from slim_core.workload import call, tensors_of
from slim_prune import sparsity
from slim_prune.edits import state_of
from slim_prune.sparsity import NM
from slim_prune.sparsity.orders import Order, reorder_
from slim_prune.sparsity.permuting import search
from slim_prune.sparsity.selecting import is_n_of_m


def kept(columns: np.ndarray, order, n: int, m: int) -> float:
    """Return what stays, by loops."""
    total = 0.0
    for row in columns[:, list(order)]:
        for start in range(0, len(row), m):
            total += sum(sorted(row[start : start + m], reverse=True)[:n])
    return total


def partitions(items: tuple[int, ...], m: int):
    """Yield every way to part items into stripes of m."""
    if not items:
        yield ()
        return
    first, rest = items[0], items[1:]
    for others in itertools.combinations(rest, m - 1):
        left = tuple(item for item in rest if item not in others)
        for more in partitions(left, m):
            yield (first, *others, *more)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(2, 4, 8), (1, 4, 8), (1, 2, 8), (2, 3, 9)]))
def test_the_search_comes_close_to_the_best_of_all_orders_and_no_swap_gains(seed, sizes) -> None:
    n, m, width = sizes
    columns = np.random.RandomState(seed).rand(6, width).astype(np.float32) ** 3
    order, before, after = search(columns, NM(n, m))
    assert sorted(order) == list(range(width))
    assert before == pytest.approx(kept(columns, range(width), n, m), rel=1e-5)
    assert after == pytest.approx(kept(columns, order, n, m), rel=1e-5)
    best = max(kept(columns, parts, n, m) for parts in partitions(tuple(range(width)), m))
    assert before - 1e-4 <= after <= best + 1e-4
    assert after >= 0.95 * best
    for one, two in itertools.combinations(range(width), 2):
        swapped = list(order)
        swapped[one], swapped[two] = swapped[two], swapped[one]
        assert kept(columns, swapped, n, m) <= after * (1 + 1e-5)


def test_a_short_last_stripe_is_searched_too() -> None:
    columns = np.random.RandomState(0).rand(5, 10).astype(np.float32)
    order, before, after = search(columns, NM(2, 4))
    assert sorted(order) == list(range(10))
    assert after == pytest.approx(kept(columns, order, 2, 4), rel=1e-5)
    assert after > before


def test_wide_groups_are_searched_window_by_window(monkeypatch) -> None:
    from slim_prune.sparsity import permuting

    monkeypatch.setattr(permuting, "_WIDEST", 9)  # windows of 8 for m = 4
    columns = np.random.RandomState(0).rand(5, 19).astype(np.float32)
    order, before, after = search(columns, NM(2, 4))
    assert [sorted(order[start : start + 8]) for start in (0, 8, 16)] == [
        list(range(start, min(start + 8, 19))) for start in (0, 8, 16)
    ]
    assert before == pytest.approx(kept(columns, range(19), 2, 4), rel=1e-5)
    assert after == pytest.approx(kept(columns, order, 2, 4), rel=1e-5)
    assert after > before


def test_two_large_columns_in_one_stripe_are_parted() -> None:
    columns = np.ones((1, 8), np.float32)
    columns[0, :4] = 10  # 1:4 keeps one 10 of them, or two when they are parted
    _, before, after = search(columns, NM(1, 4))
    assert (before, after) == (11, 20)


def test_the_model_computes_the_same_bits_and_the_masks_keep_more() -> None:
    model, x = nets.whole(), nets.image()
    plan = sparsity.plan(model, (torch.zeros_like(x),), scheme=NM(permute=True))
    assert {order.group for order in plan.orders} == {"stem", "b"}
    twin = copy.deepcopy(model)
    reorder_(plan.orders, twin)
    assert torch.equal(twin(x), model(x))
    assert not torch.equal(twin.stem.weight, model.stem.weight)
    plain = sparsity.plan(model, scheme="2:4")

    def magnitude(planned) -> float:
        applied = planned.apply(model)
        return sum(float(applied.state_dict()[name].abs().sum()) for name in planned.masks)

    assert magnitude(plan) > magnitude(plain)
    applied = plan.apply(model)
    for name, mask in plan.masks.items():
        assert is_n_of_m(mask.numpy(), plan.axes[name], NM())
        if name != "stem.weight":
            assert is_n_of_m((applied.state_dict()[name] != 0).numpy(), 1, NM())


def test_training_goes_on_as_in_the_original_order() -> None:
    """The optimizer's momentum moves with the channels: one more step gives the same function, bit for bit."""
    one, two, x = nets.whole(), nets.whole(), nets.image()
    optimizers = [torch.optim.SGD(model.parameters(), 2.0**-20, momentum=0.5) for model in (one, two)]
    plan = sparsity.plan(one, (x,), scheme=NM(permute=True))
    for number in range(3):
        for model, optimizer in zip((one, two), optimizers, strict=True):
            optimizer.zero_grad()
            (model(x).double().sum() * 2.0**-10).backward()
            optimizer.step()
        if number == 0:
            reorder_(plan.orders, one, optimizer=optimizers[0])
        torch.testing.assert_close(one(x), two(x), rtol=1e-5, atol=1e-3)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks())
def test_random_networks_compute_the_same(network) -> None:
    model = network.module.double()
    inputs = tuple(x.double() if x.dtype.is_floating_point else x for x in network.example_inputs)
    plan = sparsity.plan(model, inputs, scheme=NM(1, 2, permute=True))
    assert not any("computes something else" in note for note in plan.notes), plan.notes
    twin = copy.deepcopy(model)
    reorder_(plan.orders, twin)
    with torch.no_grad():
        for a, b in zip(tensors_of(call(twin, inputs)), tensors_of(call(model, inputs)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_group_that_is_ordered_wrongly_is_found_and_left_alone(monkeypatch) -> None:
    """The check of each order is real: with one member's order left out, the group is refused."""
    from slim_prune.sparsity import permuting

    real = permuting._orders
    monkeypatch.setattr(
        permuting, "_orders", lambda group, *more: real(group, *more)[1:] if group.name == "b" else real(group, *more)
    )
    model, x = nets.whole(), nets.image()
    plan = sparsity.plan(model, (x,), scheme=NM(permute=True))
    assert {order.group for order in plan.orders} == {"stem"}
    assert any("channels of b stays" in note for note in plan.notes)


def test_orders_that_do_not_fit_change_nothing() -> None:
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    good = Order("g", "weight", 1, np.array([3, 2, 1, 0]))
    for bad in (
        Order("g", "weight", 0, np.array([3, 2, 1, 0])),
        Order("g", "weight", 1, np.array([0, 0, 1, 2])),
        Order("g", "missing", 0, np.array([0])),
    ):
        with pytest.raises(sparsity.SparsityError):
            reorder_([good, bad], model)
        assert torch.equal(model.weight, before)
    reorder_([good], model)
    assert torch.equal(model.weight, before.flip(1))
    assert set(state_of(model)) == {"weight", "bias"}
