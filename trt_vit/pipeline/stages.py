"""The stages of the run flow, and the seconds each of them was busy."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from trt_vit.errors import ImageError
from trt_vit.images.decode import decode
from trt_vit.images.limits import NO_FURTHER_LIMITS
from trt_vit.images.workers import decoding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from trt_vit.images.limits import DecodeLimits
    from trt_vit.sources.item import Item

    Pixels = NDArray[np.uint8]

T = TypeVar("T")

CPU_STAGES = ("read", "decode", "preprocess", "infer", "top_k", "write")


class StageSeconds:
    """Seconds that each stage was busy, summed over the threads or lanes that ran it.

    One belongs to one task at a time; ``add`` merges it into another when the task is done.

    Args:
        stages: Names of the stages.

    Attributes:
        seconds: By stage, in that order.
        thread: Name of the thread that began.
        spans: Stage, start and end of each time that it was busy, by ``time.perf_counter``.
    """

    def __init__(self, stages: Iterable[str]) -> None:
        self.seconds = dict.fromkeys(stages, 0.0)
        self.thread = threading.current_thread().name
        self.spans: list[tuple[str, float, float]] = []

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Count the block's time as ``stage``'s, also when it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            self.seconds[stage] += end - start
            self.spans.append((stage, start, end))

    def add(self, other: StageSeconds) -> None:
        """Add another task's seconds to these; its spans stay its own."""
        for stage, value in other.seconds.items():
            self.seconds[stage] += value


@dataclass(frozen=True)
class Opener:
    """What reads and decodes images.

    Attributes:
        limits: What an image may be and take.
        decode: The bytes of a file to uint8 [height, width, 3], or an ImageError; threads may call it at once.
    """

    limits: DecodeLimits
    decode: Callable[[bytes], NDArray[np.uint8]]


IN_THIS_PROCESS = Opener(NO_FURTHER_LIMITS, decode)
"""How images are read and decoded where nothing else is said."""


@dataclass(frozen=True)
class Decoding:
    """How images are decoded on a CPU.

    Attributes:
        limits: What an image may be and take.
        workers: Processes that decode, or 0 where the threads do it.
        worker_bytes: Memory that decoding one image may take in such a process.
    """

    limits: DecodeLimits = NO_FURTHER_LIMITS
    workers: int = 0
    worker_bytes: int = 2**31


ON_THREADS = Decoding()
"""How images are decoded where nothing else is said."""


@contextmanager
def open_opener(how: Decoding) -> Iterator[Opener]:
    """Start the processes that decode, if there are to be any, and end them with the block.

    Raises:
        UsageError: There is a limit of time, and no process to keep it.
        EnvironmentFault: A process does not start.
    """
    with decoding(how.limits, how.workers, how.worker_bytes) as decode_one:
        yield Opener(how.limits, decode_one)


@dataclass(slots=True)
class LoadedImage:
    """What became of one image on its way into a batch: an error, or None and its pixels are in place."""

    seconds: StageSeconds
    error: str | None = None


def load_image(item: Item, opener: Opener, preprocess: Callable[[Pixels, T], None], out: T) -> LoadedImage:
    """Read, decode and preprocess one image into its place in a batch.

    This is the per-image boundary: an image that cannot be used is an error of its own row.

    Args:
        item: The image.
        opener: What reads and decodes it.
        preprocess: The checkpoint's preprocessing, or part of it: uint8 [height, width, 3] into ``out``.
        out: Where the pixels go. Left in an undefined state by an error.
    """
    image = LoadedImage(StageSeconds(CPU_STAGES))
    with image_errors(image):
        with image.seconds.timing("read"):
            data = item.read(opener.limits)
        with image.seconds.timing("decode"):
            pixels = opener.decode(data)
        with image.seconds.timing("preprocess"):
            preprocess(pixels, out)
    return image


class _HasError(Protocol):
    error: str | None


@contextmanager
def image_errors(image: _HasError) -> Iterator[None]:
    """Keep what goes wrong with one image as that image's error: it costs its own row, never the run."""
    try:
        yield
    except ImageError as error:
        image.error = str(error)
    except MemoryError:
        image.error = "not enough memory for this image"
