"""Channel groups of small constructions, worked out by hand; each is also compared with the masked original."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim_core.graph import analyse, shrink
from slim_core.testing.kept_statistics import assert_equals_kept_statistics
from slim_core.testing.oracle import assert_equals_masked_original


class Model(nn.Module):
    """A stem with 8 channels, a body under test, and a head that sees what the body gives."""

    def __init__(self, forward, *, inside: int = 8, stem: int = 8, **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 1)
        for name, module in modules.items():
            setattr(self, name, module)
        self.head = nn.Conv2d(inside, 2, 1)
        self._forward = (forward,)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self._forward[0](self, self.stem(x)))


@pytest.fixture
def image() -> tuple[Tensor]:
    return (torch.randn(2, 3, 8, 8),)


def singles(count: int, start: int = 0) -> list[list[int]]:
    return [[n] for n in range(start, start + count)]


def test_residual_add_ties_both_branches(proves, image, members):
    coupling = proves(Model(lambda m, x: x + m.conv(x), conv=nn.Conv2d(8, 8, 3, padding=1)), image)
    assert [group.name for group in coupling.groups] == ["stem"]
    assert members(coupling, "stem") == {
        ("stem.weight", 0): singles(8), ("stem.bias", 0): singles(8),
        ("conv.weight", 0): singles(8), ("conv.weight", 1): singles(8), ("conv.bias", 0): singles(8),
        ("head.weight", 1): singles(8),
    }  # fmt: skip


def test_roles_say_who_makes_and_who_consumes_channels(proves, image):
    coupling = proves(Model(lambda m, x: m.norm(x), norm=nn.BatchNorm2d(8)), image)
    kinds = {(m.name, m.dim): m.kind for m in coupling.group("stem").members}
    assert kinds == {
        ("stem.weight", 0): "out", ("stem.bias", 0): "per_channel", ("norm.weight", 0): "per_channel",
        ("norm.bias", 0): "per_channel", ("norm.running_mean", 0): "per_channel",
        ("norm.running_var", 0): "per_channel", ("head.weight", 1): "in",
    }  # fmt: skip


def test_in_place_add_ties_as_the_plain_one_does(proves, image, units):
    def forward(m, x):
        y = m.conv(x)
        y += x
        return y.relu_()

    assert units(proves(Model(forward, conv=nn.Conv2d(8, 8, 1)), image)) == {"stem": 8}


def test_concat_puts_channels_side_by_side(proves, image, members):
    coupling = proves(Model(lambda m, x: torch.cat([m.conv(x), x], 1), conv=nn.Conv2d(8, 4, 1), inside=12), image)
    assert members(coupling, "conv")["head.weight", 1] == singles(4)
    assert members(coupling, "stem")["head.weight", 1] == singles(8, 4)


def test_channels_joined_with_foreign_ones_stay_free(proves, image, members):
    coupling = proves(
        Model(lambda m, x: torch.cat([x, x.sum(1, keepdim=True).expand(-1, 2, -1, -1)], 1), inside=10), image
    )
    assert members(coupling, "stem")["head.weight", 1] == singles(8)


def test_chunk_ties_equal_positions(proves, image, members):
    def forward(m, x):
        a, b = x.chunk(2, 1)
        return torch.cat([m.conv(a), b], 1)

    coupling = proves(Model(forward, conv=nn.Conv2d(4, 4, 1)), image)
    assert members(coupling, "stem")["stem.weight", 0] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert members(coupling, "stem")["head.weight", 1] == singles(4, 4)


def test_split_by_fixed_sizes_is_frozen_with_the_line(image, units, reasons):
    def forward(m, x):
        a, b = torch.split(x, [2, 6], 1)
        return torch.cat([b, a], 1)

    coupling = analyse(Model(forward), image)
    assert units(coupling) == {}
    entry = next(e for e in coupling.frozen if e.name == "stem.weight" and e.dim == 0)
    assert "split_with_sizes" in entry.reason
    assert entry.source is not None
    assert "torch.split(x, [2, 6], 1)" in entry.source.text


def test_a_slice_up_to_a_fixed_place_frees_only_what_is_behind_it(proves, image, members):
    coupling = proves(Model(lambda m, x: torch.cat([x[:, :3], m.conv(x[:, 3:])], 1), conv=nn.Conv2d(5, 5, 1)), image)
    stem = [m for g in coupling.groups for m in g.members if m.name == "stem.weight"]
    assert [m.indices.tolist() for m in stem] == [singles(5, 3)]


def test_a_slice_at_half_of_the_channels_ties_the_halves(proves, image, members):
    def forward(m, x):
        half = x.shape[1] // 2
        return torch.cat([x[:, :half], m.conv(x[:, half:])], 1)

    coupling = proves(Model(forward, conv=nn.Conv2d(4, 4, 1)), image)
    assert members(coupling, "stem")["stem.weight", 0] == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_a_strided_slice_ties_the_phases(proves, image, members):
    coupling = proves(Model(lambda m, x: torch.cat([x[:, ::2], m.conv(x[:, 1::2])], 1), conv=nn.Conv2d(4, 4, 1)), image)
    assert members(coupling, "stem")["stem.weight", 0] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_reversed_channels_are_followed(proves, image, members):
    coupling = proves(Model(lambda m, x: x.flip(1)), image)
    assert members(coupling, "stem")["head.weight", 1] == [[7 - n] for n in range(8)]


def test_channel_shuffle_ties_equal_positions(proves, image, members):
    def forward(m, x):
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)

    coupling = proves(Model(forward), image)
    assert members(coupling, "stem")["stem.weight", 0] == [[n, n + 4] for n in range(4)]
    assert members(coupling, "stem")["head.weight", 1] == [[2 * n, 2 * n + 1] for n in range(4)]


def test_torch_channel_shuffle_is_the_same(proves, image, members):
    coupling = proves(Model(lambda m, x: F.channel_shuffle(x, 2)), image)
    assert members(coupling, "stem")["head.weight", 1] == [[2 * n, 2 * n + 1] for n in range(4)]


def test_flatten_repeats_channels_over_space(proves, members):
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 2))
    coupling = proves(model, (torch.randn(2, 1, 2, 2),))
    assert members(coupling, "0")["3.weight", 1] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_grouped_convolution_ties_equal_positions_of_all_groups(proves, image, members):
    coupling = proves(Model(lambda m, x: m.conv(x), conv=nn.Conv2d(8, 4, 1, groups=2), inside=4), image)
    assert members(coupling, "stem")["conv.weight", 1] == singles(4)
    assert members(coupling, "stem")["stem.weight", 0] == [[n, n + 4] for n in range(4)]
    assert members(coupling, "conv")["head.weight", 1] == [[0, 2], [1, 3]]


@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_convolution_ties_input_and_output(proves, image, members, multiplier):
    conv = nn.Conv2d(8, 8 * multiplier, 3, groups=8)
    coupling = proves(Model(lambda m, x: m.conv(x), conv=conv, inside=8 * multiplier), image)
    expected = [[multiplier * n + k for k in range(multiplier)] for n in range(8)]
    assert members(coupling, "stem")["conv.weight", 0] == expected
    assert members(coupling, "stem")["stem.weight", 0] == singles(8)


def test_a_convolution_with_one_output_per_group_loses_whole_groups(proves, image, members):
    coupling = proves(Model(lambda m, x: m.conv(x), conv=nn.Conv2d(8, 4, 1, groups=4), inside=4), image)
    assert members(coupling, "stem") == {
        ("stem.weight", 0): [[0, 1], [2, 3], [4, 5], [6, 7]], ("stem.bias", 0): [[0, 1], [2, 3], [4, 5], [6, 7]],
        ("conv.weight", 0): singles(4), ("conv.bias", 0): singles(4), ("head.weight", 1): singles(4),
    }  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_transposed_convolution(proves, image, members, groups):
    conv = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=groups)
    coupling = proves(Model(lambda m, x: m.conv(x), conv=conv), image)
    kinds = {(m.name, m.dim): m.kind for g in coupling.groups for m in g.members}
    assert kinds["conv.weight", 0] == "in"
    if groups == 1:
        assert members(coupling, "conv")["conv.weight", 1] == singles(8)
    elif groups == 2:
        assert members(coupling, "conv")["head.weight", 1] == [[n, n + 4] for n in range(4)]
    else:
        assert members(coupling, "stem")["head.weight", 1] == singles(8)


@pytest.mark.parametrize("make", [nn.Conv1d, nn.Conv3d])
def test_other_numbers_of_spatial_dimensions(proves, units, make):
    model = nn.Sequential(make(2, 6, 3), nn.ReLU(), make(6, 2, 1))
    shape = (2, 2, *[5] * (1 if make is nn.Conv1d else 3))
    assert units(proves(model, (torch.randn(shape),))) == {"0": 6}


def test_pixel_shuffle_ties_the_entries_of_a_channel(proves, image, members):
    coupling = proves(Model(lambda m, x: F.pixel_shuffle(x, 2), inside=2), image)
    assert members(coupling, "stem")["stem.weight", 0] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_pixel_unshuffle_repeats_a_channel(proves, image, members):
    coupling = proves(Model(lambda m, x: F.pixel_unshuffle(x, 2), inside=32), image)
    assert members(coupling, "stem")["head.weight", 1][1] == [4, 5, 6, 7]


def test_pixel_shuffle_by_hand(proves, image, members):
    def forward(m, x):
        b, c, h, w = x.shape
        x = x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(b, c // 4, h * 2, w * 2)

    coupling = proves(Model(forward, inside=4, stem=16), image)
    assert members(coupling, "stem")["stem.weight", 0] == [list(range(4 * n, 4 * n + 4)) for n in range(4)]


def test_glu_ties_value_and_gate(proves, image, members):
    coupling = proves(Model(lambda m, x: F.glu(x, 1), inside=4), image)
    assert members(coupling, "stem")["stem.weight", 0] == [[n, n + 4] for n in range(4)]


def test_squeeze_and_excitation(proves, image, units):
    def forward(m, x):
        return x * torch.sigmoid(m.expand(F.silu(m.reduce(F.adaptive_avg_pool2d(x, 1)))))

    model = Model(forward, reduce=nn.Conv2d(8, 4, 1), expand=nn.Conv2d(4, 8, 1))
    assert units(proves(model, image)) == {"stem": 8, "reduce": 4}


def test_what_does_not_keep_zero_is_right_before_a_layer(proves, image, units):
    assert units(proves(Model(lambda m, x: torch.sigmoid(x) + 1), image)) == {"stem": 8}


def test_a_sum_over_channels_needs_zeros(proves, image, units, reasons):
    assert units(proves(Model(lambda m, x: x.sum(1, keepdim=True), inside=1), image)) == {"stem": 8}
    coupling = analyse(Model(lambda m, x: torch.sigmoid(x).sum(1, keepdim=True), inside=1), image)
    assert units(coupling) == {}
    assert reasons(coupling, "stem.weight") >= {"a sum over channels that are not zero when masked"}


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: x.softmax(1), "softmax over channels"),
        (lambda m, x: x.argmax(1, keepdim=True) + x.mean((2, 3), keepdim=True), "argmax over channels"),
        (lambda m, x: torch.add(*x.max(1, keepdim=True)), "max over channels"),
        (lambda m, x: x.prod(1, keepdim=True), "prod over channels"),
        (lambda m, x: x / (x * 2), "divides by a channel that is zero when masked"),
        (lambda m, x: x.abs().log(), "log is not finite where a channel is masked"),
        (lambda m, x: x[:, 2:3] * x, "is cut off alone"),
        (lambda m, x: x[:, torch.tensor([3, 0, 1, 2, 4, 5, 6, 7])], "is looked up by numbers"),
        (lambda m, x: x * torch.arange(8.0).view(1, 8, 1, 1), "meets a dimension whose size comes from outside"),
        (lambda m, x: torch.roll(x, 1, 1), "is rolled by a fixed distance"),
        (lambda m, x: x.index_select(1, torch.tensor([1, 0])), "is looked up by numbers"),
        (lambda m, x: torch.cdist(x, x), "operator aten._cdist_forward.default has no rule"),
    ],
)
def test_what_cannot_be_removed_is_frozen_with_the_reason(image, units, reasons, forward, reason):
    with torch.no_grad():
        width = forward(None, torch.ones(1, 8, 8, 8)).shape[1]
    coupling = analyse(Model(forward, inside=width), image)
    assert "stem" not in units(coupling)
    found = reasons(coupling, "stem.weight")
    assert any(reason in text for text in found), found


def test_an_unused_result_freezes_nothing(proves, image, units):
    def forward(m, x):
        x.mean(1)
        return x

    assert units(proves(Model(forward), image)) == {"stem": 8}


def test_normalizing_each_pixel_is_exact(proves, image, units):
    assert units(proves(Model(lambda m, x: F.normalize(x, dim=1)), image)) == {"stem": 8}


def test_padding_of_channels_is_frozen(image, units):
    model = Model(lambda m, x: x + F.pad(m.small(x), (0, 0, 0, 0, 2, 2)), small=nn.Conv2d(8, 4, 1))
    found = units(analyse(model, image))
    assert "small" not in found


def test_writing_into_slices_of_a_new_tensor(proves, image, units):
    def forward(m, x):
        out = torch.zeros_like(x)
        half = x.shape[1] // 2
        out[:, :half] = m.a(x)
        out[:, half:] = m.b(x)
        return out

    coupling = proves(Model(forward, a=nn.Conv2d(8, 4, 1), b=nn.Conv2d(8, 4, 1)), image)
    assert units(coupling) == {"stem": 4}


def test_a_parameter_outside_modules_and_a_module_used_twice(proves, image, units):
    def forward(m, x):
        x = torch.relu(m.conv(m.conv(x)))
        return F.conv2d(x, m.weight) * m.scale

    model = Model(
        forward, inside=6, conv=nn.Conv2d(8, 8, 1), weight=nn.Parameter(torch.randn(6, 8, 1, 1)),
        scale=nn.Parameter(torch.randn(6, 1, 1)),
    )  # fmt: skip
    assert units(proves(model, image)) == {"weight": 6, "stem": 8}


def test_prelu_batch_norm_and_instance_norm_go_along(proves, image, members):
    def forward(m, x):
        return m.instance(m.batch(m.act(x)))

    model = Model(
        forward, act=nn.PReLU(8), batch=nn.BatchNorm2d(8, affine=False), instance=nn.InstanceNorm2d(8, affine=True)
    )
    assert {name for name, _ in members(proves(model, image), "stem")} == {
        "stem.weight", "stem.bias", "act.weight", "batch.running_mean", "batch.running_var", "instance.weight",
        "instance.bias", "head.weight",
    }  # fmt: skip


def test_layer_norm_is_offered_but_not_exact(units):
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    coupling = analyse(model, (torch.randn(2, 4),))
    assert {group.name: group.exact for group in coupling.groups} == {"0": False, "2": True}


def test_group_norm_ties_equal_positions(image, members):
    coupling = analyse(Model(lambda m, x: m.norm(x), norm=nn.GroupNorm(2, 8)), image)
    assert members(coupling, "stem")["norm.weight", 0] == [[n, n + 4] for n in range(4)]
    assert not coupling.group("stem").exact


def test_group_norm_with_a_group_per_channel_is_exact(proves, image, units):
    coupling = proves(Model(lambda m, x: m.norm(x), norm=nn.GroupNorm(8, 8)), image)
    assert units(coupling) == {"stem": 8}
    assert coupling.group("stem").exact


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x - x.mean(1, keepdim=True),
        lambda m, x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt(),
        lambda m, x: x / (x.std(1, keepdim=True) + 1),
        lambda m, x: x * torch.sigmoid((-x.abs()).amax(1, keepdim=True)),
        lambda m, x: x * torch.sigmoid(x.max(1, keepdim=True)[0] - x.abs().amin(1, keepdim=True)),
    ],
)
def test_statistics_over_channels_go_on_over_those_that_stay(image, units, forward):
    model = Model(forward)
    coupling = analyse(model, image)
    assert units(coupling) == {"stem": 8}
    assert not coupling.group("stem").exact
    kept = {"stem": np.array([0, 3, 4, 6])}
    smaller = shrink(copy.deepcopy(model), coupling, kept)
    assert_equals_kept_statistics(model, smaller, coupling, kept, image)
    with pytest.raises(AssertionError, match="differs"):
        assert_equals_masked_original(model, smaller, coupling, kept, image)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **options) -> None:
        super().__init__()
        self.embed, self.layer = nn.Linear(3, 6), kind(6, 5, batch_first=True, **options)
        width = (options.get("proj_size") or 5) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.layer(self.embed(x))[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True, "num_layers": 2}, {"bias": False}])
def test_recurrent_layers_lose_hidden_units(proves, units, members, kind, options):
    coupling = proves(Recurrent(kind, **options), (torch.randn(2, 4, 3),))
    assert units(coupling) == {"embed": 6, "layer": 5}
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    rows = members(coupling, "layer")
    assert rows["layer.weight_ih_l0", 0][1] == [1 + 5 * gate for gate in range(gates)]
    assert rows["layer.weight_hh_l0", 1][1] == [1]
    assert rows["head.weight", 1][1] == ([1, 6] if options.get("bidirectional") else [1])


@pytest.mark.parametrize(("projection", "expected"), [(1, {"embed": 6}), (2, {"embed": 6, "layer": 2})])
def test_units_of_a_projected_lstm_go_with_what_they_are_projected_to(proves, units, projection, expected):
    """Torch takes a state that is as wide as the projection for one without, so the state must stay wider."""

    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(3, 6), nn.Linear(projection, 2)
            self.layer = nn.LSTM(6, 6, batch_first=True, proj_size=projection, num_layers=2)

        def forward(self, x):
            return self.head(self.layer(self.embed(x))[0])

    assert units(proves(Projected(), (torch.randn(2, 4, 3),))) == expected


def test_a_projection_that_does_not_divide_the_state_keeps_it(units, reasons):
    coupling = analyse(Recurrent(nn.LSTM, proj_size=3), (torch.randn(2, 4, 3),))
    assert units(coupling) == {"embed": 6, "layer": 3}
    assert "must be more than the projection of the state has" in reasons(coupling, "layer.weight_hh_l0")


def test_a_smaller_recurrent_layer_knows_its_sizes_and_its_flat_weights():
    model = Recurrent(nn.LSTM)
    coupling = analyse(model, (torch.randn(2, 4, 3),))
    shrink(model, coupling, {"embed": np.array([0, 2]), "layer": np.array([1, 3, 4])})
    assert (model.layer.input_size, model.layer.hidden_size) == (2, 3)
    for flat, name in zip(model.layer._flat_weights, model.layer._flat_weights_names, strict=True):
        assert flat is getattr(model.layer, name)


def test_a_state_from_outside_keeps_the_hidden_size(units, reasons):
    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x, state):
            return self.head(self.gru(x, state)[0])

    coupling = analyse(Stateful(), (torch.randn(2, 4, 3), torch.randn(1, 2, 5)))
    assert units(coupling) == {}
    assert reasons(coupling, "gru.weight_hh_l0") == {"meets a dimension whose size comes from outside"}


def test_a_learned_first_state_goes_along(proves, units, members):
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Parameter(torch.randn(1, 1, 5))
            self.gru, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x):
            return self.head(self.gru(x, self.first.expand(-1, len(x), -1).contiguous())[0])

    coupling = proves(Learned(), (torch.randn(2, 4, 3),))
    assert units(coupling) == {"gru": 5}
    assert members(coupling, "gru")["first", 2] == [[0], [1], [2], [3], [4]]


def test_einsum_follows_the_letters(proves, units):
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.w, self.b = nn.Linear(3, 6), nn.Parameter(torch.randn(6, 5)), nn.Linear(5, 2)

        def forward(self, x):
            return self.b(torch.einsum("nlc,cd->nld", torch.tanh(self.a(x)), self.w))

    assert units(proves(Mixer(), (torch.randn(2, 4, 3),))) == {"w": 5, "a": 6}


def test_tied_weights_share_their_channels(proves, members):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(torch.relu(self.embed(x)))

    coupling = proves(Tied(), (torch.randint(0, 11, (2, 4)),))
    assert members(coupling, "embed") == {("embed.weight", 1): singles(8)}
    assert coupling.graph.value_of("head.weight").names == ("embed.weight", "head.weight")


def test_a_classifier_keeps_its_classes_and_the_input_its_width(reasons, image):
    coupling = analyse(Model(lambda m, x: x), image)
    assert reasons(coupling, "head.weight") == {"is an output of the model"}
    assert {(e.name, e.dim, e.count) for e in coupling.frozen} == {
        ("stem.weight", 1, 3), ("head.weight", 0, 2), ("head.bias", 0, 2)
    }  # fmt: skip


def test_an_unused_parameter_is_frozen(reasons, image):
    coupling = analyse(Model(lambda m, x: x, spare=nn.Linear(4, 4)), image)
    assert reasons(coupling, "spare.weight") == {"is not used by the forward"}


def test_unfold_repeats_channels(proves, members):
    class Unfold(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 3, 1), nn.Linear(12, 2)

        def forward(self, x):
            return self.head(F.unfold(self.conv(x), 2).transpose(1, 2))

    coupling = proves(Unfold(), (torch.randn(2, 1, 4, 4),))
    assert members(coupling, "conv")["head.weight", 1] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
