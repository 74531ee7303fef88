"""What every replayer of a checkpoint transform promises."""
# ruff: noqa: S101

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from torch import nn

from slim_core.errors import SlimError
from slim_core.testing.workloads import layout, on_meta
from slim_core.workload import Inputs, Replayer, Transform


@dataclass(frozen=True)
class ReplayCase:
    """A replayer with one transform to try it with.

    Args:
        replayer: what is registered under the transform's kind.
        transform: one record, as the technique made it.
        build: returns the model that the transform was made for, with any weights.
        example_inputs: inputs of that model.
        result: the compressed model that the replayed one must have the shapes of.
    """

    replayer: Replayer
    transform: Transform
    build: Callable[[], nn.Module]
    example_inputs: Inputs
    result: nn.Module


class ReplayerContract:
    """Inherit this, and give the fixture ``case``."""

    @pytest.fixture
    def case(self) -> ReplayCase:
        raise NotImplementedError("give a fixture `case` that returns a ReplayCase")

    def test_names_shapes_and_dtypes_are_those_of_the_compressed_model(self, case: ReplayCase) -> None:
        assert layout(_replayed(case, case.transform)) == layout(case.result)

    def test_it_stays_on_the_meta_device(self, case: ReplayCase) -> None:
        model = _replayed(case, case.transform)
        tensors = [*model.named_parameters(), *model.named_buffers()]
        assert [name for name, tensor in tensors if not tensor.is_meta] == []

    def test_it_does_the_same_each_time(self, case: ReplayCase) -> None:
        assert layout(_replayed(case, case.transform)) == layout(_replayed(case, case.transform))

    def test_it_refuses_a_schema_of_the_future(self, case: ReplayCase) -> None:
        with pytest.raises(SlimError):
            _replayed(case, replace(case.transform, schema=case.transform.schema + 1000))

    def test_it_refuses_a_record_without_its_data(self, case: ReplayCase) -> None:
        with pytest.raises(SlimError):
            _replayed(case, replace(case.transform, data={}, tensors={}))


def _replayed(case: ReplayCase, transform: Transform) -> nn.Module:
    return case.replayer.replay(case.build().to("meta"), transform, on_meta(case.example_inputs))
