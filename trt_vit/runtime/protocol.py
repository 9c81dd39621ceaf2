"""What every runtime offers the run flow, whichever library or device is below.

A runtime holds one loaded engine. A lane is one independent way through it: it owns all that one batch in flight needs
(on a CPU an inference request), so that as many batches run at once as there are lanes. A lane belongs to one thread at
a time; different lanes may be used by different threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from trt_vit.cuda.device import Device, DeviceMemory, Stream
    from trt_vit.engine.manifest import BatchProfile, ModelRecord, Precision


class Lane(Protocol):
    """One batch in flight."""

    def infer(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch and wait for it.

        Args:
            pixels: Preprocessed images, [n, 3, height, width], C-contiguous; 1 <= n <= the runtime's ``batch_size``.

        Returns:
            Logits, [n, classes]. They stay valid while the caller holds them.

        Raises:
            EnvironmentFault: The library or device failed.
        """
        ...


class GpuLane(Lane, Protocol):
    """A lane whose tensors are in the memory of a GPU.

    What is enqueued on its stream runs in order: work that fills ``images``, the engine, work that reads ``logits``.
    ``enqueue`` needs the device to be current in the calling thread.
    """

    @property
    def device(self) -> Device:
        """The GPU."""
        ...

    @property
    def stream(self) -> Stream:
        """Where the engine runs."""
        ...

    @property
    def images(self) -> DeviceMemory:
        """The batch to run: float32 [batch_size, 3, height, width]."""
        ...

    @property
    def logits(self) -> DeviceMemory:
        """What came of it: float32 [batch_size, classes]."""
        ...

    @property
    def smallest(self) -> int:
        """Smallest batch that the engine takes."""
        ...

    def enqueue(self, count: int) -> None:
        """Enqueue a run of the first ``count`` images, and return before it is done.

        Raises:
            OutOfDeviceMemory: A smaller batch may still run.
            EnvironmentFault: The library or device failed.
        """
        ...


class Runtime(Protocol):
    """One loaded engine and its lanes."""

    @property
    def lanes(self) -> Sequence[Lane]:
        """The lanes, as many as were asked for."""
        ...

    @property
    def gpu_lanes(self) -> Sequence[GpuLane]:
        """The same lanes where they are on a GPU, elsewhere none."""
        ...

    @property
    def batch_size(self) -> int:
        """Largest number of images a lane takes at once."""
        ...

    @property
    def inference_precision(self) -> Precision:
        """Precision the arithmetic runs in on this machine, which may be wider than the bundle's."""
        ...

    def statistics(self) -> EngineStatistics:
        """Tell what the library made of the engine."""
        ...

    def layer_times(self, pixels: NDArray[np.float32], seconds: float) -> list[LayerTime]:
        """Run a batch over and over, alone, and return what the library's own profiler says of each layer.

        Measuring each layer slows a batch down: their sum is more than a batch takes otherwise.

        Args:
            pixels: As for ``Lane.infer``.
            seconds: For how long, after a warm-up; one batch at least.

        Returns:
            The layers that were executed, in their order.

        Raises:
            EnvironmentFault: The library or device failed.
        """
        ...


@dataclass(frozen=True)
class EngineStatistics:
    """What the library made of an engine when it loaded it.

    Attributes:
        layers: Layers executed for one batch, after fusion.
        fused_attention: How many of them are whole attentions.
        weights_bytes: Bytes of the engine's weights.
        kinds: How many layers there are of each kind, in the library's own words.
        precisions: How many layers compute in each number format, the narrowest of what a layer reads.
        reformats: How many layers only change the layout or format of a tensor.
        int8_nodes: Names of the graph's nodes whose products run in INT8.
    """

    layers: int
    fused_attention: int
    weights_bytes: int
    kinds: Mapping[str, int]
    precisions: Mapping[str, int]
    reformats: int
    int8_nodes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LayerTime:
    """How long one layer of an engine takes.

    Attributes:
        name: The library's name for it.
        kind: The library's word for what it is.
        precision: Number format that it computes in: the narrowest of what it reads, or ``none``.
        seconds: Mean over the batches that were run.
    """

    name: str
    kind: str
    precision: str
    seconds: float


@dataclass(frozen=True)
class RuntimeOptions:
    """How an engine is loaded.

    Attributes:
        batch_size: Largest number of images a lane is given at once.
        lanes: Batches in flight, or None for the runtime's own choice on this machine.
        threads: CPU threads shared by all lanes, or None for every core this process may use.
        gpu: Number of the GPU among those that this process may use, where the engine needs one.
    """

    batch_size: int
    lanes: int | None = None
    threads: int | None = None
    gpu: int = 0


@dataclass(frozen=True)
class EngineFiles:
    """An engine on its way into a runtime.

    Attributes:
        path: The directory it lies in, for messages.
        precision: Precision it was built for.
        model: Its interface.
        batch: Batch sizes it was built for.
        read: Returns the bytes of one of its files, already compared with what was built.
    """

    path: Path
    precision: Precision
    model: ModelRecord
    batch: BatchProfile
    read: Callable[[str], bytes]
