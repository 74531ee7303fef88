"""Quick shapes against PyTorch's own meta kernels: the same shape, strides and dtype, or ``None``."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slim_core.graph.quick import _RULES, QuickShapes, quick

aten = torch.ops.aten
SHAPES = [(2, 3), (1, 3), (2, 3, 4, 5), (2, 3, 1, 1), (1, 3, 1, 1), (3,), (4, 5), (2, 1, 4, 5)]
LAYOUTS = {
    "contiguous": lambda shape: torch.empty(shape, device="meta"),
    "transposed": lambda shape: torch.empty(shape[::-1], device="meta").permute(*reversed(range(len(shape)))),
    "expanded": lambda shape: torch.empty((1, *shape[1:]), device="meta").expand(shape),
    "double": lambda shape: torch.empty(shape, dtype=torch.float64, device="meta"),
    "integer": lambda shape: torch.empty(shape, dtype=torch.int64, device="meta"),
}
tensors = st.tuples(st.sampled_from(SHAPES), st.sampled_from(sorted(LAYOUTS))).map(lambda t: LAYOUTS[t[1]](t[0]))


def agrees(func, args) -> None:
    given = quick(func, args, {})
    if given is None:
        return
    in_place = func._schema.name.endswith("_")
    expected = func(*args)  # must not raise where a quick rule answers
    assert given.shape == expected.shape
    assert given.dtype == expected.dtype
    assert given.stride() == expected.stride()
    assert given.is_meta
    if in_place:
        assert given is args[0]


@settings(max_examples=150, deadline=None)
@given(
    x=tensors, name=st.sampled_from(sorted(_RULES, key=str)), y=st.one_of(tensors, st.floats(0.5, 2), st.integers(1, 3))
)
def test_rules_give_what_the_operator_gives(x, name, y) -> None:
    binary = "Tensor" in str(name)
    if any(part in str(name) for part in ("batch_norm", "cat", "lstm", "gru", "rnn", "upsample")):  # on their own
        return
    args = (x, y) if binary else (x,)
    if "clamp" in str(name):
        args = (x, 0.0, 1.0)
    agrees(name, args)


@settings(max_examples=60, deadline=None)
@given(x=tensors, channels=st.sampled_from([3, 4]), affine=st.booleans(), training=st.booleans())
def test_batch_norm(x, channels, affine, training) -> None:
    own = torch.empty(channels, device="meta")
    weight = own if affine else None
    agrees(aten.batch_norm.default, (x, weight, weight, own, own, training, 0.1, 1e-5, False))


@settings(max_examples=80, deadline=None)
@given(
    x=tensors, inside=st.sampled_from([3, 5]), bias=st.sampled_from([None, 4, 6]), double=st.booleans(),
)  # fmt: skip
def test_linear(x, inside, bias, double) -> None:
    weight = torch.empty(4, inside, device="meta", dtype=torch.float64 if double else torch.float32)
    own = None if bias is None else torch.empty(bias, device="meta")
    agrees(aten.linear.default, (x, weight, own))


@settings(max_examples=100, deadline=None)
@given(
    x=tensors, kernel=st.sampled_from([[2, 2], [3], [1, 3]]), stride=st.sampled_from([[], [2, 2], [1]]),
    padding=st.sampled_from([[0, 0], [1], [0, 1]]), dilation=st.sampled_from([[1, 1], [2, 2]]), ceil=st.booleans(),
)  # fmt: skip
def test_max_pooling(x, kernel, stride, padding, dilation, ceil) -> None:
    agrees(aten.max_pool2d.default, (x, kernel, stride, padding, dilation, ceil))


@settings(max_examples=60, deadline=None)
@given(x=tensors, size=st.sampled_from([[1, 1], [1], [2, 2]]))
def test_adaptive_pooling(x, size) -> None:
    agrees(aten.adaptive_avg_pool2d.default, (x, size))


@settings(max_examples=100, deadline=None)
@given(x=tensors, dims=st.sampled_from([[1], [0], [2, 3], [-1], [-1, -2], [0, 0], []]), keep=st.booleans())
def test_mean(x, dims, keep) -> None:
    agrees(aten.mean.dim, (x, dims, keep))


@settings(max_examples=60, deadline=None)
@given(x=tensors, over=st.sampled_from([(3,), (5,), (4, 5), (1, 1), ()]), affine=st.booleans())
def test_layer_norm(x, over, affine) -> None:
    own = torch.empty(over, device="meta") if affine else None
    agrees(aten.layer_norm.default, (x, over, own, own, 1e-5))


@settings(max_examples=200, deadline=None)
@given(
    x=tensors, kernel=st.sampled_from([(1, 1), (3, 3), (1, 3), (7, 7)]), stride=st.sampled_from([(1, 1), (2, 2), (2,)]),
    padding=st.sampled_from([(0, 0), (1, 1), (0, 1), (1,)]), dilation=st.sampled_from([(1, 1), (2, 2)]),
    groups=st.sampled_from([1, 3]), last=st.booleans(), bias=st.sampled_from([None, 6, 5]),
)  # fmt: skip
def test_convolution(x, kernel, stride, padding, dilation, groups, last, bias) -> None:
    weight = torch.empty(6, 3 // groups, *kernel, device="meta")
    if last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    own = None if bias is None else torch.empty(bias, device="meta")
    agrees(aten.conv2d.default, (x, weight, own, stride, padding, dilation, groups))


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.tuples(*[st.sampled_from([(2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 4, 7), (2, 1, 4, 5), (3, 4, 5)])] * 3),
    transposed=st.booleans(),
)
def test_attention(shapes, transposed) -> None:
    args = [torch.empty(shape, device="meta") for shape in shapes]
    if transposed:
        args = [torch.empty(t.transpose(-3, -2).shape, device="meta").transpose(-3, -2) for t in args]
    given = quick(aten.scaled_dot_product_attention.default, tuple(args), {})
    if given is not None:
        expected = aten.scaled_dot_product_attention.default(*args)
        assert (given.shape, given.stride()) == (expected.shape, expected.stride())


@settings(max_examples=120, deadline=None)
@given(
    shapes=st.tuples(*[st.sampled_from([(2, 3, 4, 5), (2, 3, 6, 5)])] * 3), transposed=st.booleans(),
    mask=st.sampled_from([None, (4, 6), (6, 6), (6, 4), (1, 6), (2, 1, 6, 6), (2, 3, 4, 4), (3, 4, 6), (6,)]),
    kind=st.sampled_from([torch.bool, torch.float32, torch.float64]),
)  # fmt: skip
def test_masked_attention(shapes, transposed, mask, kind) -> None:
    args = [torch.empty(shape, device="meta") for shape in shapes]
    if transposed:
        args = [torch.empty(t.transpose(-3, -2).shape, device="meta").transpose(-3, -2) for t in args]
    own = None if mask is None else torch.empty(mask, dtype=kind, device="meta")
    agrees(aten.scaled_dot_product_attention.default, (*args, own))


@settings(max_examples=120, deadline=None)
@given(
    x=tensors, size=st.sampled_from([None, [6, 7], [1, 1], [0, 2], [3]]), bilinear=st.booleans(),
    factors=st.sampled_from([None, [2.0, 2.0], [1.0, 3.0], [1.5, 2.0], [2.0]]), corners=st.booleans(),
)  # fmt: skip
def test_upsampling(x, size, factors, bilinear, corners) -> None:
    if bilinear:
        agrees(aten.upsample_bilinear2d.vec, (x, size, corners, factors))
    else:
        agrees(aten.upsample_nearest2d.vec, (x, size, factors))


@settings(max_examples=80, deadline=None)
@given(
    x=st.sampled_from([(2, 3), (1, 3), (2, 4)]), state=st.sampled_from([(2, 5), (1, 5), (2, 3)]), lstm=st.booleans(),
    gates=st.sampled_from([15, 20]), bias=st.booleans(), inside=st.sampled_from([3, 4]),
)  # fmt: skip
def test_cells(x, state, lstm, gates, bias, inside) -> None:
    weights = [torch.empty(gates, inside, device="meta"), torch.empty(gates, 5, device="meta")]
    own = [torch.empty(gates, device="meta")] * 2 if bias else []
    hidden = torch.empty(state, device="meta")
    func = aten.lstm_cell.default if lstm else aten.gru_cell.default
    args = (torch.empty(x, device="meta"), [hidden, hidden] if lstm else hidden, *weights, *own)
    given = quick(func, args, {})
    if given is not None:
        expected = func(*args)
        for one, other in zip(given, expected, strict=True) if lstm else [(given, expected)]:
            assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


@settings(max_examples=300, deadline=None)
@given(
    shape=st.sampled_from([(2, 3, 4), (2, 3, 4, 5), (3, 2), (2, 1, 4)]), seed=st.integers(0, 23),
    step=st.sampled_from([1, 2]), other=st.sampled_from(["number", "plain", "expanded", "permuted", "itself"]),
    name=st.sampled_from(["add", "mul", "sub", "div"]),
)  # fmt: skip
def test_operands_in_another_order_in_memory(shape, seed, step, other, name) -> None:
    def ordered(number: int) -> torch.Tensor:
        order = list(itertools.permutations(range(len(shape))))
        order = order[number % len(order)]
        stored = torch.empty([shape[dim] * step for dim in order], device="meta")[
            (slice(None, None, step),) * len(shape)
        ]
        return stored.permute([order.index(dim) for dim in range(len(shape))])

    x = ordered(seed)
    others = {
        "number": 2.0,
        "plain": torch.empty(shape, device="meta"),
        "expanded": torch.empty((shape[0], *[1] * (len(shape) - 1)), device="meta").expand(shape),
        "permuted": ordered(seed + 5),
        "itself": x,
    }
    func = getattr(aten, name).Tensor
    agrees(func, (x, others[other]))
    if isinstance(others[other], torch.Tensor):
        agrees(func, (others[other], x))


def test_arguments_that_do_not_fit_are_left_to_the_operator() -> None:
    x, wrong = torch.empty(2, 3, 4, 4, device="meta"), torch.empty(4, device="meta")
    assert quick(aten.batch_norm.default, (x, wrong, wrong, wrong, wrong, False, 0.1, 1e-5, False), {}) is None
    assert quick(aten.add.Tensor, (x, torch.empty(2, 4, 4, 4, device="meta")), {}) is None
    assert quick(aten.add_.Tensor, (torch.empty(1, 3, device="meta"), torch.empty(2, 3, device="meta")), {}) is None
    with QuickShapes(), pytest.raises(RuntimeError):
        x + torch.empty(2, 4, 4, 4, device="meta")


def test_a_forward_under_the_mode_has_the_shapes_of_the_real_one() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=4), nn.Hardswish(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.Softplus(),
    ).eval()  # fmt: skip
    expected = net(torch.zeros(2, 3, 9, 9)).shape
    with torch.inference_mode(), QuickShapes():
        assert net.to("meta")(torch.empty(2, 3, 9, 9, device="meta")).shape == expected


@settings(max_examples=150, deadline=None)
@given(
    shape=st.sampled_from(SHAPES), dim=st.integers(-4, 3), others=st.lists(tensors, max_size=2),
    sizes=st.lists(st.integers(1, 4), max_size=2),
)  # fmt: skip
def test_concatenation(shape, dim, others, sizes) -> None:
    parts = [torch.empty(shape, device="meta"), *others]
    if -len(shape) <= dim < len(shape):
        for size in sizes:
            own = list(shape)
            own[dim] = size
            parts.append(torch.empty(own, device="meta"))
    agrees(aten.cat.default, (parts, dim))


@pytest.mark.parametrize(
    ("func", "shapes", "more"),
    [
        (torch.ops.aten.relu.default, [(2, 3)], ()),
        (torch.ops.aten.add.Tensor, [(2, 3), (2, 3)], ()),
        (torch.ops.aten.linear.default, [(2, 3), (5, 3), (5,)], ()),
        (torch.ops.aten.conv2d.default, [(1, 3, 8, 8), (4, 3, 3, 3), (4,)], ()),
    ],
    ids=lambda value: str(value) if isinstance(value, torch._ops.OpOverload) else "",
)
def test_the_common_case_is_answered(func, shapes, more) -> None:
    arguments = (*(torch.empty(shape, device="meta") for shape in shapes), *more)
    assert quick(func, arguments, {}).shape == func(*arguments).shape


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True, "bias": False}, {"proj_size": 2}])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind, options, batch_first) -> None:
    if kind is not nn.LSTM and "proj_size" in options:
        return
    layer = kind(3, 5, batch_first=batch_first, **options).to("meta").eval()
    answered = []

    class Watch(QuickShapes):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            answered.append(quick(func, args, kwargs or {}) is not None)
            return super().__torch_dispatch__(func, types, args, kwargs)

    x = torch.empty(2, 4, 3, device="meta")
    with torch.inference_mode():
        expected = torch.utils._pytree.tree_leaves(layer(x))
        with Watch():
            given = torch.utils._pytree.tree_leaves(layer(x))
    assert answered[-1]
    assert [(t.shape, t.stride(), t.dtype) for t in given] == [(t.shape, t.stride(), t.dtype) for t in expected]


def test_a_recurrent_layer_that_does_not_fit_still_raises() -> None:
    layer = nn.GRU(3, 5).to("meta").eval()
    layer.weight_ih_l0 = nn.Parameter(torch.empty(15, 4, device="meta"))
    with pytest.raises(RuntimeError), torch.inference_mode(), QuickShapes():
        layer(torch.empty(2, 4, 3, device="meta"))
