"""slim-latency: inference runtimes as backends of ``slim_core.measure``, and the ``slim latency`` commands.

The backend ``onnxruntime`` is in ``onnx_runtime.py``. What measures (rounds, statistics, agreement) is the core's.
"""

from __future__ import annotations
