"""A bundle measured for each batch size and number of lanes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trt_vit.engine.bundle import Bundle
from trt_vit.errors import UsageError
from trt_vit.images.source import list_images
from trt_vit.pipeline.classify import load_classifier
from trt_vit.pipeline.timeline import overlap
from trt_vit.profile.diagnose import Workload, diagnose
from trt_vit.profile.latency import latency_of, throughput_of
from trt_vit.profile.measure import measure_engine, measure_pipeline
from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.protocol import RuntimeOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trt_vit.engine.manifest import Precision
    from trt_vit.pipeline.classifier import Classifier
    from trt_vit.pipeline.timeline import Interval, Overlap
    from trt_vit.profile.diagnose import Diagnosis
    from trt_vit.profile.latency import Latency, Throughput
    from trt_vit.profile.measure import Measurement

_K = 5
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Point:
    """One batch size and number of lanes.

    Attributes:
        batch_size: Images a batch.
        lanes: Batches in flight.
        images: Images that were run.
        seconds: How long it was measured.
        throughput: Images a second.
        latency: Of a batch: of the engine alone, or from reading its first image to writing its rows.
        diagnosis: What limits it.
        overlap: How its stages lie side by side.
        peak_memory_bytes: The process's largest resident memory while it ran, or None where Linux does not tell.
        failed: Images that could not be used.
    """

    batch_size: int
    lanes: int
    images: int
    seconds: float
    throughput: Throughput
    latency: Latency
    diagnosis: Diagnosis
    overlap: Overlap
    peak_memory_bytes: int | None
    failed: int


@dataclass(frozen=True)
class Profile:
    """A bundle's points.

    Attributes:
        bundle: The bundle.
        runtime: Its runtime.
        precision: What it was built for.
        runs_in: What its arithmetic runs in on this machine.
        end_to_end: Whether images were read, decoded and written, or the engine was run alone.
        points: In the order they were measured.
        intervals: What was at work when, in the fastest of them.
        spans: When each of its batches began and ended, in seconds.
    """

    bundle: str
    runtime: str
    precision: Precision
    runs_in: Precision
    end_to_end: bool
    points: list[Point]
    intervals: list[Interval]
    spans: list[tuple[float, float]]

    @property
    def best(self) -> Point:
        """The point with the highest throughput."""
        return max(self.points, key=lambda point: point.throughput.mean)


@dataclass(frozen=True)
class Sweep:
    """What is measured.

    Attributes:
        batch_sizes: Batch sizes; the bundle's usual one where there are none.
        lanes: Numbers of lanes; the runtime's own choice where there are none.
        duration: Seconds for each of both together.
    """

    batch_sizes: Sequence[int]
    lanes: Sequence[int]
    duration: float


def profile_bundle(place: Path, images: str | None, sweep: Sweep, tell: Callable[[int, int], None]) -> Profile:
    """Measure a bundle.

    Args:
        place: The bundle.
        images: Images for the whole pipeline, as ``list_images`` takes them, or None for the engine alone.
        sweep: What is measured.
        tell: Called with how many points are done, and how many there are.

    Raises:
        UsageError: The engine was not built for a batch size, or no image is there.
        ArtifactError: A file of the bundle is not what was built.
        EnvironmentFault: The runtime is missing or fails.
    """
    bundle = Bundle.open(place)
    allowed = bundle.manifest.batch
    sizes = list(sweep.batch_sizes) or [allowed.opt]
    for size in sizes:
        if not allowed.min <= size <= allowed.max:
            message = f"--batch-sizes {size} is outside what {place} was built for ({allowed.min} to {allowed.max})"
            raise UsageError(message, hint="leave it out, or build again with --batch MIN,OPT,MAX")
    paths = None if images is None else list_images([images])
    counts: Sequence[int | None] = list(sweep.lanes) or [None]
    wanted = [(size, count) for size in sizes for count in counts]
    points: list[Point] = []
    fastest: Measurement | None = None
    runs_in = bundle.manifest.precision
    for number, (size, count) in enumerate(wanted):
        tell(number, len(wanted))
        options = RuntimeOptions(batch_size=size, lanes=count)
        classifier = load_classifier(bundle, options, k=min(_K, bundle.manifest.model.classes))
        _reset_peak()
        if paths is None:
            found = measure_engine(classifier, sweep.duration)
        else:
            found = measure_pipeline(classifier, paths, sweep.duration)
        points.append(_point(classifier, found, end_to_end=paths is not None))
        runs_in = classifier.runtimes[0].inference_precision
        if fastest is None or points[-1].throughput.mean == max(point.throughput.mean for point in points):
            fastest = found
        del classifier  # its memory, before the next one takes its own
    tell(len(wanted), len(wanted))
    return Profile(
        bundle=str(place),
        runtime=bundle.manifest.runtime,
        precision=bundle.manifest.precision,
        runs_in=runs_in,
        end_to_end=paths is not None,
        points=points,
        intervals=[] if fastest is None else fastest.intervals,
        spans=[] if fastest is None else fastest.spans,
    )


def _point(classifier: Classifier, found: Measurement, *, end_to_end: bool) -> Point:
    lanes = sum(len(runtime.lanes) for runtime in classifier.runtimes)
    workload = Workload(lanes, classifier.decode_threads if end_to_end else 0, usable_cores(), classifier.on_gpu)
    precision = classifier.runtimes[0].inference_precision
    return Point(
        batch_size=classifier.batch_size,
        lanes=lanes,
        images=sum(found.images),
        seconds=found.seconds,
        throughput=throughput_of(found.spans, found.images, found.seconds),
        latency=latency_of(found.spans),
        diagnosis=diagnose(found.intervals, found.seconds, found.cpu_seconds, workload, precision),
        overlap=overlap(found.intervals),
        peak_memory_bytes=_peak(),
        failed=found.failed,
    )


def _reset_peak() -> None:
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return  # then the peak is that of the whole process


def _peak() -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
