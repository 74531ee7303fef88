"""Whole architectures: what of each is prunable, what is frozen and why, and that any removal is right."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from slim_core.graph import Coupling, analyse, check, shrink
from slim_core.graph.record import Several
from slim_core.testing.families import FAMILIES, build
from slim_core.testing.kept_statistics import assert_equals_kept_statistics
from slim_core.testing.oracle import assert_equals_masked_original

#: further inputs, on which the forward goes another way
ALSO = {"branching": lambda inputs: ((inputs[0] * 1e6,),)}
#: what of a family's parameters must be within reach of some group; 0.97 where nothing is said
REACH = {"cbam_resnet": 0.95, "literal_view": 0.9}


def analysed(name: str) -> tuple[torch.nn.Module, object, Coupling]:
    model, inputs = build(name)
    also = ALSO[name](inputs) if name in ALSO else ()
    return model, Several((inputs, *also)) if also else inputs, analyse(model, inputs, also=also)


@pytest.mark.parametrize("name", FAMILIES)
def test_any_removal_is_the_masked_original(name: str) -> None:
    model, inputs, coupling = analysed(name)
    assert coupling.groups
    for seed in range(2):
        rng = np.random.default_rng(seed)
        kept = {
            group.name: np.sort(rng.permutation(group.units)[: rng.integers(1, group.units + 1)])
            for group in coupling.groups
        }
        smaller = shrink(copy.deepcopy(model), coupling, kept)
        assert_equals_kept_statistics(model, smaller, coupling, kept, inputs, rtol=1e-9)
        if FAMILIES[name].exact and not isinstance(inputs, Several):
            assert_equals_masked_original(model, smaller, coupling, kept, inputs, rtol=1e-9)
        assert check(model, inputs[0] if isinstance(inputs, Several) else inputs, coupling, kept) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_nearly_every_parameter_is_within_reach(name: str) -> None:
    model, _, coupling = analysed(name)
    reached = {key: torch.zeros(value.shape, dtype=torch.bool) for key, value in model.named_parameters()}
    for group in coupling.groups:
        for member in group.members:
            if member.name in reached:
                places = torch.from_numpy(member.indices.ravel())
                reached[member.name].index_fill_(member.dim, places, True)
    share = sum(int(mask.sum()) for mask in reached.values()) / sum(mask.numel() for mask in reached.values())
    assert share >= REACH.get(name, 0.97), [str(entry) for entry in coupling.frozen]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_frozen_has_a_reason_and_a_line(name: str) -> None:
    _, _, coupling = analysed(name)
    for entry in coupling.frozen:
        assert entry.reason
        lineless = ("is an output", "belongs to buffers", "is not used", "is the only unit")
        assert entry.source or entry.reason.startswith(lineless), entry


def groups(coupling: Coupling) -> dict[str, int]:
    return {group.name: group.units for group in coupling.groups}


def test_heads_widths_and_hidden_sizes_of_a_bert_encoder() -> None:
    _, _, coupling = analysed("bert")
    assert groups(coupling) == {
        "word_embeddings": 16, "layers.0.attention.query": 4, "layers.0.intermediate": 64,
        "layers.1.attention.query": 4, "layers.1.intermediate": 64, "pooler": 16,
    }  # fmt: skip
    stream = {member.name for member in coupling.group("word_embeddings").members}
    assert {"position_embeddings.weight", "token_type_embeddings.weight", "transform.weight"} <= stream


def test_tied_embeddings_of_a_decoder_lose_their_width_and_keep_their_words() -> None:
    model, inputs, coupling = analysed("gpt")
    kept = {"wte": np.array([0, 2])}
    smaller = shrink(copy.deepcopy(model), coupling, kept)
    assert smaller.wte.weight is smaller.lm_head.weight
    assert smaller.wte.weight.shape == (23, 8)
    assert [block.attn.n_head for block in smaller.h] == [2, 2]
    assert [block.attn.n_embd for block in smaller.h] == [8, 8]
    assert smaller(*inputs).shape == (2, 12, 23)


def test_key_heads_that_several_query_heads_share_go_with_them() -> None:
    _, _, coupling = analysed("llama")
    group = coupling.group("layers.0.q_proj")
    rows = {(member.name, member.dim): member.indices.tolist() for member in group.members}
    assert group.units == 2
    assert rows["layers.0.q_proj.weight", 0][1] == [*range(8, 16)]
    assert rows["layers.0.k_proj.weight", 0][1] == [*range(4, 8)]
    assert rows["layers.0.v_proj.weight", 0][1] == [*range(4, 8)]


@pytest.mark.parametrize(("name", "group"), [("vit", "patch_embed"), ("vit_head_dim", "blocks.0.attn.qkv")])
def test_the_size_of_heads_goes_where_that_is_preferred(name: str, group: str) -> None:
    """4 heads of 8: whole heads are 4 units, their positions are 8."""
    model, inputs = build(name, width=32)
    assert analyse(model, inputs).group(group).units == 4
    coupling = analyse(model, inputs, prefer="head_dim")
    assert coupling.group(group).units == 8
    kept = {group: np.array([1, 2, 5]), "blocks.1.mlp.fc1": np.arange(9)}
    smaller = shrink(copy.deepcopy(model), coupling, kept)
    assert smaller.blocks[0].attn.num_heads == 4
    assert smaller.blocks[0].attn.qkv.weight.shape[0] == 3 * 4 * 3
    assert_equals_kept_statistics(model, smaller, coupling, kept, inputs)


def test_a_head_size_that_sets_the_scale_stays_even_so() -> None:
    model, inputs = build("bert", width=32)
    assert groups(analyse(model, inputs, prefer="head_dim")) == groups(analyse(model, inputs))


def test_only_what_a_literal_fixes_is_frozen() -> None:
    _, _, coupling = analysed("literal_view")
    assert groups(coupling) == {"features.0.0": 8, "fc1": 32}
    reasons = {entry.reason: entry.source for entry in coupling.frozen if entry.name == "features.1.0.weight"}
    (line,) = (source for reason, source in reasons.items() if "fewer channels" in reason or "fixes a size" in reason)
    assert line is not None
    assert line.text == "x = x.view(-1, 1024)"


def test_a_way_that_was_not_taken_freezes_what_it_may_meet() -> None:
    model, inputs = build("branching")
    coupling = analyse(model, inputs)
    assert coupling.groups == ()
    (entry,) = (entry for entry in coupling.frozen if (entry.name, entry.dim) == ("body.0.weight", 0))
    assert "did not run" in entry.reason
    assert entry.source is not None
    assert "x.amax() < 1e3" in entry.source.text
    assert "only what it did was recorded" in coupling.graph.notes[-1]


def test_inputs_for_both_ways_free_it_again_and_both_go_on_working() -> None:
    model, inputs, coupling = analysed("branching")
    assert groups(coupling) == {"stem.0": 8, "body.0": 16, "tail.0": 16}
    kept = {"body.0": np.arange(5), "stem.0": np.arange(1, 4)}
    smaller = shrink(copy.deepcopy(model), coupling, kept)
    assert_equals_masked_original(model, smaller, coupling, kept, inputs[0])
    assert_equals_masked_original(model, smaller, coupling, kept, inputs[1])


def test_a_backbone_alone_keeps_what_leaves_it() -> None:
    """Analysed by itself its outputs are frozen; inside the detector they are channels like others."""
    model, inputs = build("detector")
    alone = groups(analyse(model.backbone, inputs))
    whole = groups(analyse(model, inputs))
    assert set(alone) == {"stem.0", "layer1.conv1", "layer2.conv1", "layer3.conv1"}
    assert {f"backbone.{name}" for name in alone} < set(whole)
    assert set(whole) - {f"backbone.{name}" for name in alone} == {
        "backbone.layer1.conv2", "backbone.layer2.conv2", "backbone.layer3.conv2", "lateral.0",
    }  # fmt: skip


def test_a_weight_normed_layer_is_grouped_under_its_own_name_and_knows_its_groups() -> None:
    model, inputs, coupling = analysed("weight_norm")
    assert groups(coupling) == {"conv1": 8}
    smaller = shrink(copy.deepcopy(model), coupling, {"conv1": np.array([1, 6, 7])})
    assert (smaller.mix.groups, smaller.mix.in_channels, smaller.conv2.out_channels) == (3, 3, 3)
    assert smaller(*inputs).shape == (2, 5)


def test_torch_transformer_knows_its_smaller_width() -> None:
    model, inputs, coupling = analysed("torch_transformer")
    smaller = shrink(copy.deepcopy(model), coupling, {"source": np.array([0, 3])})
    assert (smaller.transformer.d_model, smaller.transformer.nhead) == (8, 2)
    assert smaller.transformer.encoder.layers[0].self_attn.num_heads == 2
    assert smaller(*inputs).shape == (2, 12, 23)


def test_the_fused_path_of_torchs_encoder_computes_the_same() -> None:
    """In eval mode without gradients torch takes a kernel that reads widths from attributes."""
    model, inputs, coupling = analysed("torch_encoder")
    smaller = shrink(
        copy.deepcopy(model), coupling, {"embed": np.array([0, 3]), "encoder.layers.0.linear1": np.arange(5)}
    )
    with torch.no_grad():
        fast = smaller(*inputs)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            slow = smaller(*inputs)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    assert torch.allclose(fast, slow, atol=1e-6)
