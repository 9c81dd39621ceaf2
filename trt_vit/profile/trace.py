"""A run as a file that Perfetto and chrome://tracing show: a track for each thread and lane, a slice for each stage.

The format is the Trace Event Format of Chrome's tracing; times are in microseconds.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from trt_vit.outputs import naming, open_whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trt_vit.pipeline.timeline import Interval


def write_trace(output: Path, intervals: Sequence[Interval]) -> None:
    """Write a trace.

    Raises:
        OutputError: The file cannot be written.
    """
    tracks = {name: number for number, name in enumerate(sorted({interval.track for interval in intervals}), start=1)}
    events: list[dict[str, object]] = [
        {"ph": "M", "pid": 1, "tid": number, "name": "thread_name", "args": {"name": name}}
        for name, number in tracks.items()
    ]
    events += [
        {
            "ph": "X",
            "pid": 1,
            "tid": tracks[interval.track],
            "name": interval.stage,
            "cat": "stage",
            "ts": round(interval.start * 1e6, 3),
            "dur": round((interval.end - interval.start) * 1e6, 3),
            "args": {"batch": interval.batch},
        }
        for interval in intervals
    ]
    with open_whole(output) as stream, naming(output):
        stream.write(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())
