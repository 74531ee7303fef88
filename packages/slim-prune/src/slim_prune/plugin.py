"""The plugin: what slim-prune registers. Imports nothing heavy."""

from __future__ import annotations
