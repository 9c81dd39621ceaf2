"""Kernels that TensorRT for RTX has compiled for one engine on one GPU, kept on disk for the next run.

A plan for RTX holds no kernels for the machine: they are compiled when a batch size is first run, which takes seconds.
The library's own runtime cache holds them. It is native code, so it lies in the user's cache directory, closed to
others, and a file that is not exactly what was written, or that others may have written, is not shown to the library.
"""

from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from trt_vit.caches import cache_directory, read_ours, replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import tensorrt_rtx as rtx

    from trt_vit.cuda.device import Device
    from trt_vit.runtime.tensorrt_family import Family

_DIGEST_BYTES = hashlib.sha256().digest_size
_MOST_BYTES = 2**30


def cache_path(family: Family, plan: bytes, device: Device) -> Path:
    """Return the file of one engine, GPU and version of the library, in the user's cache directory."""
    machine = f"{device.name} {device.compute_capability} {family.title}"
    return cache_directory() / "kernels" / hashlib.sha256(hashlib.sha256(plan).digest() + machine.encode()).hexdigest()


class KernelCache:
    """One engine's runtime cache and the file it is kept in.

    A file that is missing, damaged or refused by the library, or in a directory that others can write to, counts as
    none, and one that cannot be written is done without: only time is lost.

    Args:
        cache: The library's cache, empty. Needs the device to be current.
        path: The file.
    """

    def __init__(self, cache: rtx.IRuntimeCache, path: Path) -> None:
        self._cache = cache
        self._path = path
        self._lock = threading.Lock()
        self._compiled: set[int] = set()
        kernels = _read(path)
        if kernels is not None:
            cache.deserialize(kernels)

    @contextmanager
    def compiling(self, count: int) -> Iterator[None]:
        """Surround a run of a batch of ``count``, during which kernels are compiled if it is the first of its size.

        Lanes then compile one after the other, so that each kernel is compiled once and nothing changes the cache while
        it is being written to disk.
        """
        if count in self._compiled:
            yield
            return
        with self._lock:
            yield
            if count not in self._compiled:
                self._compiled.add(count)
                _store(self._path, bytes(self._cache.serialize()))


def _read(path: Path) -> bytes | None:
    data = read_ours(path, _MOST_BYTES)
    if data is None:
        return None
    digest, kernels = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return kernels if hashlib.sha256(kernels).digest() == digest else None


def _store(path: Path, kernels: bytes) -> None:
    with suppress(OSError):  # the next run compiles again
        replace_file(path, hashlib.sha256(kernels).digest() + kernels)
