"""``slim quant``: the command line of slim-quant. One module per command, imported when it is run."""

from __future__ import annotations

from slim_core.cli.app import SlimGroup
from slim_core.registry import Lazy

quant = SlimGroup(
    "quant",
    help="Quantize a model, see where that costs accuracy, and write the file that its runtime takes.",
    no_args_is_help=True,
)
quant.add_lazy("ptq", Lazy("slim_quant.cli.ptq", "ptq_command"), "Quantize a trained model with a few samples.")
quant.add_lazy("qat", Lazy("slim_quant.cli.qat", "qat_command"), "Train with the rounding in the forward pass.")
quant.add_lazy("diff", Lazy("slim_quant.cli.diff", "diff_command"), "Compare float and quantized, layer by layer.")
quant.add_lazy(
    "export", Lazy("slim_quant.cli.export", "export_command"), "Write the int8 file, and check what it gives."
)
quant.add_lazy(
    "sensitivity", Lazy("slim_quant.cli.sensitivity", "sensitivity_command"), "Measure what each layer costs."
)
quant.add_lazy(
    "weights", Lazy("slim_quant.cli.weights", "weights_command"), "Store weights in few bits; compute in float."
)
quant.add_lazy(
    "dynamic", Lazy("slim_quant.cli.weights", "dynamic_command"), "Multiply in int8, with scales from the batch."
)
