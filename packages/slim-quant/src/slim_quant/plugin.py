"""The plugin: what slim-quant registers. Imports nothing heavy."""

from __future__ import annotations
