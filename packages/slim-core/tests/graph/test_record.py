"""Recording: what is written down, which models can be recorded, and that the model stays as it was."""

from __future__ import annotations

import copy
import hashlib
import logging
import random
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim_core.errors import ModelError
from slim_core.graph import Ref, analyse, record, shrink


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.head(x.mean((2, 3)))


IMAGE = (torch.randn(2, 3, 8, 8),)


def state_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().numpy().tobytes())
    return digest.hexdigest()


def test_nodes_have_operator_arguments_module_and_line():
    graph = record(Small(), IMAGE)
    assert [node.op for node in graph.nodes] == [
        "aten.conv2d.default", "aten.batch_norm.default", "aten.relu.default", "aten.mean.dim", "aten.linear.default",
    ]  # fmt: skip
    conv = graph.nodes[0]
    assert conv.module == "conv"
    assert conv.source is not None
    assert conv.source.file == __file__
    assert conv.source.text == "x = F.relu(self.norm(self.conv(x)))"
    assert conv.args["stride"] == (1, 1)
    assert conv.args["groups"] == 1
    assert isinstance(conv.args["weight"], Ref)
    assert graph.values[conv.args["weight"].index].names == ("conv.weight",)
    assert graph.values[conv.args["input"].index].names == ("x",)
    assert graph.values[conv.outputs[0]].shape == (2, 8, 6, 6)
    assert graph.nodes[2].module == ""
    assert [graph.values[index].shape for index in graph.outputs] == [(2, 2)]
    assert graph.device_kind == "meta"
    assert graph.model_class == "Small"


def test_tensors_in_lists_are_references():
    class Join(nn.Module):
        def forward(self, x, y):
            return torch.cat([x, y], 1)

    graph = record(Join(), (torch.zeros(1, 2), torch.zeros(1, 3)))
    assert graph.nodes[0].args["tensors"] == (Ref(0), Ref(1))
    assert [graph.values[index].names for index in graph.inputs] == [("x",), ("y",)]


def test_an_in_place_operator_makes_a_new_value_of_the_same_storage():
    class InPlace(nn.Module):
        def forward(self, x):
            y = x + 1
            y[:, :1].relu_()
            return y

    graph = record(InPlace(), (torch.zeros(2, 3),))
    add, cut, relu = graph.nodes
    assert relu.op == "aten.relu_.default"
    storages = {graph.values[node.outputs[0]].storage for node in (add, cut, relu)}
    assert len(storages) == 1
    assert relu.outputs != cut.outputs


def test_the_model_stays_as_it_was():
    class Restless(Small):
        def forward(self, x):
            self.cache = x
            self.calls.append(1)
            self.counter += 1
            self.extra = nn.Linear(2, 2)
            return super().forward(F.dropout(x, 0.5, True))

    model = Restless().train()
    model.head.eval()
    model.calls = []
    model.register_buffer("counter", torch.zeros(()))
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    model.conv.register_forward_hook(lambda module, args, output: output * 2)
    hooks = model.conv._forward_hooks
    hooks_before = dict(hooks)
    before, names = state_hash(model), list(model.__dict__)
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    coupling = analyse(model, IMAGE)

    assert coupling.groups
    assert state_hash(model) == before
    assert list(model.__dict__) == names
    assert model.calls == []
    assert not hasattr(model, "cache")
    assert not hasattr(model, "extra")
    assert model.conv._forward_hooks is hooks
    assert dict(hooks) == hooks_before
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert torch.equal(model.conv.weight.grad, torch.ones_like(model.conv.weight))
    assert model.training
    assert model.norm.training
    assert not model.head.training
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.random.get_state()[1].tolist() == generators[2]


def test_the_model_stays_as_it_was_when_the_forward_fails():
    model = Small().train()
    before = state_hash(model)
    with pytest.raises(ModelError):
        record(model, (torch.randn(2, 4, 8, 8),))
    assert state_hash(model) == before
    assert model.training
    assert model.conv.weight.device.type == "cpu"


def test_the_real_forward_is_recorded_without_touching_buffers_or_random_numbers():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += 1
            y = torch.relu(self.one(x)) + torch.rand(1)
            return self.two(y) if y.sum().item() > 0 else self.two(-y)

    model = Counting()
    state = torch.get_rng_state()
    graph = record(model, (torch.ones(2, 4),))
    assert graph.device_kind == "real"
    assert len(graph.notes) == 3
    assert "meta" in graph.notes[0]
    assert "only what it did was recorded" in graph.notes[2]
    assert "y.sum().item() > 0" in graph.notes[2]
    assert model.seen.item() == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_failing_forward_names_exception_module_and_line():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleList([Small()])

        def forward(self, x):
            return self.inner[0](x)

    with pytest.raises(ModelError) as caught:
        record(Outer(), (torch.randn(2, 4, 8, 8),))
    assert "fails on its example inputs: RuntimeError" in caught.value.what
    assert "module 'inner.0.conv'" in caught.value.where
    assert "x = F.relu(self.norm(self.conv(x)))" in caught.value.where
    assert __file__ in caught.value.where
    assert caught.value.hint


def test_a_lazy_layer_asks_for_one_run_first():
    with pytest.raises(ModelError, match=r"^'0\.weight' is not initialised") as caught:
        record(nn.Sequential(nn.LazyLinear(3)), (torch.randn(2, 4),))
    assert caught.value.where is None
    assert "run the model once" in caught.value.hint


def test_what_is_no_model_is_refused():
    with pytest.raises(ModelError, match=r"must be a torch\.nn\.Module, and a int was given"):
        analyse(3, IMAGE)


def test_torch_prints_no_traceback_before_the_error_of_a_failing_forward():
    lines: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = lines.append
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.addHandler(handler)
    try:
        with pytest.raises(ModelError):
            record(nn.Linear(4, 4), (torch.zeros(2, 8),))
    finally:
        logger.removeHandler(handler)
    assert lines == []
    assert logger.level == level


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: torch.compile(nn.DataParallel(m))])
def test_wrapped_models_are_looked_through(wrap, units):
    model = Small()
    wrapped = wrap(model)
    coupling = analyse(wrapped, IMAGE)
    assert units(coupling) == {"conv": 8}
    smaller = shrink(wrapped, coupling, {"conv": np.arange(3)})
    assert smaller is wrapped
    assert model.conv.weight.shape[0] == 3


def test_a_module_that_was_compiled_in_place_runs_as_written(units):
    model = Small()
    model.conv.compile(backend="eager")
    model.compile(backend="eager")
    compiled = model._compiled_call_impl, model.conv._compiled_call_impl
    graph = record(model, IMAGE)
    assert [node.op for node in graph.nodes] == [node.op for node in record(Small(), IMAGE).nodes]
    assert units(analyse(model, IMAGE)) == {"conv": 8}
    assert (model._compiled_call_impl, model.conv._compiled_call_impl) == compiled


def test_a_compiled_module_inside_runs_as_written(units):
    model = nn.Sequential(torch.compile(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2))
    assert list(units(analyse(model, (torch.randn(2, 4),))).values()) == [8]


def test_a_forward_hook_takes_part(units):
    model = Small()
    model.conv.register_forward_hook(lambda module, args, output: output.flip(1))
    coupling = analyse(model, IMAGE)
    norm = next(member for member in coupling.group("conv").members if member.name == "norm.weight")
    assert norm.indices.ravel().tolist() == list(range(7, -1, -1))


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    loss: Tensor | None = None


class MappingOutput(OrderedDict):
    """Like Hugging Face's: a mapping with attributes."""


@pytest.mark.parametrize("kind", [dict, MappingOutput, Output])
def test_dict_inputs_and_structured_outputs(units, kind):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.up, self.down = nn.Embedding(11, 4), nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, ids, mask=None, flag=True):
            x = self.embed(ids) * mask.unsqueeze(-1)
            y = self.down(torch.relu(self.up(x)))
            return kind(logits=y, hidden=(x, y))

    inputs = {"ids": torch.randint(0, 11, (2, 5)), "mask": torch.ones(2, 5), "flag": False}
    coupling = analyse(Encoder(), inputs)
    assert units(coupling) == {"up": 8}
    assert [coupling.graph.values[index].names for index in coupling.graph.inputs] == [("ids",), ("mask",)]
    assert len(coupling.graph.outputs) == 3


def test_tied_parameters_are_one_value():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    graph = record(Tied(), (torch.randn(2, 4),))
    assert graph.value_of("b.weight") is graph.value_of("a.weight")
    assert graph.nodes[0].args["weight"] == graph.nodes[1].args["weight"]


def test_plain_tensor_attributes_and_tensors_made_in_forward_are_constants(units):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)
            self.mean = torch.arange(6.0)

        def forward(self, x):
            x = self.two(self.one(x) - self.mean)
            return self.three(x * torch.tensor(2.0) + torch.ones(1))

    coupling = analyse(Constant(), (torch.randn(2, 4),))
    assert coupling.graph.device_kind == "meta"
    assert units(coupling) == {"two": 5}


def test_a_model_on_the_meta_device_is_analysed(units):
    with torch.device("meta"):
        model = Small()
    assert units(analyse(model, IMAGE)) == {"conv": 8}
    assert model.conv.weight.device.type == "meta"


def test_a_model_is_copied_by_nothing():
    model = Small()
    twin = copy.deepcopy(model)
    analyse(model, IMAGE)
    with torch.no_grad():
        assert torch.equal(model.eval()(*IMAGE), twin.eval()(*IMAGE))


def test_an_operator_of_the_users_own_is_kept_whole_and_frozen(units, reasons):
    library = torch.library.Library("slim_test_record", "FRAGMENT")
    library.define("twist(Tensor x) -> Tensor")
    library.impl("twist", lambda x: x.flip(1), "CompositeExplicitAutograd")

    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.two(torch.ops.slim_test_record.twist(self.one(x)))

    coupling = analyse(Custom(), (torch.randn(2, 4),))
    assert units(coupling) == {}
    assert reasons(coupling, "one.weight") >= {"operator slim_test_record.twist.default has no rule"}
    entry = next(e for e in coupling.frozen if "twist" in e.reason)
    assert entry.source.text == "return self.two(torch.ops.slim_test_record.twist(self.one(x)))"


def test_a_scripted_model_is_refused():
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ModelError, match="scripted"):
        record(scripted, (torch.randn(1, 2),))
