"""Observers watch a tensor over any number of batches, in bounded memory, and say what range to quantize."""

from slim_quant.observers.base import OBSERVERS, Observer, check_observer, make_observer
from slim_quant.observers.histogram import Histogram, MSEObserver, PercentileObserver
from slim_quant.observers.minmax import AbsMaxObserver, MinMaxObserver, MovingAverageObserver
from slim_quant.observers.weights import weight_range

__all__ = [
    "OBSERVERS",
    "AbsMaxObserver",
    "Histogram",
    "MSEObserver",
    "MinMaxObserver",
    "MovingAverageObserver",
    "Observer",
    "PercentileObserver",
    "check_observer",
    "make_observer",
    "weight_range",
]
