"""A comparison for people: a table for a terminal, and one drawing as a file of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim_core.report import format as fmt

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slim_quant.diff.found import Diff, LayerDiff

#: clipped share above which a tensor is worth a look, and share of the range below which it is
MUCH_CLIPPED, LITTLE_USED = 0.001, 0.5


def table(diff: Diff) -> RenderableType:
    """Return one line per layer, the outputs below, and what stands out."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=box.SIMPLE_HEAD)
    rows.add_column("layer", overflow="fold")
    rows.add_column("operator")
    for head in ("bits", "alone dB", "in model dB", "weight dB", "worst channel"):
        rows.add_column(head, justify="right")
    worst = {layer.node for layer in diff.worst(3)}
    for layer in diff.layers:
        style = "yellow" if layer.node in worst else ""
        rows.add_row(*(Text(cell, style=style) for cell in cells(layer)))
    return Group(rows, Text("\n".join(lines(diff))))


def cells(layer: LayerDiff) -> tuple[str, ...]:
    """Return a layer's line of the table."""
    weight = f"w{layer.weight_bits}" if layer.weight_bits else ""
    bits = weight + (f"a{layer.activation_bits}" if layer.activation_bits else "")
    channel = fmt.ABSENT
    if layer.worst_channel is not None:
        channel = f"{layer.worst_channel}: {_decibels(layer.worst_channel_db)}"
    figures = (layer.alone_db, layer.sqnr_db, layer.weight_db)
    return (layer.name + (" (rescaled)" if layer.rescaled else ""), layer.op, bits or fmt.ABSENT,
            *(_decibels(figure) for figure in figures), channel)  # fmt: skip


def lines(diff: Diff) -> list[str]:
    """Return what stands out: outputs, the worst layers, tensors that are clipped or hardly use their range."""
    found = [
        f"{output.name}: SQNR {_decibels(output.sqnr_db)} dB, largest difference {output.max_diff:.3g}, "
        f"largest entry at the same place in {output.agreement:.2f} % of rows"
        for output in diff.outputs
    ]
    for layer in diff.worst(3):
        found.append(f"worst alone: {layer.name} ({layer.op}), {_decibels(layer.alone_db)} dB")
    clipped = sorted((item for item in diff.tensors if item.clipped > MUCH_CLIPPED), key=lambda item: -item.clipped)
    found += [f"clipped: {item.kind} {item.name}, {item.clipped:.2%} of its values" for item in clipped[:3]]
    unused = sorted(
        (item for item in diff.tensors if item.kind == "activation" and item.used < LITTLE_USED),
        key=lambda item: item.used,
    )
    found += [f"unused range: activation {item.name} uses {item.used:.0%} of its integers" for item in unused[:3]]
    return [*found, *diff.notes, f"compared on {diff.samples} samples"]


def drawing(diff: Diff, *, histograms: int | None = None) -> str:
    """Return bars of SQNRs and histograms with thresholds as one SVG document.

    Args:
        diff: the comparison.
        histograms: draw at most so many; ``None``: all.
    """
    from slim_core.report.plots import Histogram, draw, read_plots
    from slim_core.report.svg_file import standalone

    plots = read_plots(diff.plots())
    bars = [plot for plot in plots if not isinstance(plot, Histogram)]
    counted = [plot for plot in plots if isinstance(plot, Histogram)][:histograms]
    return standalone(
        [draw(plot) for plot in (*bars, *counted)], title="Float against quantized, layer by layer", lines=lines(diff)
    )


def _decibels(figure: float | None) -> str:
    return fmt.ABSENT if figure is None else "equal" if figure >= 200 else f"{figure:.1f}".replace("-", fmt.MINUS)
