"""Streaming statistics of activations: memory for the statistic alone, whatever the number of tokens.

A reducer has `update(values)` with `values` (n, features) over real positions, and `result()`. One with the
class attribute `wants_context = True` gets `update(values, context)` with the whole site tensor instead. Sums
are kept in float64; NaN and infinite values are counted and kept out of every statistic.
"""

from actinium.core.histogram import Histogram, HistogramResult, Quantile, QuantileResult
from actinium.core.moments import Covariance, CovarianceResult, Mean, Moments, MomentsResult
from actinium.core.reducing import Context, Reducer, feature_rows
from actinium.core.topk import TopEntries, TopK, TopKResult

__all__ = [
    "Context",
    "Covariance",
    "CovarianceResult",
    "Histogram",
    "HistogramResult",
    "Mean",
    "Moments",
    "MomentsResult",
    "Quantile",
    "QuantileResult",
    "Reducer",
    "TopEntries",
    "TopK",
    "TopKResult",
    "feature_rows",
]
