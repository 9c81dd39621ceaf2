"""A loaded bundle: everything a run needs to turn images into rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_vit.images.limits import NO_FURTHER_LIMITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trt_vit.images.limits import DecodeLimits
    from trt_vit.images.preprocess import Preprocessor
    from trt_vit.images.preprocessing import Decode
    from trt_vit.runtime.protocol import Runtime


@dataclass(frozen=True)
class Classifier:
    """Everything a run needs to turn images into rows.

    Attributes:
        preprocessor: The checkpoint's preprocessing.
        runtimes: The loaded engine: on a CPU once, on GPUs once for each.
        image_shape: Channels, height and width of one preprocessed image.
        labels: Label of each class, by index.
        k: Predictions a row, at most the number of classes.
        decode_threads: Threads that read, decode and preprocess.
        decode: Where JPEGs are decoded if the engine is on a GPU.
        limits: What an image may be and take.
        workers: Processes that decode, or 0 where the threads do it.
        worker_bytes: Memory that decoding one image may take in such a process.
    """

    preprocessor: Preprocessor
    runtimes: tuple[Runtime, ...]
    image_shape: tuple[int, int, int]
    labels: Sequence[str]
    k: int
    decode_threads: int
    decode: Decode = "exact"
    limits: DecodeLimits = NO_FURTHER_LIMITS
    workers: int = 0
    worker_bytes: int = 2**31

    @property
    def on_gpu(self) -> bool:
        """Whether the engine is on a GPU."""
        return bool(self.runtimes[0].gpu_lanes)

    @property
    def batch_size(self) -> int:
        """Images a batch."""
        return self.runtimes[0].batch_size
