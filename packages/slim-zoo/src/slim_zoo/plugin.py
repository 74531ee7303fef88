"""The plugin: what slim-zoo registers. Imports nothing heavy."""

from __future__ import annotations
