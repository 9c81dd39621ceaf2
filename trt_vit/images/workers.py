"""Decoding in processes of its own, so that what a hostile image does to a decoder costs that image and nothing else.

A worker is a new Python that imports trt_vit.images.decode and nothing heavy. It is never a fork of this process, which
may hold threads, OpenVINO or a GPU. The bytes of a file go to it and its pixels come back through shared memory without
a name (memfd), of which nothing can be left in /dev/shm, and which is sealed: a worker that cut it short would crash
this process.

The memory limit is on the worker's address space (RLIMIT_AS), so much above what a worker at rest has. Whatever a
decoder takes is part of that, and the kernel refuses what goes beyond before there is less for others. RLIMIT_DATA
would leave out what is mapped shared; the shared memory of here is mapped before the limit is set.

No worker outlives this process, however that ends: when nobody holds the other end of a worker's pipe ``lifeline`` any
more, the kernel ends it (SIGIO), even while a decoder hangs.
"""

from __future__ import annotations

import fcntl
import io
import json
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from trt_vit.errors import EnvironmentFault, ImageError, UsageError
from trt_vit.images.decode import check_file_size, decode
from trt_vit.images.worker import LENGTH, MEMORY, PIXELS, READY, REPLY_BYTES, SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from trt_vit.images.limits import DecodeLimits

    Decoder = Callable[[bytes], NDArray[np.uint8]]
    """The bytes of a file to uint8 [height, width, 3], or an ImageError; threads may call it at once."""

_START = """
import json, sys
job = json.loads(sys.argv[1])
sys.path[:] = job["path"]
from trt_vit.images.worker import serve
serve(job)
"""
_START_SECONDS, _END_SECONDS = 60.0, 5.0
_KEPT_BYTES = 2**26  # of the shared memory: what a larger image needed is given back after it


@contextmanager
def decoding(limits: DecodeLimits, workers: int, memory_bytes: int) -> Iterator[Decoder]:
    """What decodes images: this process, or ``workers`` others.

    Args:
        limits: What an image may be and take.
        workers: Number of worker processes, or 0.
        memory_bytes: How much memory decoding one image may take in a worker.

    Raises:
        UsageError: There is a time limit, but no worker to keep it; or as ``DecodeWorkers``.
        EnvironmentFault: A worker does not start.
    """
    if workers:
        with DecodeWorkers(workers, limits, memory_bytes) as pool:
            yield pool.decode
    elif limits.seconds is not None:
        raise UsageError(
            f"decoding cannot be stopped after {limits.seconds:g} s in this process",
            hint="use decode workers, or no time limit",
        )
    else:
        yield partial(decode, limits=limits)


class DecodeWorkers:
    """Worker processes that decode one image each at a time; one that is lost is replaced.

    Args:
        count: Number of processes.
        limits: What an image may be and take.
        memory_bytes: How much memory a worker may take above what it has at rest. Decoding takes up to 15 bytes a
            pixel, up to 27 with transparency, and up to 40 for a WebP with it; the pixels that come back do not count.
        target: ``module:function``, which decodes in the worker and is called as ``decode`` is.

    Raises:
        UsageError: ``count`` or ``memory_bytes`` is not positive.
        EnvironmentFault: A worker does not start.
    """

    def __init__(
        self, count: int, limits: DecodeLimits, memory_bytes: int, *, target: str = "trt_vit.images.decode:decode"
    ) -> None:
        for name, value in (("decode workers", count), ("bytes of memory for decoding", memory_bytes)):
            if value < 1:
                raise UsageError(f"{value} {name}", hint="use at least 1")
        self._limits = limits
        self._job = {
            "path": list(sys.path),
            "target": target,
            "limits": {**asdict(limits), "formats": sorted(limits.formats)},
            "memory_bytes": memory_bytes,
        }
        self._shared_bytes = max(3 * limits.pixels, limits.file_bytes)
        self._lock = threading.Lock()  # of the two below
        self._closed = False
        self._workers: set[_Worker] = set()
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        try:
            for _ in range(count):
                self._free.put(self._start())
            for worker in self._workers:
                worker.wait_until_ready()
        except BaseException:
            self.close()
            raise

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """What ``trt_vit.images.decode.decode`` makes of ``data``, from the next worker that is free.

        Returns:
            uint8 [height, width, 3], contiguous.

        Raises:
            ImageError: As ``decode``; or the decoder crashed, takes too long, or needs too much memory.
            EnvironmentFault: A worker that is to replace another does not start.
            RuntimeError: The workers are closed, which says nothing of the image.
        """
        check_file_size(len(data), self._limits)
        worker = self._free.get()
        try:
            if not worker.is_running():
                worker = self._replacement(worker)
            return worker.decode(data, self._limits)
        except (ImageError, EnvironmentFault):
            self._check_open()  # closing ends workers too
            raise
        finally:
            if self._closed:
                worker.end()
            self._free.put(worker)

    def close(self) -> None:
        """End all workers at once; a call of ``decode`` under way raises RuntimeError."""
        with self._lock:
            self._closed = True
            workers = list(self._workers)
        idle = []
        with suppress(queue.Empty):
            while True:
                idle.append(self._free.get_nowait())
        for worker in workers:
            worker.kill()  # the thread that uses it, if one does, sees to the rest
        for worker in idle:
            worker.end()
            self._free.put(worker)  # for threads that wait for one

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the decode workers are closed")

    def _start(self) -> _Worker:
        with self._lock:
            self._check_open()
            worker = _Worker(self._job, self._shared_bytes)
            self._workers.add(worker)
        return worker

    def _replacement(self, worker: _Worker) -> _Worker:
        worker.end()
        with self._lock:
            self._workers.discard(worker)
        return self._start()


class _Worker:
    """This side of one worker process; one thread uses it at a time, and any may kill it."""

    def __init__(self, job: dict[str, Any], shared_bytes: int) -> None:
        self._memory_bytes: int = job["memory_bytes"]
        self._ready = False
        self._ends = ExitStack()
        try:
            self._start(job, shared_bytes)
        except OSError as error:
            self._ends.close()
            raise _not_started(error.strerror or type(error).__name__) from error

    def _start(self, job: dict[str, Any], shared_bytes: int) -> None:
        with ExitStack() as theirs:
            ours, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._channel = self._ends.enter_context(ours)
            theirs.enter_context(channel)
            lifeline, held = os.pipe()
            theirs.callback(os.close, lifeline)
            self._ends.enter_context(io.FileIO(held, "w"))
            memory = os.memfd_create("trt_vit-image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            theirs.callback(os.close, memory)
            os.ftruncate(memory, shared_bytes)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._memory = self._ends.enter_context(mmap.mmap(memory, shared_bytes))
            job = {**job, "channel": channel.fileno(), "memory": memory, "lifeline": lifeline}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, json.dumps(job)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # numpy's threads would take part of the memory
                pass_fds=(channel.fileno(), memory, lifeline),
                process_group=0,  # an interrupt from the terminal is not for workers, not even while they start
            )

    def is_running(self) -> bool:
        """Whether it can be used. One that was killed while it was idle is no image's fault."""
        return not self._memory.closed and self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Wait for the worker's imports.

        Raises:
            EnvironmentFault: They fail, or take too long.
        """
        if self._ready:
            return
        self._channel.settimeout(_START_SECONDS)
        try:
            self._ready = self._channel.recv(len(READY)) == READY
        except TimeoutError:
            self.end()
            raise _not_started(f"not ready after {_START_SECONDS:g} s") from None
        if not self._ready:
            raise _not_started(self.end())

    def decode(self, data: bytes, limits: DecodeLimits) -> NDArray[np.uint8]:
        """Have one image decoded. An error that the worker cannot go on from ends it."""
        try:
            self.wait_until_ready()
            kind, content = self._ask(data, limits.seconds)
            pixels = self._pixels(content, limits) if kind == PIXELS else None
            if max(len(data), 0 if pixels is None else pixels.nbytes) > _KEPT_BYTES:
                with suppress(OSError):  # not every kernel can
                    self._memory.madvise(mmap.MADV_REMOVE)
        except BaseException:
            self.end()
            raise
        if pixels is not None:
            return pixels
        if kind == MEMORY:  # what it still holds is not known, and the next image must have as much as this one
            self.end()
            raise ImageError(f"decoding needs more than {self._memory_bytes / 2**20:g} MiB")
        raise ImageError(" ".join(content.decode("utf-8", "replace").split()))

    def kill(self) -> int:
        """End the process whatever it does, and return its status as ``subprocess`` has it."""
        self._process.kill()
        return self._process.wait()

    def end(self) -> str:
        """Kill it and give back what it has here; how it had ended, if it had."""
        status = self.kill()
        self._ends.close()
        if status >= 0:
            return f"exit status {status}"
        return next((known.name for known in signal.Signals if known == -status), f"signal {-status}")

    def _ask(self, data: bytes, seconds: float | None) -> tuple[bytes, bytes]:
        """The kind and the content of the worker's reply."""
        self._channel.settimeout(seconds)
        try:
            self._memory[: len(data)] = data
            self._channel.send(LENGTH.pack(len(data)))
            reply = self._channel.recv(REPLY_BYTES)
        except TimeoutError:
            raise ImageError(f"decoding took longer than {seconds:g} s") from None
        except ConnectionError:
            reply = b""
        if not reply:
            with suppress(subprocess.TimeoutExpired):  # Python closes the channel some time before it ends
                self._process.wait(_END_SECONDS)
            raise ImageError(f"the decoder crashed ({self.end()})")
        return reply[:1], reply[1:]

    def _pixels(self, content: bytes, limits: DecodeLimits) -> NDArray[np.uint8]:
        """The pixels that the worker has written. A decoder that went wild may have said anything about them."""
        height, width = SIZE.unpack(content) if len(content) == SIZE.size else (0, 0)
        if not 0 < height * width <= limits.pixels:
            raise ImageError("the decoder crashed (its answer means nothing)")
        return np.frombuffer(self._memory, np.uint8, 3 * height * width).reshape(height, width, 3).copy()


def _not_started(reason: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"a decode worker does not start: {reason}", hint="see what is printed above, or decode without workers"
    )
