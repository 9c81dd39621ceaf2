"""Figures of a measured run: latencies, throughput, and whether they can be believed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOWS = 10
"""Parts of equal length that a run is divided into, to see how much its throughput varies."""
FEWEST_BATCHES = 20
LARGEST_SPREAD = 0.05
"""Standard deviation of the windows' throughput, as a share of their mean, above which a figure is not stable."""


@dataclass(frozen=True)
class Latency:
    """Latencies of batches, in milliseconds.

    Attributes:
        count: How many batches.
        min: The least.
        mean: Their mean.
        p50: The median; ``p90``, ``p95`` and ``p99`` are the other percentiles, each one of the latencies itself.
        max: The largest.
    """

    count: int
    min: float
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class Throughput:
    """Images a second.

    Attributes:
        mean: Over the whole run.
        spread: Standard deviation over its windows, as a share of the mean.
        noise: The standard error of the mean that follows, as a share of it: what differs by less is the same.
        stable: Whether the run was long and even enough for the figure to be believed.
        doubt: Why it is not, or None.
    """

    mean: float
    spread: float
    noise: float
    stable: bool
    doubt: str | None


def latency_of(spans: Sequence[tuple[float, float]]) -> Latency:
    """Summarise batches, given as their start and end in seconds; at least one."""
    times = np.sort(np.array([end - start for start, end in spans])) * 1000

    def percentile(share: float) -> float:
        return float(times[math.ceil(len(times) * share) - 1])

    return Latency(
        count=len(times),
        min=float(times[0]),
        mean=float(times.mean()),
        p50=percentile(0.5),
        p90=percentile(0.9),
        p95=percentile(0.95),
        p99=percentile(0.99),
        max=float(times[-1]),
    )


def throughput_of(spans: Sequence[tuple[float, float]], images: Sequence[int], seconds: float) -> Throughput:
    """Summarise the batches of a run.

    A batch counts for each window by the share of its time that lies in it: counted where it ends, a large one would
    make windows look uneven that are not.

    Args:
        spans: When each of them began and ended, in seconds since the run began.
        images: How many images each had.
        seconds: How long the run was.
    """
    edges = np.linspace(0.0, seconds, WINDOWS + 1)
    begins, ends = (np.array(column) for column in zip(*spans, strict=True))
    inside = np.minimum(ends[:, np.newaxis], edges[1:]) - np.maximum(begins[:, np.newaxis], edges[:-1])
    shares = np.maximum(inside, 0.0) / np.maximum(ends - begins, np.finfo(np.float64).tiny)[:, np.newaxis]
    rates = np.array(images, dtype=np.float64) @ shares / (seconds / WINDOWS)
    mean = float(rates.mean())
    spread = float(rates.std(ddof=1) / mean) if mean else math.inf
    doubt = None
    if len(spans) < FEWEST_BATCHES:
        doubt = f"only {len(spans)} batches: measure for longer"
    elif spread > LARGEST_SPREAD:
        doubt = f"throughput varied by {spread:.0%}: something else ran, or clocks changed"
    return Throughput(mean, spread, spread / math.sqrt(WINDOWS), doubt is None, doubt)
