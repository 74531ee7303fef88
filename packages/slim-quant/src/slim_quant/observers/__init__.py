"""Observers watch a tensor over any number of batches, in bounded memory, and say what range to quantize."""

from slim_quant.observers.base import OBSERVERS, Observer, check_observer, make_observer
from slim_quant.observers.histogram import Histogram
from slim_quant.observers.minmax import AbsMaxObserver, AverageAbsMaxObserver, MinMaxObserver, MovingAverageObserver
from slim_quant.observers.searching import EMDObserver, EntropyObserver, MSEObserver, PercentileObserver
from slim_quant.observers.weights import WEIGHT_OBSERVERS, weight_range

__all__ = [
    "OBSERVERS",
    "WEIGHT_OBSERVERS",
    "AbsMaxObserver",
    "AverageAbsMaxObserver",
    "EMDObserver",
    "EntropyObserver",
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
