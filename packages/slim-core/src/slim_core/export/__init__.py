"""Exported files: ONNX with int8 weights folded in, checked against PyTorch."""

from slim_core.export.onnx import ExportResult, to_onnx
from slim_core.export.parity import Parity

__all__ = ["ExportResult", "Parity", "to_onnx"]
