"""The run flow, end to end: a bundle and inputs go in, a file of result rows comes out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from trt_vit.cuda import driver
from trt_vit.engine.bundle import Bundle
from trt_vit.errors import OutOfDeviceMemory, UsageError
from trt_vit.images.preprocess import Preprocessor
from trt_vit.parts import Part
from trt_vit.pipeline.assemble import assemble
from trt_vit.pipeline.classifier import Classifier
from trt_vit.pipeline.commits import count_rows
from trt_vit.pipeline.feed import Feed, open_shard_sink
from trt_vit.pipeline.journal import Journal, open_journal
from trt_vit.pipeline.metrics import open_metrics
from trt_vit.pipeline.overwriting import refuse_overwriting
from trt_vit.pipeline.plan import SHARD_SIZE, Plan, count_images
from trt_vit.pipeline.progress import report_progress
from trt_vit.pipeline.run import Summary, classify
from trt_vit.pipeline.sinks import refuse_unknown_format
from trt_vit.pipeline.stages import ON_THREADS, Decoding
from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.runtime.registry import open_runtime
from trt_vit.sources.open import open_shards

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trt_vit.images.preprocessing import Decode
    from trt_vit.pipeline.metrics import MetricsFile
    from trt_vit.pipeline.progress import OnRows
    from trt_vit.pipeline.rows import Row
    from trt_vit.runtime.protocol import Runtime
    from trt_vit.settings import ClassifySettings
    from trt_vit.sources.shard import Shard


class Run(Protocol):
    """Does the shards that are not done, with an engine that is loaded."""

    def __call__(self, *, on_rows: OnRows) -> Summary:
        """Do them, and call ``on_rows`` with the rows of each batch."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a command has done, together with what was done before it.

    Attributes:
        summary: What this process did.
        images: Rows of the output, or of this part of the run where other parts are not done.
        failed: How many of them are errors.
        resumed: How many of them an earlier run had written.
        left: Shards that other parts of the run have still to do; 0 when the output is there.
        earlier: Whether the output was there before.
    """

    summary: Summary
    images: int
    failed: int
    resumed: int
    left: int
    earlier: bool = False


def classify_inputs(bundle_path: Path, settings: ClassifySettings, note: Callable[[str], None]) -> Outcome:
    """Classify what ``settings`` name with the engine at ``bundle_path``.

    Everything that can be wrong with the arguments is found before the engine is loaded, and the journal is opened
    before the first image is decoded. What an earlier run of the same has done is not done again.

    Args:
        bundle_path: A bundle.
        settings: Inputs, output and how to run.
        note: Called with what a person should know.

    Raises:
        TrtVitError: Whatever is wrong with the bundle, the inputs, the output or the runtime.
    """
    if settings.distributed is not None:
        from trt_vit.distributed.ray import check  # noqa: PLC0415 - it builds on this module, and few runs need it

        check(settings)
    bundle = Bundle.open(bundle_path)
    refuse_unknown_format(settings.output)
    options = RuntimeOptions(batch_size=_batch_size(bundle, settings.batch_size), lanes=settings.lanes)
    shards = open_shards(settings.inputs, settings.shard_size)
    refuse_overwriting(settings, shards)
    k = min(settings.top_k, bundle.manifest.model.classes)
    plan = Plan.of(shards, bundle, _what_shards_depend_on(settings, k))
    part = settings.shard or Part()
    with (
        open_journal(settings.output, plan, part, note, resume=settings.resume) as journal,
        open_metrics(bundle, settings, journal) as metrics,
    ):
        summary = Summary(0, 0, 0.0, {})
        if journal.finished is not None:
            images, failed = journal.finished.images, journal.finished.failed
            return Outcome(summary, images, failed, resumed=images, left=0, earlier=True)
        resumed, _ = count_rows(journal.done)
        if resumed:
            note(f"resuming: {resumed} images are done already")
        if journal.pending:
            total = count_images(shards[number] for number in journal.pending)
            run = _load(bundle, settings, shards, journal, options, note=note)
            summary = _run(run, total, metrics)
        finished = journal.finish(assemble)
        if finished is not None:
            return Outcome(summary, finished.images, finished.failed, resumed, left=0)
        images, failed = count_rows(journal.done)
        return Outcome(summary, images, failed, resumed, left=len(plan.shards) - len(journal.commits))


def _what_shards_depend_on(settings: ClassifySettings, k: int) -> dict[str, Any]:
    return {
        "top_k": k,
        "decode": settings.decode,
        "format": settings.output.suffix.lower(),
        "formats": sorted(settings.formats),
        "max_pixels": settings.max_pixels,
        "max_file_bytes": settings.max_file_bytes,
        SHARD_SIZE: settings.shard_size,
    }


def _load(
    bundle: Bundle,
    settings: ClassifySettings,
    shards: Sequence[Shard],
    journal: Journal,
    options: RuntimeOptions,
    *,
    note: Callable[[str], None],
) -> Run:
    """Load the engine, here or on a cluster, and return what does the shards with it that are not done."""
    if settings.distributed is not None:
        from trt_vit.distributed import ray  # noqa: PLC0415 - as above

        return partial(ray.classify_pending, bundle, settings, shards, journal, options)
    k = journal.plan.settings["top_k"]
    classifier = load_classifier(
        bundle,
        options,
        k=k,
        decode_threads=settings.decode_threads,
        decode=settings.decode,
        gpus=settings.gpus,
        decoding=decoding_of(settings),
    )
    _note_surprises(bundle, classifier, options, note)

    def run(*, on_rows: OnRows) -> Summary:
        feed = Feed(shards, journal.pending)
        with open_shard_sink(journal, feed, k) as sink:
            summary = classify(feed.items(), classifier, sink, on_rows)
        if settings.decode == "fast" and classifier.on_gpu:
            decoded = summary.gpu_decoded
            note(f"decoded: {decoded} on the GPU, {summary.images - decoded} on the CPU or not at all")
        return summary

    return run


def _run(run: Run, total: int | None, metrics: MetricsFile | None) -> Summary:
    """Run what was loaded, and tell people and monitoring how it goes."""
    with report_progress(total) as tell:

        def on_rows(rows: Sequence[Row]) -> None:
            tell(rows)
            if metrics is not None:
                metrics.add(rows)

        summary = run(on_rows=on_rows)
    if metrics is not None:
        metrics.ran(summary)
    return summary


def decoding_of(settings: ClassifySettings) -> Decoding:
    """Return how a run's images are decoded on a CPU."""
    return Decoding(settings.limits, settings.decode_workers, settings.decode_memory_mib * 2**20)


def load_classifier(
    bundle: Bundle,
    options: RuntimeOptions,
    *,
    k: int,
    decode_threads: int | None = None,
    decode: Decode = "exact",
    gpus: int | None = None,
    decoding: Decoding = ON_THREADS,
) -> Classifier:
    """Load a bundle's engine and all that goes around it.

    Args:
        bundle: The bundle.
        options: How the engine is loaded.
        k: Predictions an image, at most the number of classes.
        decode_threads: Threads that decode, or None for one a core.
        decode: Where JPEGs are decoded if the engine is for a GPU.
        gpus: How many GPUs are used at most, or None for all that are like the first.
        decoding: How images are decoded on the CPU.

    Raises:
        ArtifactError: A file of the bundle is not what was built, or its parts do not fit together.
        EnvironmentFault: The bundle's runtime is missing or does not work.
    """
    model = bundle.manifest.model
    size = (model.height, model.width)
    return Classifier(
        preprocessor=Preprocessor(bundle.preprocessing(), size),
        labels=bundle.labels(),
        runtimes=_open_runtimes(bundle, options, gpus),
        image_shape=model.image_shape,
        k=k,
        decode_threads=decode_threads or usable_cores(),
        decode=decode,
        decoding=decoding,
    )


def _open_runtimes(bundle: Bundle, options: RuntimeOptions, limit: int | None) -> tuple[Runtime, ...]:
    """Load the engine on the CPU, or on the first GPU and those like it: a plan is for one kind."""
    first = _open_with_room(bundle, options)
    if not first.gpu_lanes:
        return (first,)
    gpus = driver.gpus()
    alike = [number for number, gpu in enumerate(gpus) if gpu == gpus[options.gpu] and number != options.gpu]
    others = alike if limit is None else alike[: limit - 1]
    options = replace(options, batch_size=first.batch_size)
    return (first, *(_open(bundle, replace(options, gpu=number)) for number in others))


def _open_with_room(bundle: Bundle, options: RuntimeOptions) -> Runtime:
    """Load the engine, with smaller batches where the GPU has not enough memory for those that were asked for."""
    while True:
        try:
            return _open(bundle, options)
        except OutOfDeviceMemory:
            smaller = max(bundle.manifest.batch.min, options.batch_size // 2)
            if smaller == options.batch_size:
                raise
            options = replace(options, batch_size=smaller)


def _open(bundle: Bundle, options: RuntimeOptions) -> Runtime:
    return open_runtime(bundle.manifest.runtime, bundle.engine_files(), options)


def _batch_size(bundle: Bundle, asked: int | None) -> int:
    """Return the batch size to run with: what was asked for, within what the engine was built for."""
    profile = bundle.manifest.batch
    if asked is None:
        return profile.opt
    if not profile.min <= asked <= profile.max:
        message = f"--batch-size {asked} is outside what {bundle.path} was built for ({profile.min} to {profile.max})"
        raise UsageError(message, hint=f"use {profile.opt}, or build again with --batch MIN,OPT,MAX")
    return asked


def _note_surprises(
    bundle: Bundle, classifier: Classifier, options: RuntimeOptions, note: Callable[[str], None]
) -> None:
    """Say where a run is not what was asked for."""
    runs, built = classifier.runtimes[0].inference_precision, bundle.manifest.precision
    if runs != built:
        note(f"note: this CPU has no {built} arithmetic, so the {built} engine runs in {runs}")
    if classifier.batch_size < options.batch_size:
        note(f"note: not enough memory for batches of {options.batch_size}, so they are of {classifier.batch_size}")
    if classifier.decode == "fast" and not classifier.on_gpu:
        note("note: --decode fast needs a GPU, so images are decoded exactly, on the CPU")
