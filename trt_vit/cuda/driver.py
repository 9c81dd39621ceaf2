"""Which NVIDIA GPUs there are, asked of the driver itself: no package is needed to learn that there is none."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_LIBRARY = "libcuda.so.1"
_SUCCESS = 0
_NAME_BYTES = 256
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76
"""Numbers of the two attributes in the CUDA driver API's CUdevice_attribute."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: The product's name.
        compute_capability: As ``8.9``.
        memory_bytes: All of its memory.
    """

    name: str
    compute_capability: str
    memory_bytes: int


def version() -> str | None:
    """Return the newest CUDA version that the driver supports, as ``13.0``, or None without a working driver."""
    driver = _driver()
    number = ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(number)) != _SUCCESS:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def gpus() -> list[Gpu]:
    """Return the GPUs that this process may use, in CUDA's order; none without a working driver."""
    driver, count = _driver(), ctypes.c_int()
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != _SUCCESS:
        return []
    return [_gpu(driver, index) for index in range(count.value)]


def pci_bus_id(index: int) -> str:
    """Return where a GPU sits, as ``0000:3b:00.0``: the one name of it that other libraries of the driver know.

    Args:
        index: Its number in ``gpus``.
    """
    driver, device, name = _driver(), ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    if driver is not None:
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetPCIBusId(name, _NAME_BYTES, device)
    return name.value.decode("ascii", errors="replace")


def _driver() -> ctypes.CDLL | None:
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    return driver if driver.cuInit(0) == _SUCCESS else None


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(_NAME_BYTES)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, _NAME_BYTES, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    major, minor = (
        _attribute(driver, device, which) for which in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR)
    )
    return Gpu(name.value.decode(errors="replace"), f"{major}.{minor}", memory.value)


def _attribute(driver: ctypes.CDLL, device: ctypes.c_int, which: int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value
