"""Honest timing: interleaved rounds, outputs checked first, and the machine recorded beside every figure."""

from __future__ import annotations

from slim_core.measure.backend import Artifact, Backend, Session

__all__ = ["Artifact", "Backend", "Session"]
