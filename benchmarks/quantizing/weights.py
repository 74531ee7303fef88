"""The tables of ``weight_only.py``."""

from __future__ import annotations

from typing import Any

from tabular import table


def weight_only(data: dict[str, Any]) -> str:
    parts = []
    if "encoder" in data:
        parts += [_encoder(data["encoder"]), _files(data["encoder"])]
    if "decoder" in data:
        parts.append(_decoder(data["decoder"]))
    return "\n\n".join(parts)


def _encoder(data: dict[str, Any]) -> str:
    head = ("sentence encoder", "mean cosine", "least cosine", "same neighbour", "checkpoint", "memory")
    rows = [
        (row["name"], f"{row['cosine_mean']:.4f}", f"{row['cosine_min']:.4f}", f"{row['neighbour_agreement']:.1f} %",
         f"{row['checkpoint_share']:.1f} %", f"{row['memory_share']:.1f} %")
        for row in data["rows"]
    ]  # fmt: skip
    note = (
        f"{data['sentences']} sentences; shares are of the float checkpoint ({data['checkpoint_bytes'] / 1e6:.1f} MB)."
    )
    return f"{table(head, rows)}\n\n{note}"


def _files(data: dict[str, Any]) -> str:
    head = ("file", "runtime", "size", "SQNR to the simulation", "largest difference", "products")
    rows = []
    for row in data["rows"]:
        for runtime, found in row.get("files", {}).items():
            if "error" in found:
                rows.append((row["name"], runtime, f"{found['share']:.1f} %", "-", "-", found["error"]))
                continue
            kinds = found.get("operators") or {
                f"{kind} weights": count for kind, count in found.get("products_by_weight_type", {}).items()
            }
            products = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            rows.append(
                (row["name"], runtime, f"{found['share']:.1f} %", _db(found), f"{found['max_diff']:.2g}", products)
            )
            if "own_settings" in found:
                own = found["own_settings"]
                rows.append((row["name"], f"{runtime}, own settings", "", _db(own), f"{own['max_diff']:.2g}", ""))
    return table(head, rows)


def _decoder(data: dict[str, Any]) -> str:
    base = data["float_bits_per_byte"]
    rows = [("float", f"{base:.4f}", "", "100 %")]
    rows += [
        (row["name"], f"{row['bits_per_byte']:.4f}", f"{row['bits_per_byte'] - base:+.4f}",
         f"{row['checkpoint_share']:.1f} %")
        for row in data["rows"]
    ]  # fmt: skip
    return table(("language model", "bits per byte", "change", "checkpoint"), rows)


def _db(found: dict[str, Any]) -> str:
    return "equal" if found["sqnr_db"] >= 200 else f"{found['sqnr_db']:.1f} dB"


RENDERERS = {"weight_only": weight_only}
