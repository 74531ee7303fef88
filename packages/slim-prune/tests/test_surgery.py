"""Cutting tensors, attributes, optimizer state and EMA copies, against a network cut by hand."""

from __future__ import annotations

import copy

import numpy as np
import prune_hand as hand
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from slim_prune.edits import AttributeEdit, Edits, TensorEdit
from slim_prune.errors import PlanError
from slim_prune.surgery import copy_and_operate, operate, set_data, sliced


def same_state(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    state = model.state_dict()
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


def test_in_place_keeps_objects_and_ties_and_sets_attributes(net) -> None:
    expected = hand.pruned_by_hand(net)
    objects = dict(net.named_parameters(remove_duplicate=False))
    operate(net, hand.edits())
    same_state(net, expected)
    assert all(objects[name] is parameter for name, parameter in net.named_parameters(remove_duplicate=False))
    assert net.b.weight is net.c.weight
    assert (net.a.out_channels, net.norm.num_features, net.b.in_channels, net.c.in_channels) == (3, 3, 3, 3)


def test_a_copy_is_cut_and_the_original_is_left_alone(net) -> None:
    before = copy.deepcopy(net.state_dict())
    smaller = copy_and_operate(net, hand.edits())
    same_state(smaller, hand.pruned_by_hand(net))
    same_state(net, before)
    assert type(smaller) is type(net)
    assert smaller.b.weight is smaller.c.weight
    assert net.a.out_channels == 6
    assert not {id(p) for p in smaller.parameters()} & {id(p) for p in net.parameters()}


def test_gradients_are_cut_with_their_parameters(net) -> None:
    net(*hand.INPUTS).sum().backward()
    gradient = net.b.weight.grad.clone()
    operate(net, hand.edits())
    assert torch.equal(net.b.weight.grad, gradient[:, hand.KEPT])


def test_training_goes_on_while_an_old_graph_is_alive(net) -> None:
    loss = net(*hand.INPUTS).sum()
    loss.backward()
    operate(net, hand.edits())
    net.zero_grad()
    net(*hand.INPUTS).sum().backward()
    assert net.a.weight.grad.shape == net.a.weight.shape


def test_set_data_takes_another_shape(net) -> None:
    parameter = net.a.bias
    set_data(parameter, torch.ones(2))
    assert net.a.bias is parameter
    assert torch.equal(parameter, torch.ones(2))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, amsgrad=True),
        lambda p: torch.optim.AdamW(p),
        lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    ],
    ids=["sgd", "adam", "adamw", "rmsprop"],
)
def test_optimizer_state_is_cut(net, make) -> None:
    optimizer = make(net.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        net(*hand.INPUTS).square().sum().backward()
        optimizer.step()
    before = {
        name: {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in entries.items()}
        for name, parameter in net.named_parameters()
        if (entries := optimizer.state[parameter])
    }
    assert before
    operate(net, hand.edits(), optimizer=optimizer)
    for name, parameter in net.named_parameters():
        for key, old in before[name].items():
            new = optimizer.state[parameter][key]
            if not isinstance(old, torch.Tensor) or old.dim() == 0:
                assert new == old
            elif name == "b.weight":
                assert torch.equal(new, old[:, hand.KEPT])
            elif name.split(".")[0] in ("a", "norm"):
                assert torch.equal(new, old[hand.KEPT])
            else:
                assert torch.equal(new, old)


def test_state_of_another_shape_is_refused_before_anything_is_touched(net) -> None:
    optimizer = torch.optim.Adafactor(net.parameters())
    net(*hand.INPUTS).sum().backward()
    optimizer.step()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(PlanError, match="Adafactor keeps state 'row_var'"):
        operate(net, hand.edits(), optimizer=optimizer)
    same_state(net, before)


def test_the_optimizer_of_another_model_is_refused(net) -> None:
    with pytest.raises(PlanError, match="holds none of the parameters"):
        operate(net, hand.edits(), optimizer=torch.optim.SGD(hand.net().parameters(), 0.1))


def test_ema_modules_and_mappings_are_cut(net) -> None:
    expected = hand.pruned_by_hand(net)
    averaged = AveragedModel(net)
    mapping = {name: tensor.detach().clone() for name, tensor in net.named_parameters()}
    second = copy.deepcopy(net)
    operate(net, hand.edits(), ema=averaged)
    same_state(averaged.module, expected)
    assert averaged.module.a.out_channels == 3
    operate(second, hand.edits(), ema=mapping)
    assert torch.equal(mapping["b.weight"], expected["b.weight"])
    averaged.update_parameters(net)


def test_a_foreign_ema_is_refused(net) -> None:
    with pytest.raises(PlanError, match="holds none"):
        operate(net, hand.edits(), ema={"other": torch.zeros(3)})
    with pytest.raises(PlanError, match="shape"):
        operate(net, hand.edits(), ema={"a.weight": torch.zeros(5, 3, 3, 3)})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (TensorEdit("nope", 0, 6, hand.KEPT), "no parameter or buffer 'nope'"),
        (TensorEdit("a.weight", 0, 7, hand.KEPT), "expects 7 indices"),
        (TensorEdit("a.weight", 4, 6, hand.KEPT), "expects 6 indices"),
        (TensorEdit("a.weight", 0, 6, np.array([0, 0, 1])), "ascending, unique"),
        (TensorEdit("a.weight", 0, 6, np.array([2, 1])), "ascending, unique"),
        (TensorEdit("a.weight", 0, 6, np.array([0, 6])), "within 0..5"),
        (TensorEdit("a.weight", 0, 6, np.array([-1, 2])), "within 0..5"),
        (TensorEdit("a.weight", 0, 6, np.array([], dtype=np.int64)), "no index is kept"),
    ],
)
def test_edits_that_do_not_fit_change_nothing(net, edit, message) -> None:
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(PlanError, match=message):
        operate(net, Edits((*hand.edits().tensors, edit), ()))
    same_state(net, before)


def test_a_tied_tensor_cut_in_two_ways_is_refused(net) -> None:
    other = TensorEdit("c.weight", 1, 6, np.array([1]))
    with pytest.raises(PlanError, match=r"'b\.weight' and 'c\.weight' are one tensor"):
        operate(net, Edits((TensorEdit("b.weight", 1, 6, hand.KEPT), other), ()))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (AttributeEdit("zz", "out_channels", 6, 3), "no such module attribute"),
        (AttributeEdit("a", "nothing", 6, 3), "no such module attribute"),
        (AttributeEdit("a", "out_channels", 5, 3), "expects 5"),
        (AttributeEdit("a", "kernel_size", 3, 3), "expects 3"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(net, edit, message) -> None:
    with pytest.raises(PlanError, match=message):
        operate(net, Edits((), (edit,)))


def test_slices_keep_channels_last() -> None:
    weight = torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last)
    cut = sliced(weight, [TensorEdit("w", 0, 6, hand.KEPT)])
    assert cut.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(cut, weight[hand.KEPT])


def test_slices_of_two_dimensions() -> None:
    weight = torch.randn(6, 6)
    cut = sliced(weight, [TensorEdit("w", 0, 6, hand.KEPT), TensorEdit("w", 1, 6, np.array([1]))])
    assert torch.equal(cut, weight[hand.KEPT][:, [1]])


def test_large_matrices_are_cut_in_blocks_with_the_same_result() -> None:
    weight = torch.arange(1500 * 900, dtype=torch.float32).reshape(1500, 900)
    rows, columns = np.arange(1, 1500, 3), np.arange(0, 900, 2)
    cut = sliced(weight, [TensorEdit("w", 1, 900, columns), TensorEdit("w", 0, 1500, rows)])
    assert np.array_equal(cut.numpy(), weight.numpy()[np.ix_(rows, columns)])


@pytest.mark.parametrize("run", [1, 7, 49])
def test_large_matrices_are_cut_in_runs_of_columns(run):
    rng = np.random.default_rng(0)
    count = 2**21 // 512 // run
    tensor = torch.arange(512 * count * run, dtype=torch.float32).reshape(512, -1)
    rows = np.sort(rng.permutation(512)[:100])
    columns = (np.sort(rng.permutation(count)[: count // 3])[:, None] * run + np.arange(run)).ravel()
    cuts = [TensorEdit("weight", 1, count * run, columns), TensorEdit("weight", 0, 512, rows)]
    assert np.array_equal(sliced(tensor, cuts).numpy(), tensor.numpy()[rows][:, columns])


def test_slims_own_average_is_cut(net) -> None:
    from slim_core.training import Ema

    expected = hand.pruned_by_hand(net)
    average = Ema(net, 0.9)
    operate(net, hand.edits(), ema=average)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in average.average.items())
    average.update(net)


def test_an_average_around_a_module_is_cut_with_its_sizes(net) -> None:
    class Around(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.module = copy.deepcopy(inner)

    around = Around(net)
    operate(net, hand.edits(), ema=around)
    same_state(around.module, hand.pruned_by_hand(hand.net()))
    assert around.module.a.out_channels == 3


def test_what_is_no_average_is_refused(net) -> None:
    with pytest.raises(PlanError, match="no moving average"):
        operate(net, hand.edits(), ema=[1, 2])


def test_state_over_all_parameters_is_refused_and_nothing_is_changed(net) -> None:
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = net(*hand.INPUTS).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(PlanError, match="LBFGS keeps state 'old_dirs'"):
        operate(net, hand.edits(), optimizer=optimizer)
    same_state(net, before)


def test_state_of_an_optimizer_of_ones_own_is_cut_where_it_has_the_parameters_shape(net) -> None:
    class Lion(torch.optim.Optimizer):
        """Keeps a moment, a counter, and nothing that PyTorch's own optimizers know."""

        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    state = self.state[parameter]
                    state.setdefault("direction", parameter.grad.clone().sign())
                    state["seen"] = state.get("seen", 0) + 1

    optimizer = Lion(net.parameters(), {"lr": 0.1})
    net(*hand.INPUTS).square().sum().backward()
    optimizer.step()
    whole = optimizer.state[net.b.weight]["direction"].clone()
    operate(net, hand.edits(), optimizer=optimizer)
    assert torch.equal(optimizer.state[net.b.weight]["direction"], whole[:, hand.KEPT])
    assert optimizer.state[net.b.weight]["seen"] == 1


def test_state_in_a_list_names_its_key(net) -> None:
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    optimizer.state[net.a.weight]["history"] = [torch.zeros_like(net.a.weight)]
    with pytest.raises(PlanError, match="keeps state 'history' as a list") as caught:
        operate(net, hand.edits(), optimizer=optimizer)
    assert caught.value.where == "a.weight"
    assert caught.value.hint
