"""The plugin: what slim-latency registers. Imports nothing heavy."""

from __future__ import annotations
