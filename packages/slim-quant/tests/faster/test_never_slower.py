"""Never slower: what is decided for given clocks, against exhaustive search; and one run with a real one."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slim_core.errors import SlimError
from slim_core.workload import Inputs, tensors_of
from slim_quant.faster.decide import Faster, never_slower
from slim_quant.faster.segments import cast_us, cheapest, segments_of, times_of
from slim_quant.faster.timing import Ratio
from slim_quant.preparation import prepare
from slim_quant.runtimes import Kernel, open_file


class Gates(nn.Module):
    """Two plain convolutions, then one with a hard swish, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.second(nn.functional.relu(self.first(x))))
        return self.head(nn.functional.hardswish(self.third(x)).mean((2, 3)))


X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
EXAMPLE = (X[:1],)


def seconds(path: Path, prices: Mapping[str, float]) -> float:
    """Return what a file takes by a price list: per operator, which is of integers if it reads and writes them."""
    graph = onnx.load(path).graph
    made = {name: node for node in graph.node for name in node.output}
    total = 0.0
    for node in graph.node:
        reads = made.get(node.input[0]) if node.input else None
        readers = [other.op_type for other in graph.node if node.output[0] in other.input]
        integers = reads is not None and reads.op_type == "DequantizeLinear" and set(readers) == {"QuantizeLinear"}
        total += prices.get(("int8 " if integers else "") + node.op_type, 0.0)
    return total


class Clock:
    """Times files by a price list, and remembers what it was asked."""

    def __init__(self, prices: Mapping[str, float], noise: float = 0.0, slow_batch: int | None = None) -> None:
        self.prices, self.noise, self.slow_batch = prices, noise, slow_batch
        self.asked: list[tuple[int, list[str], int]] = []

    def __call__(self, files: Mapping[str, Path], inputs: Inputs, seed: int) -> Mapping[str, Ratio]:
        size = tensors_of(inputs)[0].shape[0]
        self.asked.append((size, list(files), seed))
        times = {name: seconds(path, self.prices) for name, path in files.items()}
        first = next(iter(times.values()))
        found = {}
        for name, value in times.items():
            ratio = value / first * (2.0 if size == self.slow_batch and name != "float" else 1.0)
            found[name] = Ratio(ratio, ratio * (1 - self.noise), ratio * (1 + self.noise), value)
        return found


def no_profile(path: Path, inputs: Inputs) -> tuple[Kernel, ...]:
    return ()


FAST = {"Conv": 10.0, "int8 Conv": 3.0, "Gemm": 1.0, "int8 Gemm": 1.0}
#: hard swish of integers costs more than all that convolutions gain
SWISH = {**FAST, "QuantizeLinear": 0.1, "int8 HardSwish": 40.0, "HardSwish": 1.0, "int8 Mul": 40.0}


def decided(clock: Clock, **options: Any) -> Faster:
    torch.manual_seed(0)
    model = Gates().eval()
    return never_slower(
        model, EXAMPLE, "onnxruntime", **{"batches": [X], "clock": clock, "profile": no_profile, **options}
    )


def test_what_wins_whole_is_kept_whole() -> None:
    clock = Clock(FAST)
    found = decided(clock)
    assert found.result is not None
    assert found.left == ()
    assert [size for size, _, _ in clock.asked] == [1, 32]
    assert found.ratios[1].ratio == pytest.approx(10 / 31)  # nine and one, of thirty and one
    assert "wins" in found.notes[0]


def test_an_operator_that_loses_stays_in_float() -> None:
    clock = Clock(SWISH)
    found = decided(clock)
    assert found.result is not None
    assert found.left
    assert all(item.ratio < 1 for item in found.ratios.values())
    graph = [str(node.target) for node in found.result.model.graph.nodes]
    assert any("hardswish" in name for name in graph)
    assert len(found.result.report.layers) >= 3  # convolutions stay in integers
    # the last word has a timing of its own, with another seed
    assert clock.asked[-1][1] == ["float", next(c.name for c in found.candidates if c.confirmed)]
    assert clock.asked[-1][2] != clock.asked[0][2]


def test_where_nothing_wins_the_result_is_float_and_says_why() -> None:
    found = decided(Clock({**FAST, "QuantizeLinear": 50.0}))
    assert found.result is None
    assert found.skip == ()
    assert "nothing beats the float file on onnxruntime" in found.notes[-1]
    assert "stays in float" in found.notes[-1]


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.slow
def test_ties_and_doubts_go_to_float(noise: float) -> None:
    tie = {"Conv": 10.0, "int8 Conv": 9.9 if noise == 0 else 8.0}  # one per cent, or within the noise
    assert decided(Clock(tie, noise=noise)).result is None


@pytest.mark.slow
def test_a_file_must_win_at_every_batch_size() -> None:
    assert decided(Clock(FAST, slow_batch=32), batch_sizes=(1,)).result is not None
    assert decided(Clock({**FAST, "int8 Conv": 6.0}, slow_batch=32)).result is None


@pytest.mark.long
def test_the_same_clock_gives_the_same_model() -> None:
    one, other = decided(Clock(SWISH)), decided(Clock(SWISH))
    assert one.to_json() == other.to_json()


@pytest.mark.slow
def test_luck_at_the_first_timing_is_found_out() -> None:
    """A candidate that wins among many and not by itself is not kept."""

    class Lucky(Clock):
        def __call__(self, files: Mapping[str, Path], inputs: Inputs, seed: int) -> Mapping[str, Ratio]:
            found = super().__call__(files, inputs, seed)
            lucky = 0.5 if seed == 0 and len(files) > 2 else 1.1
            return {name: Ratio(lucky, lucky, lucky, 1.0) for name in found}

    found = decided(Lucky(SWISH))
    assert found.result is None
    assert any(item.confirmed is not None for item in found.candidates)


def test_what_there_is_no_runtime_for() -> None:
    with pytest.raises(SlimError, match="no runtime here"):
        never_slower(Gates().eval(), EXAMPLE, "generic", batches=[X])
    with pytest.raises(SlimError, match="nothing to calibrate on"):
        never_slower(Gates().eval(), EXAMPLE)


def test_segments_begin_with_weights_and_take_what_follows() -> None:
    prepared = prepare(Gates().eval(), EXAMPLE)
    segments = segments_of(prepared.graph, prepared.target)
    assert [segment.layer for segment in segments] == ["conv2d", "conv2d_1", "conv2d_2", "linear"]
    assert [segment.values for segment in segments] == [3 * 64, 8 * 64, 8 * 64, 8]
    assert "mean" in segments[2].nodes


def test_times_of_a_profile_go_to_the_layer_before() -> None:
    names = [("QuantizeLinear", 1.0), ("QLinearConv", 5.0), ("QLinearMul", 2.0), ("Conv", 7.0), ("HardSwish", 1.0),
             ("DynamicQuantizeMatMul", 3.0), ("QGemm", 4.0), ("DequantizeLinear", 0.5)]  # fmt: skip
    kernels = [Kernel(name, name, us) for name, us in names]
    assert times_of(kernels, 4) == [8.0, 8.0, 3.0, 4.5]
    assert times_of(kernels, 3) is None
    assert cast_us(kernels) == 0.75


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 6)), min_size=1, max_size=8),
    st.sampled_from([1.0, 1.5]),
)
@settings(max_examples=150, deadline=None)
def test_the_choice_of_segments_is_the_best(rows: list[tuple[int, int, int]], doubt: float) -> None:
    plain, integers, casts = (list(map(float, column)) for column in zip(*rows, strict=True))

    def cost(choice: tuple[bool, ...]) -> float:
        total, before = 0.0, False
        for inside, *prices in zip(choice, plain, integers, casts, strict=True):
            total += prices[1] * doubt if inside else prices[0]
            total += prices[2] if inside != before else 0.0
            before = inside
        return total

    found = tuple(cheapest(plain, integers, casts, doubt))
    assert cost(found) == pytest.approx(min(cost(c) for c in product((False, True), repeat=len(rows))))


def test_ties_between_segments_go_to_float() -> None:
    assert cheapest([5.0, 5.0], [5.0, 5.0], [0.0, 0.0]) == [False, False]


@pytest.mark.slow
def test_a_profile_of_the_runtime_shows_every_layer(tmp_path: Path) -> None:
    from slim_core.export import to_onnx
    from slim_quant import quantize

    model = Gates().eval()
    result = quantize(model, [X], example_inputs=EXAMPLE)
    segments = segments_of(prepare(model, EXAMPLE).graph, prepare(model, EXAMPLE).target)
    for name, net in (("float", model), ("int8", result.model)):
        path = to_onnx(net, EXAMPLE, tmp_path / f"{name}.onnx", check=False).path
        kernels = open_file(path, threads=1).profile((X,), 3)
        times = times_of(kernels, len(segments))
        assert times is not None
        assert all(time > 0 for time in times)


@pytest.mark.long
def test_with_the_real_clock_the_result_is_faster_or_float() -> None:
    found = never_slower(Gates().eval(), EXAMPLE, batches=[X], batch_sizes=(1,), rounds=6, budget_s=1.0, threads=1)
    if found.result is None:
        assert "nothing beats" in found.notes[-1]
    else:
        assert all(item.high < 1 for item in found.ratios.values())
