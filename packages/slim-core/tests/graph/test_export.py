"""The exported graph against the eager model: outputs, training behaviour, names, ties, batch sizes, errors."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim_core.errors import ModelError
from slim_core.graph.export import ExportedModel, export_graph
from slim_core.modes import evaluating


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8, eps=1e-2, momentum=0.03)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.drop = nn.Dropout(0.3)
        self.first_head = nn.Linear(8, 8)
        self.head = nn.Linear(8, 8)
        self.head.weight = self.first_head.weight
        self.unused = nn.Linear(2, 2)
        self.register_buffer("gain", torch.full((8,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.act(self.norm(self.conv(x)))
        x = self.act(self.second(x) + x)
        x = x.mean((2, 3)) * self.gain
        return {"logits": self.head(self.drop(self.first_head(x)))}


class Only(nn.Module):
    """Wraps a function of one layer."""

    def __init__(self, layer: nn.Module, forward: object) -> None:
        super().__init__()
        self.layer = layer
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self.layer, x)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(16, 3, 8, 8))  # move the running statistics
    return model


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("example", [1, 2])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_outputs_equal_the_eager_models_at_any_batch_size(net: Net, example: int, batch: int) -> None:
    graph = export_graph(net, (images(example),))
    net.eval()
    torch.testing.assert_close(graph(images(batch)), net(images(batch)), rtol=0, atol=1e-6)


def test_a_static_batch_can_be_asked_for() -> None:
    model = Only(nn.Linear(4, 4), lambda layer, x: layer(x).view(8))
    graph = export_graph(model, (torch.randn(2, 4),), dynamic_batch=False)
    assert graph(torch.ones(2, 4)).shape == (8,)


def test_state_dict_names_and_values_equal_the_originals(net: Net) -> None:
    state, original = export_graph(net, (images(),)).state_dict(), net.state_dict()
    assert list(state) == list(original)
    assert all(torch.equal(state[name], original[name]) for name in original)


def test_the_users_model_is_left_alone(net: Net) -> None:
    before = {name: (tensor.clone(), tensor.data_ptr()) for name, tensor in net.state_dict().items()}
    net.train()
    net.drop.eval()
    graph = export_graph(net, (images(),))
    assert net.training
    assert not net.drop.training
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.zero_()
    assert all(torch.equal(net.state_dict()[name], value) for name, (value, _) in before.items())
    assert all(net.state_dict()[name].data_ptr() == pointer for name, (_, pointer) in before.items())


def test_without_copy_the_tensors_are_shared(net: Net) -> None:
    assert export_graph(net, (images(),), copy=False).conv.weight is net.conv.weight


def test_frozen_parameters_stay_frozen(net: Net) -> None:
    net.conv.weight.requires_grad_(False)
    graph = export_graph(net, (images(),))
    assert not graph.conv.weight.requires_grad
    assert graph.second.weight.requires_grad


def test_tied_weights_stay_tied_also_in_copies(net: Net) -> None:
    graph = export_graph(net, (images(),))
    assert graph.head.weight is graph.first_head.weight
    twin = copy.deepcopy(graph)
    assert twin.head.weight is twin.first_head.weight
    assert twin.head.weight is not graph.head.weight


def test_a_copy_has_everything_and_lives_by_itself(net: Net) -> None:
    graph = export_graph(net, (images(),))
    twin = copy.deepcopy(graph)
    assert isinstance(twin, ExportedModel)
    assert list(twin.state_dict()) == list(graph.state_dict())
    twin.train()
    assert not graph.training
    torch.testing.assert_close(twin.eval()(images()), graph(images()))


def test_a_module_called_twice_is_two_nodes(net: Net) -> None:
    graph = export_graph(net, (images(),))
    assert sum(node.target == torch.ops.aten.relu.default for node in graph.graph.nodes) == 2


def test_training_steps_equal_the_eager_models(net: Net) -> None:
    """Gradients, running statistics with the module's own momentum and eps; dropout set aside."""
    net.drop.p = 0.0
    graph = export_graph(net, (images(),)).train()
    net.train()
    for model in (net, graph):
        model(images(5))["logits"].square().sum().backward()
    assert torch.allclose(graph.conv.weight.grad, net.conv.weight.grad, atol=1e-6)
    assert torch.allclose(graph.norm.running_mean, net.norm.running_mean, atol=1e-7)
    assert torch.allclose(graph.norm.running_var, net.norm.running_var, atol=1e-7)
    assert torch.allclose(graph.eval()(images())["logits"], net.eval()(images())["logits"], atol=1e-5)


def test_train_and_eval_lose_neither_eps_nor_momentum_nor_p(net: Net) -> None:
    graph = export_graph(net, (images(),))
    for mode in (True, False, True):
        graph.train(mode)
        calls = {str(node.target): node.args for node in graph.graph.nodes if node.op == "call_function"}
        assert calls["aten.batch_norm.default"][5:8] == (mode, 0.03, 0.01)
        assert calls["aten.dropout.default"][1:] == (0.3, mode)
        assert graph.training is mode


def test_a_graph_in_training_comes_back_to_training_after_evaluating(net: Net) -> None:
    graph = export_graph(net, (images(),)).train()
    with evaluating(graph):
        graph(images())
    before = graph.norm.running_mean.clone()
    graph(images())
    assert graph.training
    assert not torch.equal(graph.norm.running_mean, before)


def test_dropout_drops_with_its_own_p_in_training_only() -> None:
    graph = export_graph(Only(nn.Dropout(0.25), lambda layer, x: layer(x)), (torch.ones(2, 1000),))
    ones = torch.ones(100, 1000)
    assert torch.equal(graph(ones), ones)
    dropped = graph.train()(ones)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(dropped.max()) == pytest.approx(1 / 0.75)


def test_a_norm_without_running_statistics_uses_the_batchs_in_both_modes() -> None:
    model = Only(nn.BatchNorm2d(3, track_running_stats=False), lambda layer, x: layer(x)).eval()
    graph = export_graph(model, (images(),))
    torch.testing.assert_close(graph(images(4)), model(images(4)))
    torch.testing.assert_close(graph.train().eval()(images(4)), model(images(4)))


def test_a_cumulative_batch_norm_cannot_be_trained_and_is_named() -> None:
    graph = export_graph(Only(nn.BatchNorm2d(3, momentum=None), lambda layer, x: layer(x)), (images(),))
    with pytest.raises(ModelError, match="momentum=None") as caught:
        graph.train()
    assert "layer" in str(caught.value)


def test_inputs_by_name() -> None:
    class Two(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left - 2 * right

    left, right = torch.randn(2, 3), torch.randn(2, 3)
    graph = export_graph(Two(), {"right": right, "left": left})
    torch.testing.assert_close(graph(right=right, left=left), left - 2 * right)
    torch.testing.assert_close(graph(right=right[:1], left=left[:1]), (left - 2 * right)[:1])


def test_in_place_operators_become_functional_and_later_readers_see_their_result() -> None:
    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        y = layer(x)
        before = y + 1
        F.relu_(y)  # changes what the next line reads
        return y * 10 + before

    model = Only(nn.Linear(4, 4), forward)
    graph = export_graph(model, (torch.randn(2, 4),))
    assert not any(str(node.target).endswith("_.default") for node in graph.graph.nodes)
    x = torch.randn(5, 4)
    torch.testing.assert_close(graph(x), model(x))


def test_in_place_operators_on_views_stay_as_they_are() -> None:
    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        y = layer(x)
        y[:, :2].relu_()
        return y

    model = Only(nn.Linear(4, 4), forward)
    x = torch.randn(5, 4)
    torch.testing.assert_close(export_graph(model, (x,))(x), model(x))


def test_meta_models_give_the_same_graph(net: Net) -> None:
    real = export_graph(net, (images(),))
    with torch.device("meta"):
        empty = Net()
    meta = export_graph(empty, (images().to("meta"),))
    assert meta.code == real.code
    assert all(tensor.is_meta for tensor in meta.state_dict().values())


def test_an_exported_model_is_copied(net: Net) -> None:
    graph = export_graph(net, (images(),))
    again = export_graph(graph, (images(),))
    assert again is not graph
    assert again.code == graph.code


def test_a_forward_that_fails_is_reported_as_such(net: Net) -> None:
    with pytest.raises(ModelError, match=r"forward of Net fails on its example inputs.*channels") as caught:
        export_graph(net, (torch.randn(2, 5, 8, 8),))
    assert "test_export.py" in str(caught.value.where)


def test_data_dependent_control_flow_is_named_with_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the culprit
            return layer(x)
        return x

    with pytest.raises(ModelError, match="control flow depends on the values") as caught:
        export_graph(Only(nn.Linear(4, 4), forward), (torch.randn(2, 4),))
    assert "the culprit" in str(caught.value.where)
    assert "torch.where" in str(caught.value.hint)
    assert capfd.readouterr() == ("", "")


def test_a_batch_size_in_the_forward_is_named() -> None:
    model = Only(nn.Linear(4, 4), lambda layer, x: layer(x).view(2, 4))
    with pytest.raises(ModelError, match="fixes the batch size") as caught:
        export_graph(model, (torch.randn(2, 4),))
    assert "dynamic_batch=False" in str(caught.value.hint)
