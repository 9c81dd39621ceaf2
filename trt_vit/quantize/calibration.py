"""The images that ranges are measured on: a fixed choice from a directory, read in the pipeline's own way."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from dataclasses import dataclass
from itertools import cycle, groupby, islice
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
    folders = _folders(list_images([str(directory)]), directory)
    digest, chosen, unreadable = hashlib.sha256(), list[str](), dict[str, str]()
    for path, data in islice(_in_turn([_readable(folder, unreadable) for folder in folders]), count):
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
        batch: Images a batch where the model takes no other number: the last one is then filled up with the first
            images, which change no range.

    Yields:
        float32 [n, 3, height, width].

    Raises:
        InputError: An image cannot be read any more.
    """
    preprocess = Preprocessor(preprocessing, image_size)
    size = batch or _BATCH
    for start in range(0, len(images), size):
        paths = images[start : start + size]
        if batch is not None:
            paths = [*paths, *islice(cycle(images), batch - len(paths))]
        pixels = np.empty((len(paths), 3, *image_size), dtype=np.float32)
        for path, out in zip(paths, pixels, strict=True):
            try:
                preprocess(decode(read_image(path)), out)
            except ImageError as error:
                hint = "leave the calibration images where they are while an engine is built"
                raise InputError(f"{path} cannot be read any more: {error}", hint=hint) from error
        yield pixels


def _folders(paths: Sequence[str], directory: Path) -> list[list[str]]:
    """Return the paths of each folder, in the order in which they are tried."""
    return [
        sorted(group, key=lambda path: _digest(path, directory))
        for _, group in groupby(sorted(paths, key=os.path.dirname), os.path.dirname)
    ]


def _readable(paths: Sequence[str], unreadable: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """Yield images that decode, each with the bytes of its file; note the others, with the reason."""
    for path in paths:
        try:
            data = read_image(path)
            decode(data)
        except ImageError as error:
            unreadable[path] = str(error)
        else:
            yield path, data


def _in_turn(folders: Sequence[Iterator[tuple[str, bytes]]]) -> Iterator[tuple[str, bytes]]:
    """Yield an image of each folder in turn, until all are used up."""
    waiting = deque(folders)
    while waiting:
        folder = waiting.popleft()
        image = next(folder, None)
        if image is not None:
            yield image
            waiting.append(folder)


def _digest(path: str, directory: Path) -> str:
    return hashlib.sha256(os.path.relpath(path, directory).encode(errors="surrogateescape")).hexdigest()
