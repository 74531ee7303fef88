"""The transform ``quant.qat``, which comes from a file that anyone may have written; and the contracts of the core."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from qat_cases import mixed
from quant_nets import pictures

from slim_core.errors import CheckpointError
from slim_core.testing.contracts import ReplayCase, ReplayerContract
from slim_core.testing.workloads import on_meta
from slim_core.workload import Transform
from slim_quant import Scheme, prepare_qat
from slim_quant.qat import transform_of
from slim_quant.qat.record import QATReplayer
from slim_quant.qat.spec import BatchNorm, Quantizer

X = pictures(4, 1)[0]


@cache
def case_of(quantizer: Quantizer, batch_norm: BatchNorm) -> ReplayCase:
    model = prepare_qat(mixed(), (X,), quantizer=quantizer, batch_norm=batch_norm)
    return ReplayCase(QATReplayer(), transform_of(model), mixed, (X,), model)


class TestReplayer(ReplayerContract):
    @pytest.fixture(params=[("lsq+", "live"), ("moving_average", "folded"), ("pact", "batch")])
    def case(self, request: pytest.FixtureRequest) -> ReplayCase:
        return case_of(*request.param)


@pytest.fixture(scope="module")
def record() -> Transform:
    model = prepare_qat(mixed(), (X,), quantizer="lsq", skip=["down"], weight=Scheme(4, True, "per_tensor"))
    return transform_of(model)


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda data: data.pop(key)


def setting(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


@pytest.mark.parametrize(("change", "message"), [
    (without("placement"), "lacks 'placement'"),
    (setting(1, "more"), "unknown key 'more'"),
    (setting("nope", "quantizer"), "must be one of"),
    (setting(["lsq"], "quantizer"), "must be one of"),
    (setting(1.5, "decay"), "from 0 to 1"),
    (setting("nope", "target"), "unknown quantization target"),
    (setting(3, "target"), "must be a name"),
    (setting({"name": "nope"}, "observer"), "unknown observer"),
    (setting({}, "weights"), "lacks"),
    (setting([], "weights"), "must be an object"),
    (setting({"x y": {}}, "activations"), "no scale of its own"),
    (setting(9, "weights", "head.weight", "bits"), "from 2 to 8"),
    (setting("a.b", "placement", "activations", 0), "is not a name"),
    (setting("nothing", "placement", "activations", 0), "does not fit the model"),
    (setting(["first"], "placement", "weights", 0, 2), "does not fit the model"),
])  # fmt: skip
def test_a_damaged_record_is_refused_with_its_field(
    record: Transform, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    data = copy.deepcopy(dict(record.data))
    change(data)
    with pytest.raises(CheckpointError, match=message):
        QATReplayer().replay(mixed().to("meta"), Transform(record.kind, record.schema, data), on_meta((X,)))
