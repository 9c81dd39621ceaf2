"""Several engines over the same images, each image read and decoded once."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.errors import ImageError
from trt_vit.images.decode import decode, read_image
from trt_vit.images.preprocess import Preprocessor
from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.runtime.registry import open_runtime

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from trt_vit.engine.bundle import Bundle
    from trt_vit.runtime.protocol import Runtime

_AHEAD = 2
"""Batches that are being decoded while one is inferred."""


@dataclass(frozen=True)
class LoadedEngine:
    """An engine that is ready to run, and what it wants of images.

    Attributes:
        runtime: The engine.
        preprocessor: The checkpoint's preprocessing.
        image_shape: Channels, height and width of one preprocessed image.
    """

    runtime: Runtime
    preprocessor: Preprocessor
    image_shape: tuple[int, int, int]


@dataclass(frozen=True)
class BatchLogits:
    """What became of a few images.

    Attributes:
        paths: The images.
        errors: Why an image could not be used, or None, one for each.
        logits: What each engine gives for those that could: float32 [images, classes].
    """

    paths: Sequence[str]
    errors: Sequence[str | None]
    logits: tuple[NDArray[np.float32], ...]


def load_engines(bundles: Sequence[Bundle]) -> list[LoadedEngine]:
    """Load the engines of some bundles, each with one lane and the batch it was tuned for.

    Raises:
        ArtifactError: A file of a bundle is not what was built.
        EnvironmentFault: A bundle's runtime is missing or does not work.
    """
    return [_load(bundle) for bundle in bundles]


def _load(bundle: Bundle) -> LoadedEngine:
    manifest = bundle.manifest
    size = (manifest.model.height, manifest.model.width)
    options = RuntimeOptions(batch_size=manifest.batch.opt, lanes=1)
    runtime = open_runtime(manifest.runtime, bundle.engine_files(), options)
    return LoadedEngine(runtime, Preprocessor(bundle.preprocessing(), size), (3, *size))


def run_engines(engines: Sequence[LoadedEngine], paths: Sequence[str]) -> Iterator[BatchLogits]:
    """Run every engine on every image, a batch at a time, in order.

    Args:
        engines: The engines.
        paths: The images.

    Raises:
        EnvironmentFault: A runtime failed.
    """
    size = min(engine.runtime.batch_size for engine in engines)
    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode") as decoders:
        waiting: deque[tuple[Sequence[str], list[NDArray[np.float32]], Iterator[str | None]]] = deque()
        for first in range(0, len(paths), size):
            batch = paths[first : first + size]
            pixels = [np.empty((len(batch), *engine.image_shape), dtype=np.float32) for engine in engines]
            loads = decoders.map(lambda path, *outs: _load_image(path, engines, outs), batch, *pixels)
            waiting.append((batch, pixels, loads))
            if len(waiting) > _AHEAD:
                yield _infer(engines, *waiting.popleft())
        while waiting:
            yield _infer(engines, *waiting.popleft())


def _load_image(path: str, engines: Sequence[LoadedEngine], outs: Sequence[NDArray[np.float32]]) -> str | None:
    """Preprocess one image for each engine; return why it cannot be, or None."""
    try:
        pixels = decode(read_image(path))
        for engine, out in zip(engines, outs, strict=True):
            engine.preprocessor(pixels, out)
    except ImageError as error:
        return str(error)
    return None


def _infer(
    engines: Sequence[LoadedEngine],
    paths: Sequence[str],
    pixels: Sequence[NDArray[np.float32]],
    loads: Iterator[str | None],
) -> BatchLogits:
    errors = list(loads)
    good = [error is None for error in errors]
    logits = tuple(
        engine.runtime.lanes[0].infer(np.ascontiguousarray(part[good]))
        if any(good)
        else np.empty((0, 0), dtype=np.float32)
        for engine, part in zip(engines, pixels, strict=True)
    )
    return BatchLogits(paths, errors, logits)
