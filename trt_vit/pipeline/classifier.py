"""A loaded bundle: everything a run needs to turn images into rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_vit.pipeline.stages import ON_THREADS, Decoding

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        decoding: How images are decoded on the CPU.
    """

    preprocessor: Preprocessor
    runtimes: tuple[Runtime, ...]
    image_shape: tuple[int, int, int]
    labels: Sequence[str]
    k: int
    decode_threads: int
    decode: Decode = "exact"
    decoding: Decoding = ON_THREADS

    @property
    def on_gpu(self) -> bool:
        """Whether the engine is on a GPU."""
        return bool(self.runtimes[0].gpu_lanes)

    @property
    def batch_size(self) -> int:
        """Images a batch."""
        return self.runtimes[0].batch_size
