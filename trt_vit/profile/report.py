"""What a profile's report shows: latency against throughput, a waterfall of the stages, a histogram of latencies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_vit.profile.layers import group_layers
from trt_vit.reports import render

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trt_vit.pipeline.timeline import Interval
    from trt_vit.profile.sweep import Profile

_BATCHES = 6
_BINS = 40
_LAYERS = 20


@dataclass(frozen=True)
class Waterfall:
    """A few batches of a run.

    Attributes:
        tracks: Who was at work.
        begin: Seconds since the run began.
        seconds: How long it is.
        intervals: What they were at work with.
    """

    tracks: list[str]
    begin: float
    seconds: float
    intervals: list[Interval]


def profile_report(profile: Profile, environment: Mapping[str, Any], changes: Sequence[Any]) -> str:
    """Return a profile as HTML.

    Args:
        profile: The profile.
        environment: The machine and the versions.
        changes: What has changed since an earlier run.

    Raises:
        EnvironmentFault: jinja2 is missing.
    """
    stages = list(dict.fromkeys(interval.stage for interval in profile.intervals))
    return render(
        __package__,
        profile=profile,
        environment=environment,
        changes=changes,
        waterfall=waterfall(profile.intervals),
        colours={stage: f"hsl({360 * number // max(1, len(stages))} 60% 50%)" for number, stage in enumerate(stages)},
        histogram=histogram(profile.spans),
        groups=group_layers(profile.layers),
        slow_layers=sorted(profile.layers, key=lambda layer: -layer.seconds)[:_LAYERS],
    )


def waterfall(intervals: Sequence[Interval]) -> Waterfall:
    """Return a few batches from the middle of a run, where it has settled."""
    batches = sorted({interval.batch for interval in intervals})
    first = max(0, len(batches) // 2 - _BATCHES // 2)
    kept = set(batches[first : first + _BATCHES])
    shown = [interval for interval in intervals if interval.batch in kept]
    begin = min((interval.start for interval in shown), default=0.0)
    end = max((interval.end for interval in shown), default=0.0)
    return Waterfall(sorted({interval.track for interval in shown}), begin, end - begin, shown)


def histogram(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float, int]]:
    """Return from, to and how many batches, of bins of equal width of their latency in milliseconds."""
    if not spans:
        return []
    counts, edges = np.histogram([1000 * (end - start) for start, end in spans], bins=_BINS)
    return [(float(edges[i]), float(edges[i + 1]), int(count)) for i, count in enumerate(counts)]
