"""Jobs that run in a process of their own: one quantization, or training steps on demand. No benchmark itself.

Called by the ``quant_*`` and ``qat_step`` scripts with one JSON argument; the last line printed is a JSON result. The
peers need an environment of their own where their requirements do not go with the packages'::

    python -m venv out/peers
    out/peers/bin/pip install -c constraints.txt torch==2.13.0 nncf==3.4.0 torchao==0.18.0 \\
        onnx onnxruntime==1.32.0 openvino==2026.4.1 -e packages/slim-core -e packages/slim-zoo
    export SLIM_PEERS_PYTHON=out/peers/bin/python

Every side gets the same float model and the same pictures. Its time runs from the call of its quantization until that
returns; importing libraries, reading the model, exporting it before and writing the result are not in it. CPU seconds
are told too, because they say more on a machine that does other things as well.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    task = json.loads(sys.argv[1])
    result = {"quantize": quantize, "steps": steps}[task["do"]](task)
    if result is not None:
        print(json.dumps(result))


def peak_mb() -> float:
    """Return the largest resident size of this process; ``ru_maxrss`` would count what its parent was."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def built(spec: dict[str, Any]) -> Any:
    """Return the PyTorch model of a job: a zoo model, with the weights of a checkpoint or random ones."""
    import torch

    if spec.get("checkpoint"):
        from slim_core import checkpoint
        from slim_core.plugins import load_plugins

        return checkpoint.load(spec["checkpoint"], registry=load_plugins().registry).model.eval()
    from slim_zoo import create_model

    torch.manual_seed(0)
    return create_model(spec["zoo"], **spec.get("kwargs", {})).eval()


# --- quantization -------------------------------------------------------------------------------------------------


def quantize(task: dict[str, Any]) -> dict[str, Any]:
    """Quantize with one side; say how long it took and the largest memory of this process."""
    pictures = np.load(task["data"], mmap_mode="r")
    prepare, packages = SIDES[task["side"]]
    work, write = prepare(task, pictures)
    before, began, worked = peak_mb(), time.perf_counter(), time.process_time()
    found = work()
    seconds, worked = time.perf_counter() - began, time.process_time() - worked
    peak, began = peak_mb(), time.perf_counter()
    if task.get("output"):
        Path(task["output"]).parent.mkdir(parents=True, exist_ok=True)
        write(found, task["output"])
    return {
        "seconds": seconds,
        "cpu_seconds": worked,
        "write_seconds": time.perf_counter() - began,
        "peak_mb": peak,
        "before_mb": before,
        "versions": {name: metadata.version(name) for name in packages},
    }


Work = tuple[Callable[[], Any], Callable[[Any, str], None]]


def _slim(task: dict[str, Any], pictures: Any) -> Work:
    import torch
    import torch._dynamo  # torch.export imports it at its first call

    import slim_quant.ptq.static  # noqa: F401 - slim_quant imports it at its first use
    from quantizing.common import ours
    from slim_core.export import to_onnx

    model = built(task["model"])
    size = task.get("batch", 32)
    parts = [torch.from_numpy(np.array(pictures[i : i + size])) for i in range(0, len(pictures), size)]
    options = dict(task.get("options", {}))

    def work() -> Any:
        return ours(model, parts, samples=len(pictures), **options)

    return work, lambda found, output: void(to_onnx(found.model, (parts[0][:1],), output, check=False))


def _onnxruntime(task: dict[str, Any], pictures: Any) -> Work:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    options = task.get("options", {})
    reader = _reader(_input_name(task["model"]["float"]), pictures, task.get("batch", 1))

    def work() -> str:
        quantize_static(
            task["model"]["float"], task["output"], reader, quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=getattr(CalibrationMethod, options.get("method", "MinMax")),
            extra_options=options.get("extra", {}),
        )  # fmt: skip
        return str(task["output"])

    return work, lambda found, output: None


def _reader(name: str, pictures: Any, size: int) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = self._make()

        def _make(self) -> Iterator[Any]:
            return ({name: np.array(pictures[i : i + size])} for i in range(0, len(pictures), size))

        def get_next(self) -> Any:
            return next(self.rows, None)

        def rewind(self) -> None:
            self.rows = self._make()

    return Reader()


def _input_name(path: str) -> str:
    import onnx

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


def _nncf_options(task: dict[str, Any], pictures: Any) -> dict[str, Any]:
    import nncf

    options = task.get("options", {})
    found = {
        "subset_size": -(-len(pictures) // task.get("batch", 1)),
        "fast_bias_correction": options.get("fast_bias_correction", True),
    }
    if options.get("per_tensor_activations"):
        plain = nncf.quantization.advanced_parameters.QuantizationParameters(per_channel=False)
        found["advanced_parameters"] = nncf.AdvancedQuantizationParameters(activations_quantization_params=plain)
    if "preset" in options:
        found["preset"] = getattr(nncf.QuantizationPreset, options["preset"].upper())
    return found


def _pieces(task: dict[str, Any], pictures: Any) -> list[Any]:
    size = task.get("batch", 1)
    return [np.array(pictures[i : i + size]) for i in range(0, len(pictures), size)]


def _nncf_onnx(task: dict[str, Any], pictures: Any) -> Work:
    import nncf
    import onnx

    model = onnx.load(task["model"]["float"])
    name = model.graph.input[0].name
    data = nncf.Dataset(_pieces(task, pictures), lambda item: {name: item})
    options = _nncf_options(task, pictures)
    return lambda: nncf.quantize(model, data, **options), lambda found, output: onnx.save(found, output)


def _nncf_openvino(task: dict[str, Any], pictures: Any) -> Work:
    import nncf
    import openvino

    model = openvino.Core().read_model(task["model"]["float"])
    data = nncf.Dataset(_pieces(task, pictures))
    options = _nncf_options(task, pictures)

    def write(found: Any, output: str) -> None:
        openvino.save_model(found, output, compress_to_fp16=False)

    return lambda: nncf.quantize(model, data, **options), write


def _nncf_extension() -> None:
    """Let NNCF build and load its C++ extension for PyTorch, which it keeps, before anything is timed."""
    import nncf
    import torch

    nncf.quantize(torch.nn.Conv2d(3, 8, 3).eval(), nncf.Dataset([torch.zeros(1, 3, 8, 8)]), subset_size=1)


def _nncf_torch(task: dict[str, Any], pictures: Any) -> Work:
    import nncf
    import torch

    _nncf_extension()
    model = built(task["model"])
    data = nncf.Dataset([torch.from_numpy(item) for item in _pieces(task, pictures)])
    options = _nncf_options(task, pictures)
    example = torch.from_numpy(np.array(pictures[:1]))

    def write(found: Any, output: str) -> None:
        stripped = nncf.strip(found, example_input=example)
        torch.onnx.export(stripped, (example,), output, dynamo=False)

    return lambda: nncf.quantize(model, data, **options), write


def void(_: Any) -> None:
    return None


SIDES: dict[str, tuple[Callable[[dict[str, Any], Any], Work], tuple[str, ...]]] = {
    "slim": (_slim, ("slim-core", "slim-quant", "torch")),
    "onnxruntime": (_onnxruntime, ("onnxruntime",)),
    "nncf-onnx": (_nncf_onnx, ("nncf", "onnxruntime")),
    "nncf-openvino": (_nncf_openvino, ("nncf", "openvino")),
    "nncf-torch": (_nncf_torch, ("nncf", "torch")),
}


# --- training steps -----------------------------------------------------------------------------------------------


def steps(task: dict[str, Any]) -> None:
    """Serve training steps: every line read asks for so many, the answer is their seconds, one by one."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(task["threads"])
    model = built(task["model"])
    torch.manual_seed(0)
    images, labels = torch.randn(task["images"]), torch.randint(0, task["model"]["kwargs"]["num_classes"], (1,))
    labels = labels.expand(len(images)).contiguous()
    prepare, packages = STEPS[task["side"]]
    model = prepare(model, images, task.get("options", {}))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    if task.get("channels_last"):
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)

    def step() -> float:
        began = time.perf_counter()
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return time.perf_counter() - began

    step()
    print(json.dumps({"ready": {name: metadata.version(name) for name in packages}, "parameters": sum(
        p.numel() for p in model.parameters())}), flush=True)  # fmt: skip
    for line in sys.stdin:
        print(json.dumps({"seconds": [step() for _ in range(int(line))], "peak_mb": peak_mb()}), flush=True)


def _float(model: Any, images: Any, options: dict[str, Any]) -> Any:
    return model.train()


def _slim_qat(model: Any, images: Any, options: dict[str, Any]) -> Any:
    from slim_quant.qat import prepare_qat

    return prepare_qat(model, (images[:2],), **options).train()


def _torchao(model: Any, images: Any, options: dict[str, Any]) -> Any:
    import torch
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    exported = torch.export.export(model.train(), (images,), strict=True).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    return move_exported_model_to_train(prepare_qat_pt2e(exported, quantizer))


def _nncf_qat(model: Any, images: Any, options: dict[str, Any]) -> Any:
    import nncf

    _nncf_extension()
    data = nncf.Dataset([images[:8]])
    return nncf.quantize(model, data, subset_size=1, fast_bias_correction=True).train()


STEPS: dict[str, tuple[Callable[[Any, Any, dict[str, Any]], Any], tuple[str, ...]]] = {
    "float": (_float, ("torch",)),
    "slim": (_slim_qat, ("torch", "slim-quant")),
    "torchao": (_torchao, ("torch", "torchao")),
    "nncf": (_nncf_qat, ("torch", "nncf")),
}


if __name__ == "__main__":
    main()
