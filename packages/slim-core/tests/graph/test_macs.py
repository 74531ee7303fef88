"""Multiply-accumulates against figures worked out by hand: the products in the expected values are the derivations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_core.graph import Graph, Node, Ref, Value, record
from slim_core.graph.cost import cost, count_macs
from slim_core.graph.macs import einsum_terms


class Call(nn.Module):
    """A forward given as a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def macs(model: Any, *shapes: tuple[int, ...]) -> int:
    module = model if isinstance(model, nn.Module) else Call(model)
    graph = record(module.eval(), tuple(torch.zeros(shape) for shape in shapes))
    report = cost(graph)
    assert report.uncounted == ()
    assert report.macs == count_macs(graph) == sum(row.macs for row in report.nodes)
    return report.macs


class TestConvolution:
    def test_plain(self) -> None:
        # 2 pictures, 8 channels out of 3, 3x3 kernel, 10x10 -> 8x8
        assert macs(nn.Conv2d(3, 8, 3), (2, 3, 10, 10)) == 2 * 8 * (8 * 8) * (3 * 3 * 3)

    def test_stride_and_padding_count_through_the_output_size(self) -> None:
        # (11 + 2 * 2 - 5) / 2 + 1 = 6
        assert macs(nn.Conv2d(3, 8, 5, stride=2, padding=2), (1, 3, 11, 11)) == 8 * (6 * 6) * (3 * 5 * 5)

    def test_dilation_widens_the_kernel_without_adding_taps(self) -> None:
        # a 3x3 kernel with dilation 2 spans 5x5: 10 -> 6
        assert macs(nn.Conv2d(4, 8, 3, dilation=2), (1, 4, 10, 10)) == 8 * (6 * 6) * (4 * 3 * 3)

    def test_each_output_of_a_group_sees_the_inputs_of_its_group(self) -> None:
        assert macs(nn.Conv2d(8, 16, 3, padding=1, groups=4), (1, 8, 5, 5)) == 16 * (5 * 5) * (8 // 4 * 3 * 3)

    def test_depthwise(self) -> None:
        assert macs(nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 5, 5)) == 8 * (5 * 5) * (3 * 3)

    def test_padding_given_as_text(self) -> None:
        assert macs(nn.Conv2d(3, 4, 3, padding="same"), (1, 3, 7, 7)) == 4 * (7 * 7) * (3 * 3 * 3)

    def test_one_dimension(self) -> None:
        assert macs(nn.Conv1d(4, 6, 5, padding=2), (3, 4, 20)) == 3 * 6 * 20 * (4 * 5)

    def test_three_dimensions(self) -> None:
        assert macs(nn.Conv3d(2, 4, 3, padding=1), (1, 2, 5, 6, 7)) == 4 * (5 * 6 * 7) * (2 * 27)

    def test_without_a_batch(self) -> None:
        assert macs(nn.Conv2d(3, 8, 3), (3, 10, 10)) == 8 * (8 * 8) * (3 * 3 * 3)


class TestTransposedConvolution:
    def test_every_input_is_spread_over_the_kernel(self) -> None:
        assert macs(nn.ConvTranspose2d(6, 4, 3, stride=2), (2, 6, 5, 5)) == 2 * 6 * (5 * 5) * (4 * 3 * 3)

    def test_groups(self) -> None:
        assert macs(nn.ConvTranspose2d(6, 4, 3, groups=2), (1, 6, 5, 5)) == 6 * (5 * 5) * (4 // 2 * 3 * 3)

    def test_one_dimension(self) -> None:
        assert macs(nn.ConvTranspose1d(6, 4, 3), (1, 6, 9)) == 6 * 9 * (4 * 3)

    def test_three_dimensions(self) -> None:
        assert macs(nn.ConvTranspose3d(2, 3, 2), (1, 2, 4, 4, 4)) == 2 * (4 * 4 * 4) * (3 * 8)


class TestProducts:
    def test_linear_with_and_without_a_bias(self) -> None:
        assert macs(nn.Linear(10, 7), (4, 10)) == macs(nn.Linear(10, 7, bias=False), (4, 10)) == 4 * 10 * 7

    def test_linear_over_a_sequence(self) -> None:
        assert macs(nn.Linear(10, 7), (4, 5, 10)) == 4 * 5 * 10 * 7

    @pytest.mark.parametrize(
        ("function", "shapes", "expected"),
        [
            (torch.mm, [(3, 4), (4, 5)], 3 * 4 * 5),
            (torch.mv, [(3, 4), (4,)], 3 * 4),
            (torch.dot, [(6,), (6,)], 6),
            (torch.bmm, [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
            (torch.matmul, [(3, 4), (4,)], 3 * 4),
            (torch.matmul, [(4,), (4, 5)], 4 * 5),
            (torch.matmul, [(2, 1, 3, 4), (7, 4, 5)], 2 * 7 * 3 * 4 * 5),  # the batches broadcast to (2, 7)
            (torch.addmm, [(3, 5), (3, 4), (4, 5)], 3 * 4 * 5),
            (torch.addmv, [(3,), (3, 4), (4,)], 3 * 4),
            (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
            (torch.addbmm, [(3, 5), (2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
            (torch.inner, [(3, 4), (5, 4)], 3 * 5 * 4),
        ],
    )
    def test_products(self, function: Any, shapes: list[tuple[int, ...]], expected: int) -> None:
        assert macs(function, *shapes) == expected

    @pytest.mark.parametrize(
        ("equation", "shapes", "expected"),
        [
            ("ij,jk->ik", [(3, 4), (4, 5)], 3 * 4 * 5),
            ("bij,bkj->bik", [(2, 3, 4), (2, 5, 4)], 2 * 3 * 5 * 4),
            ("bhqd,bhkd->bhqk", [(2, 3, 4, 6), (2, 3, 5, 6)], 2 * 3 * 4 * 5 * 6),
            ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
            ("ij,jk,kl->il", [(3, 4), (4, 5), (5, 6)], 3 * 4 * 5 + 3 * 5 * 6),  # left to right
        ],
    )
    def test_einsum(self, equation: str, shapes: list[tuple[int, ...]], expected: int) -> None:
        assert macs(lambda *args: torch.einsum(equation, *args), *shapes) == expected

    def test_einsum_that_is_no_contraction(self) -> None:
        assert macs(lambda x: torch.einsum("ij->ji", x), (3, 4)) == 0

    def test_an_equation_without_an_arrow_keeps_the_letters_that_stand_once(self) -> None:
        assert einsum_terms("ij,jk", [2, 2]) == (["ij", "jk"], "ik")

    def test_dots_stand_for_the_last_dimensions_that_have_no_letter(self) -> None:
        terms, output = einsum_terms("...i,ij->...j", [3, 2])
        assert terms == ["BAi", "ij"]
        assert output == "BAj"

    def test_bilinear(self) -> None:
        assert macs(nn.Bilinear(3, 4, 5), (2, 3), (2, 4)) == 2 * 5 * 3 * 4


class TestAttention:
    def test_scores_and_weighted_sum(self) -> None:
        # 2 x 3 heads, 4 queries, 5 keys of size 6, values of size 7
        shapes = [(2, 3, 4, 6), (2, 3, 5, 6), (2, 3, 5, 7)]
        assert macs(F.scaled_dot_product_attention, *shapes) == 2 * 3 * (4 * 5 * 6 + 4 * 5 * 7)

    def test_a_causal_mask_is_not_credited(self) -> None:
        shape = (1, 2, 4, 8)
        causal = macs(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), shape, shape, shape)
        assert causal == 2 * 2 * 4 * 4 * 8

    def test_grouped_queries_count_every_query_head(self) -> None:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

        assert macs(attend, (1, 8, 4, 6), (1, 2, 5, 6), (1, 2, 5, 6)) == 2 * 8 * 4 * 5 * 6

    def test_multi_head_attention(self) -> None:
        # N=2, L=5, E=12: three projections in, scores and weighted sum over all heads, one projection out
        model = nn.MultiheadAttention(12, 3, batch_first=True)
        expected = 2 * (3 * 5 * 12 * 12 + 2 * 5 * 5 * 12 + 5 * 12 * 12)
        assert macs(lambda x: model(x, x, x, need_weights=False)[0], (2, 5, 12)) == expected
        assert macs(lambda x: model(x, x, x)[0], (2, 5, 12)) == expected

    def test_encoder_layer(self) -> None:
        model = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
        attention = 4 * 5 * 12 * 12 + 2 * 5 * 5 * 12
        assert macs(model, (2, 5, 12)) == 2 * (attention + 2 * 5 * 12 * 24)


class TestRecurrent:
    @pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
    def test_every_step_multiplies_with_every_matrix(self, kind: Any, gates: int) -> None:
        # 7 steps of 2 sequences, 5 features, 6 hidden units
        assert macs(kind(5, 6), (7, 2, 5)) == 7 * 2 * gates * (6 * 5 + 6 * 6)

    def test_layers_and_directions(self) -> None:
        first = 2 * 4 * (6 * 5 + 6 * 6)
        second = 2 * 4 * (6 * 12 + 6 * 6)  # sees both directions of the first
        model = nn.LSTM(5, 6, num_layers=2, bidirectional=True)
        assert macs(model, (7, 2, 5)) == 7 * 2 * (first + second)

    def test_a_cell(self) -> None:
        assert macs(nn.LSTMCell(5, 6), (3, 5)) == 3 * 4 * (6 * 5 + 6 * 6)


def whole(op: str, args: dict[str, Any], shapes: list[tuple[int, ...]], out: tuple[int, ...]) -> int:
    """Return the count of an operator recorded whole: kernels that a CPU recording does not contain."""
    values = tuple(Value(n, shape, "float32", "intermediate") for n, shape in enumerate([*shapes, out]))
    node = Node(0, op, args, (len(shapes),), "", None)
    return count_macs(Graph((node,), values, (), (), "meta", "ByHand"))


def r(*indices: int) -> Any:
    return Ref(indices[0]) if len(indices) == 1 else tuple(Ref(index) for index in indices)


class TestWholeKernels:
    def test_flash_attention_of_the_cpu(self) -> None:
        args = {"query": r(0), "key": r(1), "value": r(2)}
        shapes = [(2, 3, 4, 6), (2, 3, 5, 6), (2, 3, 5, 6)]
        op = "aten._scaled_dot_product_flash_attention_for_cpu.default"
        assert whole(op, args, shapes, (2, 3, 4, 6)) == 2 * 3 * 2 * 4 * 5 * 6

    def test_kernels_that_keep_heads_last(self) -> None:
        args = {"query": r(0), "key": r(1), "value": r(2)}
        shapes = [(2, 4, 3, 6), (2, 5, 3, 6), (2, 5, 3, 6)]  # (N, L, H, E)
        op = "aten._flash_attention_forward.default"
        assert whole(op, args, shapes, (2, 4, 3, 6)) == 2 * 3 * 2 * 4 * 5 * 6

    def test_recurrent_layers(self) -> None:
        args = {"input": r(0), "hx": r(1), "params": r(2, 3, 4, 5)}
        shapes = [(7, 2, 5), (1, 2, 6), (24, 5), (24, 6), (24,), (24,)]
        assert whole("aten.lstm.input", args, shapes, (7, 2, 6)) == 7 * 2 * (24 * 5 + 24 * 6)

    def test_packed_sequences(self) -> None:
        args = {"data": r(0), "batch_sizes": r(1), "hx": r(2), "params": r(3, 4)}
        shapes = [(11, 5), (7,), (1, 2, 6), (18, 5), (18, 6)]
        assert whole("aten.gru.data", args, shapes, (11, 6)) == 11 * (18 * 5 + 18 * 6)

    def test_the_recurrent_layer_of_onednn(self) -> None:
        args = {"input": r(0), "weight0": r(1), "weight1": r(2), "weight2": r(3), "weight3": r(4)}
        shapes = [(7, 2, 5), (24, 5), (24, 6), (24,), (24,)]
        assert whole("aten.mkldnn_rnn_layer.default", args, shapes, (7, 2, 6)) == 7 * 2 * 24 * (5 + 6)

    def test_multi_head_attention_of_the_fast_path(self) -> None:
        args = {"query": r(0), "key": r(0), "value": r(0)}
        expected = 2 * (4 * 5 * 12 * 12 + 2 * 5 * 5 * 12)
        assert whole("aten._native_multi_head_attention.default", args, [(2, 5, 12)], (2, 5, 12)) == expected

    def test_encoder_layer_of_the_fast_path(self) -> None:
        args = {"src": r(0), "qkv_weight": r(1), "proj_weight": r(2), "ffn_weight_1": r(3), "ffn_weight_2": r(4)}
        shapes = [(2, 5, 12), (36, 12), (12, 12), (24, 12), (12, 24)]
        expected = 2 * (4 * 5 * 12 * 12 + 2 * 5 * 5 * 12 + 2 * 5 * 12 * 24)
        assert whole("aten._transformer_encoder_layer_fwd.default", args, shapes, (2, 5, 12)) == expected

    @pytest.mark.parametrize("transposed", [False, True])
    def test_the_one_convolution_that_all_others_become(self, transposed: bool) -> None:
        args = {"input": r(0), "weight": r(1), "transposed": transposed, "groups": 2}
        # (N, 6, 5, 5): to 4 channels of 3x3 (weight (4, 3, 3, 3)), or transposed to 4 (weight (6, 2, 3, 3)) of 7x7
        weight, out = ((6, 2, 3, 3), (2, 4, 7, 7)) if transposed else ((4, 3, 3, 3), (2, 4, 3, 3))
        expected = 2 * 6 * 25 * (2 * 9) if transposed else 2 * 4 * 9 * (3 * 9)
        assert whole("aten.convolution.default", args, [(2, 6, 5, 5), weight], out) == expected


class TestNotCounted:
    def test_elementwise_work_normalization_and_pooling_are_none(self) -> None:
        model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Hardswish(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1))
        assert macs(model, (2, 3, 8, 8)) == 0

    def test_an_embedding_is_a_look_up(self) -> None:
        graph = record(nn.Embedding(10, 4), (torch.zeros(2, 3, dtype=torch.int64),))
        assert cost(graph).macs == 0
        assert cost(graph).uncounted == ()

    def test_heavy_work_that_is_not_understood_is_listed_with_its_place(self) -> None:
        class Spectral(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = Call(lambda x: torch.fft.rfft(torch.fft.rfft(x).abs()).abs())

            def forward(self, x: Tensor) -> Tensor:
                return self.inner(x)

        report = cost(record(Spectral(), (torch.zeros(2, 16),)))
        assert [(item.op, item.count, item.modules) for item in report.uncounted] == [
            ("aten._fft_r2c.default", 2, ("inner",))
        ]
        assert report.uncounted[0].source is not None
        assert "torch.fft.rfft" in report.uncounted[0].source.text

    def test_operators_of_other_libraries_are_listed(self) -> None:
        values = (Value(0, (2, 2), "float32", "input"), Value(1, (2, 2), "float32", "intermediate"))
        node = Node(0, "mylib.mystery.default", {"x": Ref(0)}, (1,), "", None)
        report = cost(Graph((node,), values, (0,), (1,), "meta", "ByHand"))
        assert [item.op for item in report.uncounted] == ["mylib.mystery.default"]
