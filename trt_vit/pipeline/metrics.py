"""How a run is doing, as a file for monitoring: OpenMetrics text, which Prometheus's textfile collector takes."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from trt_vit.errors import EnvironmentFault, OutputError
from trt_vit.outputs import open_whole, printable
from trt_vit.pipeline.commits import count_rows
from trt_vit.pipeline.plan import count_images
from trt_vit.pipeline.rows import count_failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from prometheus_client.metrics_core import Metric

    from trt_vit.engine.bundle import Bundle
    from trt_vit.pipeline.journal import Journal
    from trt_vit.pipeline.rows import Row
    from trt_vit.pipeline.run import Summary
    from trt_vit.settings import ClassifySettings

INTERVAL = 15.0
"""Seconds between two versions of the file: how often Prometheus asks, as a rule."""


@contextmanager
def open_metrics(bundle: Bundle, settings: ClassifySettings, journal: Journal) -> Iterator[MetricsFile | None]:
    """Keep the file of a run, if it is to have one. A block that ends without an error has done what it had to do.

    Args:
        bundle: What the run is with.
        settings: Its settings.
        journal: Its journal, which has been opened.

    Raises:
        EnvironmentFault: prometheus-client is missing.
        OutputError: The file cannot be written.
    """
    if settings.metrics is None:
        yield None
        return
    manifest = bundle.manifest
    facts = {"bundle": str(bundle.path), "runtime": manifest.runtime, "precision": manifest.precision}
    facts |= {"output": str(settings.output), "part": str(journal.part)}
    left = journal.pending if journal.finished is None else []
    planned = count_images(journal.plan.shards[number] for number in left)
    resumed = count_rows(journal.done)[0] if journal.finished is None else journal.finished.images
    metrics = MetricsFile(settings.metrics, facts, planned, resumed)
    yield metrics
    metrics.finish()


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
        self._facts = {name: printable(value) for name, value in facts.items()}
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

    def ran(self, summary: Summary) -> None:
        """Write the file with all rows and the seconds that each stage was busy; the output is still to be made."""
        self._stages = summary.stages
        with suppress(OutputError):
            self._write()

    def finish(self) -> None:
        """Write the last version: the output is there, or what this process had to do of it is done.

        Raises:
            OutputError: The file cannot be written.
        """
        self._ended = True
        self._write()

    def collect(self) -> Iterator[Metric]:
        """Give the metrics, as prometheus-client asks for them."""
        from prometheus_client.core import (  # noqa: PLC0415 - only a run with metrics needs it
            CounterMetricFamily,
            GaugeMetricFamily,
            InfoMetricFamily,
        )

        yield InfoMetricFamily("trt_vit_run", "What is being run.", value=self._facts)
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
        yield GaugeMetricFamily(
            "trt_vit_ended", "1 when the output or this part of it is done.", value=float(self._ended)
        )

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
