"""A lane of a GPU that is given its batches by the host: copied in, run, copied out, waited for.

That is how a build checks an engine and how engines are compared. A run over many images keeps them on the GPU instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_vit.errors import EnvironmentFault

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trt_vit.cuda.device import Device
    from trt_vit.runtime.protocol import GpuLane


class Roundtrip:
    """Pinned host memory for one lane's batches.

    Args:
        device: The lane's GPU, current in the calling thread.
        shape: Of the largest batch: images, 3, height, width.
        classes: Logits of an image.
    """

    def __init__(self, device: Device, shape: tuple[int, int, int, int], classes: int) -> None:
        self._done = device.event()
        self._images: NDArray[np.float32] = device.pinned(shape, "float32")
        self._logits: NDArray[np.float32] = device.pinned((shape[0], classes), "float32")

    def run(self, lane: GpuLane, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch on the lane; see ``Lane.infer``."""
        count = len(pixels)
        if count > len(self._images) or pixels.shape[1:] != self._images.shape[1:]:
            message = f"no room for a batch of the shape {pixels.shape}: the largest is {self._images.shape}"
            raise EnvironmentFault(message, hint="ask for a larger --batch-size")
        self._images[:count] = pixels
        lane.stream.copy_to_device(lane.images, self._images[:count])
        lane.enqueue(count)
        lane.stream.copy_to_host(self._logits[:count], lane.logits)
        lane.stream.record(self._done)
        self._done.synchronize()
        return self._logits[:count].copy()
