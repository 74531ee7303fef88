"""Folded batch norms compute what the two layers computed."""

from __future__ import annotations

import pytest
import torch
from quant_nets import settle
from torch import Tensor, nn

from slim_core.graph.export import export_graph
from slim_quant.fold import fold_batch_norms
from slim_quant.graph import op_name

LAYERS = {
    "conv": (lambda: nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d, (4, 6, 8, 8)),
    "conv with bias": (lambda: nn.Conv2d(6, 8, 3), nn.BatchNorm2d, (4, 6, 8, 8)),
    "grouped": (lambda: nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d, (4, 6, 8, 8)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d, (4, 6, 8, 8)),
    "padding same": (lambda: nn.Conv2d(6, 8, 3, padding="same"), nn.BatchNorm2d, (4, 6, 8, 8)),
    "one dimension": (lambda: nn.Conv1d(6, 8, 3), nn.BatchNorm1d, (4, 6, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 3), nn.BatchNorm2d, (4, 6, 8, 8)),
    "transposed in groups": (lambda: nn.ConvTranspose2d(6, 8, 3, groups=2, bias=False), nn.BatchNorm2d, (4, 6, 8, 8)),
    "linear": (lambda: nn.Linear(6, 8), nn.BatchNorm1d, (4, 6)),
}  # fmt: skip


def norms(graph: object) -> int:
    return sum(op_name(node) == "aten.batch_norm.default" for node in graph.graph.nodes)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_folded_layer_computes_the_same(kind: str) -> None:
    make, norm, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer = make()
    channels = getattr(layer, "out_channels", None) or layer.out_features
    x = torch.randn(*shape)
    model = nn.Sequential(layer, norm(channels, eps=1e-2))
    model.train()
    for _ in range(10):
        model(torch.randn(*shape) * 2 + 1)
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    model.eval()
    graph = export_graph(model, (x,))
    assert fold_batch_norms(graph) == ()
    assert norms(graph) == 0
    assert sorted(graph.state_dict()) == ["0.bias", "0.weight"]
    torch.testing.assert_close(graph(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_whole_network_computes_the_same(net: nn.Module, x: Tensor) -> None:
    graph = export_graph(net, (x,))
    fold_batch_norms(graph)
    torch.testing.assert_close(graph(x), net(x), rtol=1e-5, atol=1e-5)
    assert not any("norm" in name for name in graph.state_dict())


def test_the_users_model_is_left_alone(net: nn.Module, x: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    fold_batch_norms(export_graph(net, (x,)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_on_meta_names_and_shapes_are_those_of_the_real_fold(net: nn.Module, x: Tensor) -> None:
    real = export_graph(net, (x,))
    fold_batch_norms(real)
    meta = export_graph(net.to("meta"), (x.to("meta"),))
    fold_batch_norms(meta)
    assert meta.code == real.code
    assert {k: v.shape for k, v in meta.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}


class Kept(nn.Module):
    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3, track_running_stats=case != "no statistics")

    def forward(self, x: Tensor) -> Tensor:
        if self.case == "after a ReLU":
            return self.norm(torch.relu(self.conv(x)))
        if self.case == "used twice":
            y = self.conv(x)
            return self.norm(y) + y
        if self.case == "shared weight":
            return self.norm(self.conv(self.conv(x)))
        return self.norm(self.conv(x))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("after a ReLU", "does not follow"),
        ("used twice", "used elsewhere"),
        ("shared weight", "shared"),
        ("no statistics", "no running statistics"),
    ],
)
def test_what_cannot_be_folded_stays_and_is_named(case: str, reason: str, x: Tensor) -> None:
    model = settle(Kept(case), x)
    graph = export_graph(model, (x,))
    (note,) = fold_batch_norms(graph)
    assert reason in note
    assert "norm" in note
    assert norms(graph) == 1
    torch.testing.assert_close(graph(x), model(x))
