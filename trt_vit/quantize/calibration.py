"""The images that ranges are measured on: a fixed choice from a directory, read in the pipeline's own way."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from itertools import chain, groupby, zip_longest
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.errors import ImageError, InputError
from trt_vit.images.decode import decode, read_image
from trt_vit.images.preprocess import Preprocessor
from trt_vit.images.source import list_images

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from trt_vit.images.preprocessing import Preprocessing

_BATCH = 8


@dataclass(frozen=True)
class CalibrationSet:
    """Images that can be read, in the order they are used.

    Attributes:
        directory: Where they lie.
        paths: Their paths.
        sha256: Digest of their paths within the directory and their bytes, in order.
        asked: How many were asked for, which may be more.
        unreadable: Paths that were passed over, each with the reason.
    """

    directory: Path
    paths: tuple[str, ...]
    sha256: str
    asked: int
    unreadable: dict[str, str]


def choose_images(directory: Path, count: int) -> CalibrationSet:
    """Choose images to calibrate on: the same share of each folder, the same ones on every machine and every time.

    Within a folder the order is that of the digests of the names, so that neither time nor subject orders them.

    Raises:
        UsageError: There is no such directory.
        InputError: None of its images can be read.
    """
    paths = _in_turn(list_images([str(directory)]), directory)
    digest, chosen, unreadable = hashlib.sha256(), list[str](), dict[str, str]()
    for path in paths:
        if len(chosen) == count:
            break
        try:
            data = read_image(path)
            decode(data)
        except ImageError as error:
            unreadable[path] = str(error)
            continue
        digest.update(f"{os.path.relpath(path, directory)}\0{len(data)}\0".encode(errors="surrogateescape"))
        digest.update(data)
        chosen.append(path)
    if not chosen:
        reason = next(iter(unreadable.values()), "no reason")
        message = f"none of the {len(unreadable)} images in {directory} can be read: {reason}"
        raise InputError(message, hint="name a directory of good images with --calibration")
    return CalibrationSet(directory, tuple(chosen), digest.hexdigest(), count, unreadable)


def read_batches(
    images: Sequence[str], preprocessing: Preprocessing, image_size: tuple[int, int], *, batch: int | None = None
) -> Iterator[NDArray[np.float32]]:
    """Read and preprocess images a batch at a time, so that memory does not grow with their number.

    Args:
        images: Paths that ``choose_images`` has found readable.
        preprocessing: The checkpoint's.
        image_size: Height and width that the model takes, in pixels.
        batch: Images a batch where the model takes no other number: the last ones are then left out.

    Yields:
        float32 [n, 3, height, width].
    """
    preprocess = Preprocessor(preprocessing, image_size)
    size = batch or _BATCH
    for start in range(0, len(images), size):
        paths = images[start : start + size]
        if batch is not None and len(paths) < batch:
            return
        pixels = np.empty((len(paths), 3, *image_size), dtype=np.float32)
        for path, out in zip(paths, pixels, strict=True):
            preprocess(decode(read_image(path)), out)
        yield pixels


def _in_turn(paths: Sequence[str], directory: Path) -> Iterator[str]:
    """Return paths of each folder in turn."""
    folders = [
        sorted(group, key=lambda path: _digest(path, directory))
        for _, group in groupby(sorted(paths, key=os.path.dirname), os.path.dirname)
    ]
    return (path for path in chain.from_iterable(zip_longest(*folders)) if path is not None)


def _digest(path: str, directory: Path) -> str:
    return hashlib.sha256(os.path.relpath(path, directory).encode(errors="surrogateescape")).hexdigest()
