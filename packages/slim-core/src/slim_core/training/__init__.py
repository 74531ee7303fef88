"""The default training loop: ``fit`` and ``evaluate``, with callbacks that techniques hook into.

Nobody needs it: a user's own loop works with every technique, since each is also plain functions on an
``nn.Module``.
"""

from __future__ import annotations

from slim_core.training.callbacks import Callback, FitState
from slim_core.training.config import FitConfig
from slim_core.training.ema import Ema
from slim_core.training.evaluate import evaluate, set_mode
from slim_core.training.loop import FitResult, fit
from slim_core.training.mixup import mixup
from slim_core.training.optim import build_optimizer, parameter_groups
from slim_core.training.schedule import lr_scale

__all__ = [
    "Callback",
    "Ema",
    "FitConfig",
    "FitResult",
    "FitState",
    "build_optimizer",
    "evaluate",
    "fit",
    "lr_scale",
    "mixup",
    "parameter_groups",
    "set_mode",
]
