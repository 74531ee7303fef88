"""The plugin: what slim-distill registers. Imports nothing heavy."""

from __future__ import annotations
