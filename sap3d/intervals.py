"""Intervals of means over objects, by the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13)."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import numpy as np

_RESAMPLES, _SEED = 10_000, 0


class Interval(NamedTuple):
    """A mean and its 95 % interval; ``low`` and ``high`` are None for a single value, which says nothing about others."""

    mean: float
    low: float | None
    high: float | None
    count: int

    def text(self, digits: int, sign: str = "") -> str:
        """``mean [low, high]``; ``sign``: "+" to write it before positive numbers too."""
        head = f"{self.mean:{sign}.{digits}f}"
        return head if self.low is None else f"{head} [{self.low:{sign}.{digits}f}, {self.high:{sign}.{digits}f}]"

    def holds(self, value: float) -> bool:
        """Whether ``value`` cannot be told from the mean: it lies in the interval, or there is none."""
        return self.low is None or self.low <= value <= self.high


def mean_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean of ``values``, drawn again with replacement, one an object; None without values.

    For paired comparisons give the differences. The same values give the same interval: the resampling is seeded.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Interval(float(values[0]), None, None, 1) if len(values) else None
    drawn = np.random.default_rng(_SEED).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), (2.5, 97.5))
    return Interval(float(values.mean()), float(low), float(high), len(values))
