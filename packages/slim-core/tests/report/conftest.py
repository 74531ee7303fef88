import pytest

from slim_core.report import ChannelRow, Device, LatencyRow, MetricInfo, ModelRow, Note, Report, StepRow


def model(key, top1, params, macs, checkpoint, export=None):
    return ModelRow(key, key, {"top1": top1, "loss": 1 - top1}, params, macs, checkpoint, export, macs // 10)


@pytest.fixture
def report() -> Report:
    """A report whose figures are easy to compute by hand: half of the MACs, a tenth of the bytes."""
    original = model("original", 0.98, 1_000_000, 20_000_000, 4_000_000, 4_100_000)
    pruned = model("step-1", 0.97, 400_000, 10_000_000, 1_600_000)
    compressed = model("compressed", 0.975, 400_000, 10_000_000, 400_000, 410_000)
    history = tuple({"epoch": n, "loss": 1 / n, "val_loss": 2 / n, "top1": 1 - 0.5 / n, "lr": 0.1} for n in (1, 2, 4))
    return Report(
        title="net on data",
        description="Halves a net.",
        created="2026-01-02T03:04:05+00:00",
        seconds=125.0,
        seed=3,
        recipe={
            "version": 1,
            "workload": {"model": "t/net", "data": "t/data"},
            "export": {"format": "onnx"},
            "compare": {"max_drop": 0.01},
        },
        recipe_hash="ab" * 32,
        versions={"slim-core": "0.1", "torch": "2.13"},
        device=Device("A Processor", 2, 1, None, "Linux x86_64", "3.11.0"),
        metrics=(MetricInfo("top1", True, True), MetricInfo("loss", False, False)),
        original=original,
        compressed=compressed,
        steps=(
            StepRow(0, "original", "original", 60.0, None, original, history=history),
            StepRow(
                1,
                "prune.test",
                "prune.test",
                60.0,
                original,
                pruned,
                channels=(ChannelRow("stem", 16, 32), ChannelRow("body.0", 10, 40)),
                details={"importance": "l1", "groups": 2},
                notes=("the head was left alone",),
            ),
            StepRow(
                2,
                "quant.test",
                "to int8",
                5.0,
                pruned,
                compressed,
                layers=({"name": "stem", "sqnr_db": 31.25, "bits": 8},),
            ),
        ),
        latency=(
            LatencyRow("ort", "ort 1.2", 1, 1, 2.0, 0.2, 0.5, 0.1, 4.0, 3.8, 4.2, 30),
            LatencyRow("eager", "torch 2.13", 32, 2, 10.0, 0.5, 20.0, 1.0, 0.5, 0.45, 0.55, 30),
        ),
        notes=(
            Note("bad", "slower on eager", "measurement", "measure on another runtime"),
            Note("warning", "the head was left alone", "step 1, prune.test"),
        ),
        files={"checkpoint": "model.safetensors", "exported model": "model.onnx"},
        reproduce=("pip install slim-core==0.1", "slim run recipe.resolved.yaml -o out"),
        dataset="t/data: 100 samples for training, 20 for validation",
    )
