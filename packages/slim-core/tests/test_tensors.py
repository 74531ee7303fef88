"""``TensorSpec``: the description of a tensor, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slim_core.tensors import DTYPE_BYTES, TensorSpec

specs = st.builds(
    TensorSpec,
    name=st.text(min_size=1),
    shape=st.lists(st.none() | st.integers(0, 2**40), max_size=5).map(tuple),
    dtype=st.sampled_from(sorted(DTYPE_BYTES)),
    role=st.sampled_from(["input", "output", "parameter", "buffer", "index", "scale"]),
)


@given(specs)
def test_json_brings_it_back(spec: TensorSpec) -> None:
    assert TensorSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_bytes_per_element_are_those_of_torch(dtype: str) -> None:
    assert torch.empty((), dtype=getattr(torch, dtype)).element_size() == DTYPE_BYTES[dtype]


@pytest.mark.parametrize("dtype", ["object", "complex64", "float", "", "__class__"])
def test_dtypes_outside_the_list_are_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="unknown dtype"):
        TensorSpec("x", (1,), dtype, "input")


def test_negative_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="negative size"):
        TensorSpec("x", (None, -1), "float32", "input")


def test_it_is_a_value() -> None:
    spec = TensorSpec("x", (None, 3), "float32", "input")
    assert spec == TensorSpec("x", (None, 3), "float32", "input")
    assert hash(spec) == hash(TensorSpec("x", (None, 3), "float32", "input"))
    with pytest.raises(AttributeError):
        spec.name = "y"  # type: ignore[misc]
