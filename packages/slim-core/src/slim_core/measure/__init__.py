"""Honest timing: interleaved rounds, outputs checked first, and the machine recorded beside every figure.

:func:`measure` times sessions; a :class:`Backend` prepares a session from an :class:`Artifact`. The backends ``eager``
and ``compile`` live here, others come from plugins.
"""

from __future__ import annotations

from slim_core.measure.agree import Agreement
from slim_core.measure.backend import Artifact, Backend, Session
from slim_core.measure.device import DeviceInfo, this_device
from slim_core.measure.measurement import Measurement, Timing, batched, measure

__all__ = [
    "Agreement",
    "Artifact",
    "Backend",
    "DeviceInfo",
    "Measurement",
    "Session",
    "Timing",
    "batched",
    "measure",
    "this_device",
]
