"""Corrections: what changes weights around the calibration so that integers lose less. See ``base`` for the contract."""

from slim_quant.ptq.corrections.base import (
    STAGES,
    Correction,
    CorrectionContext,
    Stage,
    make_correction,
    make_corrections,
)

__all__ = ["STAGES", "Correction", "CorrectionContext", "Stage", "make_correction", "make_corrections"]
