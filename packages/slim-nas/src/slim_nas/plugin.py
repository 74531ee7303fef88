"""The plugin: what slim-nas registers. Imports nothing heavy."""

from __future__ import annotations
