"""A bundle measured for each batch size and number of lanes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trt_vit.engine.bundle import Bundle
from trt_vit.errors import UsageError
from trt_vit.images.source import list_images
from trt_vit.pipeline.classify import load_classifier
from trt_vit.pipeline.timeline import overlap
from trt_vit.profile.clocks import ClockSampler
from trt_vit.profile.diagnose import Workload, diagnose
from trt_vit.profile.latency import latency_of, throughput_of
from trt_vit.profile.measure import measure_engine, measure_pipeline, random_pixels
from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.runtime.registry import open_runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trt_vit.engine.manifest import Precision
    from trt_vit.pipeline.classifier import Classifier
    from trt_vit.pipeline.timeline import Interval, Overlap
    from trt_vit.profile.clocks import GpuClocks
    from trt_vit.profile.diagnose import Diagnosis
    from trt_vit.profile.latency import Latency, Throughput
    from trt_vit.profile.measure import Measurement
    from trt_vit.runtime.protocol import LayerTime

_K = 5
_LAYERS_SECONDS = 2.0
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
        gpus: What each GPU did meanwhile.
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
    gpus: list[GpuClocks]


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
        layers: How long each layer takes, in the fastest of them; alone, so their sum is more than a batch takes.
        notes: What could not be measured, and why.
        stopped: Whether a person ended it before all points were measured.
    """

    bundle: str
    runtime: str
    precision: Precision
    runs_in: Precision
    end_to_end: bool
    points: list[Point]
    intervals: list[Interval]
    spans: list[tuple[float, float]]
    layers: list[LayerTime]
    notes: list[str]
    stopped: bool

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
        duration: Seconds for each of both together, or a few times as many until the figure is stable.
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
        KeyboardInterrupt: Before anything was measured; later it only ends the sweep.
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
    found = _Found(bundle.manifest.precision)
    stopped = False
    for number, (size, count) in enumerate(wanted):
        tell(number, len(wanted))
        try:
            stopped = found.measure(bundle, RuntimeOptions(batch_size=size, lanes=count), paths, sweep.duration)
        except KeyboardInterrupt:
            if not found.points:
                raise
            stopped = True
        if stopped:
            break
    layers = [] if stopped else found.layer_times(bundle, min(sweep.duration, _LAYERS_SECONDS))
    tell(len(wanted), len(wanted))
    return Profile(
        bundle=str(place),
        runtime=bundle.manifest.runtime,
        precision=bundle.manifest.precision,
        runs_in=found.runs_in,
        end_to_end=paths is not None,
        points=found.points,
        intervals=[] if found.fastest is None else found.fastest.intervals,
        spans=[] if found.fastest is None else found.fastest.spans,
        layers=layers,
        notes=list(dict.fromkeys(found.notes)),
        stopped=stopped,
    )


@dataclass
class _Found:
    """What has been measured so far."""

    runs_in: Precision
    points: list[Point] = field(default_factory=list)
    fastest: Measurement | None = None
    options: RuntimeOptions | None = None
    notes: list[str] = field(default_factory=list)

    def measure(self, bundle: Bundle, options: RuntimeOptions, paths: Sequence[str] | None, duration: float) -> bool:
        """Measure one point; return whether a person ended it early."""
        classifier = load_classifier(bundle, options, k=min(_K, bundle.manifest.model.classes))
        _reset_peak()
        with ClockSampler(range(len(classifier.runtimes) if classifier.on_gpu else 0)) as sampler:
            if paths is None:
                found = measure_engine(classifier, duration)
            else:
                found = measure_pipeline(classifier, paths, duration)
        if sampler.lacks is not None:
            self.notes.append(f"no clocks and power of the GPU: {sampler.lacks}")
        clocks = sampler.found(found.began, found.seconds)
        self.points.append(_point(classifier, found, clocks, end_to_end=paths is not None))
        self.runs_in = classifier.runtimes[0].inference_precision
        if self.points[-1].throughput.mean == max(point.throughput.mean for point in self.points):
            self.fastest, self.options = found, options
        return found.stopped

    def layer_times(self, bundle: Bundle, seconds: float) -> list[LayerTime]:
        """Time the layers of the fastest point, in an engine that is loaded again: the others are gone by now."""
        if self.options is None:
            return []
        runtime = open_runtime(bundle.manifest.runtime, bundle.engine_files(), self.options)
        return runtime.layer_times(random_pixels(runtime.batch_size, bundle.manifest.model.image_shape), seconds)


def _point(classifier: Classifier, found: Measurement, clocks: list[GpuClocks], *, end_to_end: bool) -> Point:
    lanes = sum(len(runtime.lanes) for runtime in classifier.runtimes)
    workload = Workload(lanes, classifier.decode_threads if end_to_end else 0, usable_cores(), classifier.on_gpu)
    precision = classifier.runtimes[0].inference_precision
    return Point(
        batch_size=classifier.batch_size,
        lanes=lanes,
        images=sum(found.images),
        seconds=found.seconds,
        throughput=_doubted(throughput_of(found.spans, found.images, found.seconds), clocks),
        latency=latency_of(found.spans),
        diagnosis=diagnose(found.intervals, found.seconds, found.cpu_seconds, workload, precision),
        overlap=overlap(found.intervals),
        peak_memory_bytes=_peak(),
        failed=found.failed,
        gpus=clocks,
    )


def _doubted(throughput: Throughput, clocks: Sequence[GpuClocks]) -> Throughput:
    """Return a throughput with what the GPUs' clocks make doubtful of it."""
    doubts = [clock.doubt for clock in clocks if clock.doubt is not None]
    if not doubts:
        return throughput
    return replace(throughput, stable=False, doubt="; ".join([*filter(None, [throughput.doubt]), *doubts]))


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
