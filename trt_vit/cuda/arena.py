"""The memory of one batch's images on their way to the GPU: pinned on the host, and the same size on the device.

Threads that decode images reserve room as they go, without knowing what the others have. The room is fixed, so memory
is bounded whatever the images are: each image is sure of as much as it needs once it has been resized on the CPU, and
what is beyond that is given to whoever asks first.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from trt_vit.cuda.preprocess import SOURCE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trt_vit.cuda.device import Device, Stream

_ALIGNMENT = 256


def aligned(nbytes: int) -> int:
    """Return the bytes that a reservation takes."""
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


class Arena:
    """Room for the images of one batch, and in front of them what the kernel needs to know of each.

    Args:
        device: The GPU, current in the calling thread.
        images: Number of images.
        sure: Bytes that each image can count on.
        shared: Further bytes, for whoever asks first.

    Raises:
        OutOfDeviceMemory: There is not enough memory.
    """

    def __init__(self, device: Device, images: int, sure: int, shared: int) -> None:
        self._sure = aligned(sure)
        self._shared = aligned(shared)
        self._front = aligned(images * SOURCE.itemsize)
        size = self._front + images * self._sure + self._shared
        self.host: NDArray[np.uint8] = device.pinned((size,), "uint8")
        self.memory = device.allocate(size)
        self.sources: NDArray[np.void] = self.host[: images * SOURCE.itemsize].view(SOURCE)
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget the batch."""
        self._used = self._front
        self._left = self._shared

    def reserve(self, nbytes: int) -> int | None:
        """Return where there is room for one image, in bytes from the beginning, or None if there is not.

        An image asks once more at most, for no more than it can count on.
        """
        beyond = max(0, aligned(nbytes) - self._sure)
        with self._lock:
            if beyond > self._left:
                return None
            self._left -= beyond
            place = self._used
            self._used += aligned(nbytes)
        return place

    def copy_to_device(self, stream: Stream) -> None:
        """Enqueue the copy of all that is there."""
        stream.copy_to_device(self.memory, self.host[: self._used])
