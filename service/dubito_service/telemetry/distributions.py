"""Distributions: histograms for Prometheus that take many rows at once.

The histogram of prometheus-client takes one number a call, a microsecond each; an answer may have ten thousand rows.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

_FEW = 8  # numbers that are faster counted one by one


class Distribution:
    """How often numbers fell at or below each of some bounds; safe to use from several threads."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = list(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Count a number; one that is not finite is passed over."""
        if math.isfinite(value):
            place = bisect.bisect_left(self._bounds, value)
            with self._lock:
                self._counts[place] += 1
                self._sum += value

    def observe_all(self, values: NDArray[np.float64] | NDArray[np.int64]) -> None:
        """Count an array of numbers, of any shape."""
        flat = values.ravel()
        if len(flat) <= _FEW:
            known = [value for value in flat.tolist() if math.isfinite(value)]
            places = [bisect.bisect_left(self._bounds, value) for value in known]
            with self._lock:
                for place in places:
                    self._counts[place] += 1
                self._sum += sum(known)
            return
        flat = flat[np.isfinite(flat)]
        counts = np.bincount(np.searchsorted(self._bounds, flat), minlength=len(self._counts)).tolist()
        total = float(flat.sum())
        with self._lock:
            self._counts = [before + more for before, more in zip(self._counts, counts, strict=True)]
            self._sum += total

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """Return how many numbers fell at or below each bound, the last being infinite, and the sum of all."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        names = [*(repr(float(bound)) for bound in self._bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(counts)), strict=True)), total


class Distributions(Collector):
    """Distributions by the values of some labels, under one name."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self._names, self._bounds = name, text, tuple(labels), tuple(bounds)
        self._of: dict[tuple[str, ...], Distribution] = {}
        self._lock = threading.Lock()
        registry.register(self)

    def labels(self, *values: object) -> Distribution:
        """Return the distribution of these labels, a new one where there is none."""
        key = tuple(map(str, values))
        with self._lock:
            if key not in self._of:
                self._of[key] = Distribution(self._bounds)
            return self._of[key]

    def remove(self, *values: object) -> None:
        """Forget the distributions whose labels begin so."""
        start = tuple(map(str, values))
        with self._lock:
            self._of = {key: found for key, found in self._of.items() if key[: len(start)] != start}

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """Return the name and the text alone."""
        yield HistogramMetricFamily(self._name, self._text, labels=self._names)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Return all distributions."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._names)
        with self._lock:
            found = dict(self._of)
        for key, distribution in found.items():
            buckets, total = distribution.read()
            family.add_metric(key, buckets, total)
        yield family
