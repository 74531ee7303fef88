"""Recurrent layers with int8 weights. LSTM also rounds inputs and hidden states, step by step, as onnxruntime does.

onnxruntime has an integer LSTM (``DynamicQuantizeLSTM``) and no integer GRU or plain RNN: these compute in float with
weights that are integers in memory and in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from slim_core.errors import SlimError
from slim_core.export.mode import dequantized_weight, exporting, integer_weight
from slim_quant.dynamic.rounding import integer_product
from slim_quant.weight_only.packed import Layout, PackedWeight, Packing, packed_weight

#: order of the gates in ONNX, as positions in PyTorch's: LSTM i o f c of i f g o, GRU z r h of r z n
ONNX_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}


class DynamicRecurrent(Packing):
    """What all recurrent layers share: padded inputs, layers and directions."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        module: Any = self
        if isinstance(input, PackedSequence):
            raise SlimError(
                f"a quantized {module.mode} takes padded tensors, not packed sequences",
                hint="pad the sequences (torch.nn.utils.rnn.pad_packed_sequence), or skip this layer",
            )
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(0 if module.batch_first else 1)
        x = x.transpose(0, 1) if module.batch_first else x  # (T, B, I)
        states = self._states(x, hx, batched)
        ends: list[list[Tensor]] = [[] for _ in states]
        directions = 2 if module.bidirectional else 1
        for layer in range(module.num_layers):
            own = [state[layer * directions : (layer + 1) * directions] for state in states]
            x, last = self._run(x, layer, own)
            for end, state in zip(ends, last, strict=True):
                end.append(state)
            if module.dropout and layer < module.num_layers - 1:
                x = nn.functional.dropout(x, module.dropout, module.training)
        output = x.transpose(0, 1) if module.batch_first else x
        last = [torch.cat(end) for end in ends]  # (layers * directions, B, H)
        if not batched:
            output, last = output.squeeze(0 if module.batch_first else 1), [state.squeeze(1) for state in last]
        return output, (tuple(last) if len(last) == 2 else last[0])

    def flatten_parameters(self) -> None:
        """Do nothing: there are no float weights to lay out in one piece."""

    def _states(self, x: Tensor, hx: Any, batched: bool) -> list[Tensor]:
        module: Any = self
        count = 2 if module.mode == "LSTM" else 1
        if hx is None:
            size = module.num_layers * (2 if module.bidirectional else 1)
            zeros = torch.zeros(size, x.shape[1], module.hidden_size, dtype=x.dtype, device=x.device)
            return [zeros] * count
        given = list(hx) if isinstance(hx, tuple | list) else [hx]
        return given if batched else [state.unsqueeze(1) for state in given]

    def _run(self, x: Tensor, layer: int, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Run one layer in all directions: ``(T, B, I)`` to ``(T, B, directions * H)`` and the last states."""
        module: Any = self
        suffixes = ["", "_reverse"][: 2 if module.bidirectional else 1]
        weights = [
            [packed_weight(self, f"weight_{kind}_l{layer}{suffix}") for kind in ("ih", "hh")] for suffix in suffixes
        ]
        biases = [
            [getattr(module, f"bias_{kind}_l{layer}{suffix}") if module.bias else None for kind in ("ih", "hh")]
            for suffix in suffixes
        ]
        if exporting() is not None:
            return self._exported(x, weights, biases, states)
        parts, ends = [], []
        for index, (own, bias) in enumerate(zip(weights, biases, strict=True)):
            before = [state[index] for state in states]
            result, last = self._direction(x.flip(0) if index else x, own, bias, before)
            parts.append(result.flip(0) if index else result)
            ends.append(last)
        return torch.cat(parts, -1), [torch.stack(state) for state in zip(*ends, strict=True)]

    def _direction(
        self, x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None], states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        raise NotImplementedError

    def _exported(
        self, x: Tensor, weights: list[list[PackedWeight]], biases: list[list[Tensor | None]], states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        raise NotImplementedError

    def _onnx(
        self, kind: str, x: Tensor, between: Sequence[Tensor], biases: list[list[Tensor | None]], states: list[Tensor],
        after: Sequence[Tensor | None], more: dict[str, Any],
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        """Return the node of a recurrent operator; its gates in ONNX's order."""
        module: Any = self
        order = ONNX_GATES[module.mode]
        direction = "bidirectional" if module.bidirectional else "forward"
        count, steps, batch = len(biases), x.shape[0], x.shape[1]
        bias = None
        if module.bias:
            own = [torch.cat([_gates(part, order) for part in pair if part is not None]) for pair in biases]
            bias = torch.stack(own)
        form, whole = (count, batch, module.hidden_size), (steps, count, batch, module.hidden_size)
        attributes = {"hidden_size": module.hidden_size, "direction": direction, **more}
        made = torch.onnx.ops.symbolic_multi_out(
            kind, (x, *between, bias, None, *states, *after), attributes,
            dtypes=[x.dtype] * (1 + len(states)), shapes=[whole, *[form] * len(states)],
        )  # fmt: skip
        output = made[0].transpose(1, 2).flatten(2)
        return output, list(made[1:])


class DynamicLSTM(DynamicRecurrent):
    """An LSTM that rounds its input per sequence and its hidden state per step, and multiplies in int8."""

    def _direction(
        self, x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None], states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        hidden, cell = states
        inputs, recurrent = weights
        gates_x = integer_product(x, inputs.integers(), inputs.scale)
        for bias in biases:
            gates_x = gates_x if bias is None else gates_x + bias
        integers = recurrent.integers()
        outputs = []
        for step in gates_x:
            gates = step + integer_product(hidden, integers, recurrent.scale)
            enter, forget, new, out = gates.chunk(4, -1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
            hidden = torch.sigmoid(out) * torch.tanh(cell)
            outputs.append(hidden)
        return torch.stack(outputs), [hidden, cell]

    def _exported(
        self, x: Tensor, weights: list[list[PackedWeight]], biases: list[list[Tensor | None]], states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        order = ONNX_GATES["LSTM"]
        integers, scales, zeros = [], [], []
        for part in (0, 1):
            own = [pair[part] for pair in weights]
            columns = own[0].layout.columns
            integers.append(integer_weight([item.packed for item in own], columns=columns, order=order, stack=True))
            scales.append(torch.stack([_gates(item.scale.reshape(-1), order) for item in own]))
            zeros.append(torch.zeros(len(own), own[0].layout.rows, dtype=torch.int8))
        after = [None, scales[0], zeros[0], scales[1], zeros[1]]
        return self._onnx("com.microsoft::DynamicQuantizeLSTM", x, integers, biases, states, after, {})


class FloatRecurrent(DynamicRecurrent):
    """A GRU or plain RNN with int8 weights that computes in float."""

    def _direction(
        self, x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None], states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        module: Any = self
        flat = [item.floats() for item in weights] + [bias for bias in biases if bias is not None]
        run = {"GRU": torch._VF.gru, "RNN_TANH": torch._VF.rnn_tanh, "RNN_RELU": torch._VF.rnn_relu}[module.mode]
        output, last = run(x, states[0].unsqueeze(0), flat, module.bias, 1, 0.0, False, False, False)
        return output, [last[0]]

    def _exported(
        self, x: Tensor, weights: list[list[PackedWeight]], biases: list[list[Tensor | None]], states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        module: Any = self
        kind = "GRU" if module.mode == "GRU" else "RNN"
        between = []
        for part in (0, 1):
            own = [pair[part] for pair in weights]
            between.append(torch.stack([_float_gates(item, ONNX_GATES[module.mode]) for item in own]))
        more: dict[str, Any] = {}
        if kind == "GRU":
            more["linear_before_reset"] = 1
        else:
            more["activations"] = ["Tanh" if module.mode == "RNN_TANH" else "Relu"] * len(biases)
        return self._onnx(kind, x, between, biases, states, (), more)


def _float_gates(item: PackedWeight, order: Sequence[int]) -> Tensor:
    layout: Layout = item.layout
    return dequantized_weight(
        item.packed, item.scale, item.zero_point, bits=layout.bits, columns=layout.columns, block=layout.group,
        order=order,
    )  # fmt: skip


def _gates(values: Tensor, order: Sequence[int]) -> Tensor:
    """Return the gates' parts of ``values`` in another order."""
    if len(order) == 1:
        return values
    parts = values.chunk(len(order))
    return torch.cat([parts[position] for position in order])


def recurrent_obstacle(module: nn.RNNBase) -> str | None:
    """Return why a recurrent layer stays in float, or ``None``."""
    if getattr(module, "proj_size", 0):
        return "it projects its hidden state, which runtimes have not in integers"
    if type(module).forward not in (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward):
        return "its class has a forward of its own"
    return None


def recurrent_mixin(module: nn.RNNBase) -> type:
    """Return what a recurrent layer becomes."""
    return DynamicLSTM if module.mode == "LSTM" else FloatRecurrent
