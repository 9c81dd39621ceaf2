"""The run flow, end to end: a bundle and inputs go in, a file of result rows comes out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trt_vit.engine.bundle import Bundle
from trt_vit.errors import UsageError
from trt_vit.images.preprocess import Preprocessor
from trt_vit.images.source import list_images
from trt_vit.pipeline.progress import report_progress
from trt_vit.pipeline.run import Classifier, Summary, classify
from trt_vit.pipeline.sinks import open_sink
from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.runtime.registry import open_runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trt_vit.config import ClassifySettings


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
        classifier = load_classifier(bundle, options, k=k, decode_threads=settings.decode_threads)
        _note_precision(bundle, classifier, note)
        with report_progress(len(paths)) as on_rows:
            return classify(paths, classifier, sink, on_rows)


def load_classifier(bundle: Bundle, options: RuntimeOptions, *, k: int, decode_threads: int | None) -> Classifier:
    """Load a bundle's engine and all that goes around it.

    Args:
        bundle: The bundle.
        options: How the engine is loaded.
        k: Predictions an image, at most the number of classes.
        decode_threads: Threads that decode, or None for one a core.

    Raises:
        ArtifactError: A file of the bundle is not what was built, or its parts do not fit together.
        EnvironmentFault: The bundle's runtime is missing or does not work.
    """
    model = bundle.manifest.model
    size = (model.height, model.width)
    return Classifier(
        preprocessor=Preprocessor(bundle.preprocessing(), size),
        labels=bundle.labels(),
        runtime=open_runtime(bundle.manifest.runtime, bundle.engine_files(), options),
        image_shape=(3, *size),
        k=k,
        decode_threads=decode_threads or usable_cores(),
    )


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


def _note_precision(bundle: Bundle, classifier: Classifier, note: Callable[[str], None]) -> None:
    runs, built = classifier.runtime.inference_precision, bundle.manifest.precision
    if runs != built:
        note(f"note: this CPU has no {built} arithmetic, so the {built} engine runs in {runs}")
