"""The command with an engine that stands in for a real one: as slow as is wanted, and failing on demand.

    STAND_IN='{"seconds": 0.01}' python -m tests.soak.stand_in classify BUNDLE INPUT... -o FILE

The bundle is a real one, for its preprocessing and labels. Logits depend on an image's pixels only, bit for bit.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trt_vit import interrupts
from trt_vit.cli import main
from trt_vit.errors import EnvironmentFault
from trt_vit.images import workers
from trt_vit.pipeline import classify
from trt_vit.runtime.protocol import EngineStatistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trt_vit.engine.manifest import Precision
    from trt_vit.runtime.protocol import EngineFiles, GpuLane, LayerTime, RuntimeOptions

VARIABLE = "STAND_IN"


@dataclass(frozen=True)
class Faults:
    """What is to go wrong.

    Attributes:
        seconds: How long the engine takes for a batch.
        fail_at: The batch, from 0, that the engine fails on.
        hang: What never ends: ``engine`` (its third batch), ``decode``, ``load``, which no signal gets through to, or
            ``exit``, a thread that the interpreter waits for at its end.
        file_bytes: The largest file that can be written, as on a full disk.
        leave_within: Seconds from SIGTERM, and from a second SIGINT, to the end.
    """

    seconds: float = 0.0
    fail_at: int = -1
    hang: str = ""
    file_bytes: int = 0
    leave_within: float = 0.0


class StandIn:
    """A runtime of two lanes, each of which is this object."""

    def __init__(self, classes: int, batch_size: int, faults: Faults) -> None:
        self.batch_size = batch_size
        self.lanes = [self, self]
        self.gpu_lanes: list[GpuLane] = []
        self.inference_precision: Precision = "fp32"
        self._classes = classes
        self._faults = faults
        self._batches = 0
        self._lock = threading.Lock()

    def infer(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with self._lock:
            batch, self._batches = self._batches, self._batches + 1
        if batch == self._faults.fail_at:
            raise EnvironmentFault("the device is gone", hint="restart it")
        if self._faults.hang == "engine" and batch > 1:
            threading.Event().wait()
        time.sleep(self._faults.seconds)
        logits = np.empty((len(pixels), self._classes), dtype=np.float32)
        for image, out in zip(pixels, logits, strict=True):
            for index in range(self._classes):
                out[index] = 10 * image.ravel()[index :: self._classes].mean()
        return logits

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(layers=1, fused_attention=0, weights_bytes=0, kinds={}, precisions={}, reformats=0)

    def layer_times(self, pixels: NDArray[np.float32], seconds: float) -> list[LayerTime]:
        raise NotImplementedError


def install(faults: Faults) -> None:
    """Put the stand-in, and what is to go wrong, where the command will find it."""

    def open_runtime(_name: str, engine: EngineFiles, options: RuntimeOptions) -> StandIn:
        if faults.hang == "load":
            hang_in_a_library()
        if faults.hang == "exit":
            threading.Thread(target=threading.Event().wait).start()
        return StandIn(engine.model.classes, options.batch_size, faults)

    vars(classify)["open_runtime"] = open_runtime
    if faults.hang == "decode":
        vars(workers)["decode"] = lambda _data, limits: threading.Event().wait()
    if faults.leave_within:
        interrupts.TERM_SECONDS = interrupts.ABORT_SECONDS = faults.leave_within
    if faults.file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (faults.file_bytes, faults.file_bytes))


def hang_in_a_library() -> None:
    """Wait for a lock that this thread holds, in C: no signal ends that, and no handler of Python's runs meanwhile."""
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


if __name__ == "__main__":
    install(Faults(**json.loads(os.environ.pop(VARIABLE, "{}"))))
    main()
