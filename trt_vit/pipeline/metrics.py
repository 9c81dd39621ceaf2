"""How a run is doing, as a file for monitoring: OpenMetrics text, which Prometheus's textfile collector takes."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from trt_vit.errors import EnvironmentFault, OutputError
from trt_vit.outputs import open_whole
from trt_vit.pipeline.rows import count_failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from prometheus_client.metrics_core import Metric

    from trt_vit.pipeline.rows import Row
    from trt_vit.pipeline.run import Summary

INTERVAL = 15.0
"""Seconds between two versions of the file: how often Prometheus asks, as a rule."""


class MetricsFile:
    """Writes the file at the start, now and then, and at the end; each version whole.

    Args:
        path: The file.
        facts: What the run is of: labels of ``trt_vit_run_info``.
        planned: Images that this process is to classify, or None where that is not known.
        resumed: Images that an earlier run has done.

    Raises:
        EnvironmentFault: prometheus-client is missing.
        OutputError: The file cannot be written.
    """

    def __init__(self, path: Path, facts: Mapping[str, str], planned: int | None, resumed: int) -> None:
        self._path = path
        self._facts = facts
        self._planned = planned
        self._resumed = resumed
        self._rows = Counter[str]()
        self._stages: Mapping[str, float] = {}
        self._started = time.time()
        self._written = time.monotonic()
        self._ended = False
        self._render = _renderer()
        self._write()

    def add(self, rows: Sequence[Row]) -> None:
        """Count rows, and write the file when that is due. A disk that is full by now is for the results to find."""
        failed = count_failed(rows)
        self._rows["error"] += failed
        self._rows["ok"] += len(rows) - failed
        if time.monotonic() - self._written >= INTERVAL:
            with suppress(OutputError):
                self._write()

    def finish(self, summary: Summary) -> None:
        """Write the last version, with the seconds that each stage was busy.

        Raises:
            OutputError: The file cannot be written.
        """
        self._stages, self._ended = summary.stages, True
        self._write()

    def collect(self) -> Iterator[Metric]:
        """Give the metrics, as prometheus-client asks for them."""
        from prometheus_client.core import (  # noqa: PLC0415 - only a run with metrics needs it
            CounterMetricFamily,
            GaugeMetricFamily,
            InfoMetricFamily,
        )

        yield InfoMetricFamily("trt_vit_run", "What is being run.", value=dict(self._facts))
        images = CounterMetricFamily("trt_vit_images", "Images that have a row.", labels=["status"])
        for status in ("ok", "error"):
            images.add_metric([status], self._rows[status])
        yield images
        yield CounterMetricFamily("trt_vit_images_resumed", "Images an earlier run had done.", value=self._resumed)
        if self._planned is not None:
            yield GaugeMetricFamily("trt_vit_images_planned", "Images of this process.", value=self._planned)
        stages = CounterMetricFamily(
            "trt_vit_stage_seconds", "Seconds a stage was busy, over all threads.", labels=["stage"], unit="seconds"
        )
        for stage, seconds in self._stages.items():
            stages.add_metric([stage], seconds)
        yield stages
        yield GaugeMetricFamily("trt_vit_started_seconds", "When the run began, Unix time.", value=self._started)
        yield GaugeMetricFamily("trt_vit_updated_seconds", "When this was written, Unix time.", value=time.time())
        yield GaugeMetricFamily("trt_vit_ended", "1 when the run has ended by itself.", value=float(self._ended))

    def _write(self) -> None:
        self._written = time.monotonic()
        with open_whole(self._path) as stream:
            stream.write(self._render(self))


def _renderer() -> Callable[[MetricsFile], bytes]:
    try:
        from prometheus_client.openmetrics.exposition import generate_latest  # noqa: PLC0415 - as above
        from prometheus_client.registry import CollectorRegistry  # noqa: PLC0415
    except ImportError as error:
        message = f"--metrics needs prometheus-client: {error}"
        raise EnvironmentFault(message, hint="pip install 'trt-vit[metrics]'") from error

    def render(metrics: MetricsFile) -> bytes:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(metrics)
        text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
        return text

    return render
