"""Tables of PaddleSlim and Once-for-All: known lines, sizes by hand, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from slim_core.graph import record
from slim_latency.cost import LatencyCost
from slim_latency.foreign import once_for_all, paddleslim, read_foreign
from slim_latency.table import TableError, read_table, write_table

PADDLE = """sd710,paddlelite-2.8,2021-05-01
conv,0,1,1,3,32,32,16,1,3,1,2,1\t0.5
conv,0,0,1,16,16,16,16,16,3,1,1,1\t0.25
conv,0,0,1,16,16,16,32,1,1,0,1,1\t0.125
pooling,0,1,32,16,16,2,0,2,0,1\t0.0625
pooling,1,1,32,8,8,8,0,1,0,2\t0.03
eltwise,1,32,8,8\t0.02
batch_norm,None,1,16,16,16\t0.02
relu,1,32,8,8\t0.01
softmax,1,1,32,1,1\t0.005
"""
OFA = """
Conv-input:224x224x3-output:112x112x16: {count: 31, mean: 2.5, var: 0.04}
expanded_conv-input:7x7x192-output:7x7x320-expand:6-kernel:5-stride:1-idskip:0: {count: 30, mean: 1.5, var: 0.0}
Logits-input:7x7x432-output:1000: {count: 3, mean: 0.5}
"""


class TestPaddleSlim:
    def test_convolutions(self) -> None:
        table = paddleslim(PADDLE, "phone")
        key = "FusedConv.microsoft f32[1,3,32,32] f32[16,3,3,3] -> f32[1,16,16,16] {activation=Relu strides=2,2}"
        assert table.kernels[key].median_us == 500.0
        depthwise = "Conv f32[1,16,16,16] f32[16,1,3,3] -> f32[1,16,16,16] {group=16}"
        assert table.kernels[depthwise].median_us == 250.0
        assert table.header["device"]["cpu"] == "sd710"
        assert table.runtime == "paddleslim paddlelite-2.8"

    def test_the_other_operators(self) -> None:
        found = {key: row.median_us for key, row in paddleslim(PADDLE, "phone").kernels.items()}
        assert found["MaxPool f32[1,32,16,16] -> f32[1,32,8,8] {kernel_shape=2,2 strides=2,2}"] == 62.5
        assert found["GlobalAveragePool f32[1,32,8,8] -> f32[1,32,1,1]"] == 30.0
        assert found["Add f32[1,32,8,8] f32[1,32,8,8] -> f32[1,32,8,8]"] == 20.0
        assert found["Relu f32[1,32,8,8] -> f32[1,32,8,8]"] == 10.0
        assert found["Softmax f32[1,32,1,1] -> f32[1,32,1,1] {axis=1}"] == 5.0

    def test_a_budget_can_use_it(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Conv2d(3, 16, 3, 2, 1)
                self.b = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
                self.c = nn.Conv2d(16, 32, 1)

            def forward(self, x: Tensor) -> Tensor:
                y: Tensor = self.c(self.b(torch.relu(self.a(x))))
                return y

        cost = LatencyCost(paddleslim(PADDLE, "phone"))
        graph = record(Net(), (torch.rand(1, 3, 32, 32),))
        assert cost.total(graph) == pytest.approx(0.5 + 0.25 + 0.125)
        shares = cost.estimate(graph).shares
        assert [(share.source, share.kernels) for share in shares] == [("table", 3)]

    @pytest.mark.parametrize(
        "line", ["conv,1,2\t0.5", "conv,0,1,1,3,32,32,16,0,3,1,2,1\t0.5", "conv 1 2 3", "relu,1,2,3,x\t1", "x,1,2\t-1",
                 "relu,1,2,3,4\tnan", "relu,1,2,3,4\t"],
    )  # fmt: skip
    def test_a_bad_line_is_named(self, line: str) -> None:
        with pytest.raises(TableError, match="line 11 is no operator"):
            paddleslim(PADDLE + line, "phone")

    def test_an_empty_file(self) -> None:
        with pytest.raises(TableError, match="the table is empty"):
            paddleslim("", "phone")


class TestOnceForAll:
    def test_blocks_with_mean_count_and_spread(self) -> None:
        table = once_for_all(OFA, "pixel")
        stem = table.kernels["Conv.ofa f32[1,3,224,224] -> f32[1,16,112,112]"]
        assert (stem.count, stem.median_us) == (31, 2500.0)
        assert stem.iqr_us == pytest.approx(2 * 0.6745 * 200)
        block = "expanded_conv.ofa f32[1,192,7,7] -> f32[1,320,7,7] {expand=6 idskip=0 kernel=5 stride=1}"
        assert table.kernels[block].median_us == 1500.0
        assert table.kernels["Logits.ofa f32[1,432,7,7] -> f32[1,1000]"].median_us == 500.0

    def test_no_cost_model_is_made_of_whole_blocks(self) -> None:
        with pytest.raises(TableError, match="is of ofa"):
            LatencyCost(once_for_all(OFA, "pixel"))

    @pytest.mark.parametrize(
        "text", ["", "[1, 2]", "a: 3", "Conv-x: {mean: 1}", "Conv-input:1x1x1: {mean: -1}", "a: [",
                 "Conv-input:1x1x1: {mean: 1, var: .nan}", "Conv-input:1x1x1: {mean: 1, var: -1}", "[" * 5_000,
                 "!!python/object/apply:os.system ['true']"],
    )  # fmt: skip
    def test_what_is_no_such_table(self, text: str) -> None:
        with pytest.raises(TableError):
            once_for_all(text, "pixel")


def test_files_are_read_and_written_as_device_tables(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(PADDLE)
    (tmp_path / "t.yaml").write_text(OFA)
    for format, name in (("paddleslim", "t.txt"), ("ofa", "t.yaml")):
        table = read_foreign(tmp_path / name, format, format)
        assert read_table(write_table(table, tmp_path / f"{format}.table.json")) == table
    with pytest.raises(TableError, match="cannot read the table"):
        read_foreign(tmp_path / "absent", "ofa", "x")
