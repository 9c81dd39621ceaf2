"""The run flow, end to end: a bundle and inputs go in, a file of result rows comes out."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from trt_vit.cuda import driver
from trt_vit.engine.bundle import Bundle
from trt_vit.errors import OutOfDeviceMemory, UsageError
from trt_vit.images.preprocess import Preprocessor
from trt_vit.images.source import list_images
from trt_vit.pipeline.classifier import Classifier
from trt_vit.pipeline.progress import report_progress
from trt_vit.pipeline.run import Summary, classify
from trt_vit.pipeline.sinks import open_sink
from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.runtime.registry import open_runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trt_vit.config import ClassifySettings
    from trt_vit.images.preprocessing import Decode
    from trt_vit.runtime.protocol import Runtime


def classify_inputs(bundle_path: Path, settings: ClassifySettings, note: Callable[[str], None]) -> Summary:
    """Classify what ``settings`` name with the engine at ``bundle_path``.

    Everything that can be wrong with the arguments is found before the engine is loaded, and the output is opened
    before the first image is decoded.

    Args:
        bundle_path: A bundle.
        settings: Inputs, output and how to run.
        note: Called with what a person should know.

    Raises:
        TrtVitError: Whatever is wrong with the bundle, the inputs, the output or the runtime.
    """
    bundle = Bundle.open(bundle_path)
    options = RuntimeOptions(batch_size=_batch_size(bundle, settings.batch_size), lanes=settings.lanes)
    paths = list_images(settings.inputs)
    _refuse_overwriting(settings.output, paths)
    k = min(settings.top_k, bundle.manifest.model.classes)
    with open_sink(settings.output, k) as sink:
        classifier = load_classifier(
            bundle,
            options,
            k=k,
            decode_threads=settings.decode_threads,
            decode=settings.decode,
            gpus=settings.gpus,
        )
        _note_surprises(bundle, classifier, options, note)
        with report_progress(len(paths)) as on_rows:
            summary = classify(paths, classifier, sink, on_rows)
    if settings.decode == "fast" and classifier.on_gpu:
        decoded = f"{summary.gpu_decoded} on the GPU, {summary.images - summary.gpu_decoded} on the CPU or not at all"
        note(f"decoded: {decoded}")
    return summary


def load_classifier(
    bundle: Bundle,
    options: RuntimeOptions,
    *,
    k: int,
    decode_threads: int | None = None,
    decode: Decode = "exact",
    gpus: int | None = None,
) -> Classifier:
    """Load a bundle's engine and all that goes around it.

    Args:
        bundle: The bundle.
        options: How the engine is loaded.
        k: Predictions an image, at most the number of classes.
        decode_threads: Threads that decode, or None for one a core.
        decode: Where JPEGs are decoded if the engine is for a GPU.
        gpus: How many GPUs are used at most, or None for all that are like the first.

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


def _refuse_overwriting(output: Path, paths: Sequence[str]) -> None:
    """Refuse an output that is one of the inputs: named or listed ones are taken whatever their suffix."""
    suspects = (path for path in paths if path.endswith(output.suffix))
    if output.exists() and any(os.path.exists(path) and output.samefile(path) for path in suspects):  # noqa: PTH110
        raise UsageError(f"{output} is one of the inputs", hint="choose another file with -o")


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
