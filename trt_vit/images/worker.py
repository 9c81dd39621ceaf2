"""What runs in a process of ``DecodeWorkers``, and how the two sides speak.

A request is the length of a file, whose bytes lie at the start of the memory that both sides have. The reply is one of
the kinds below and its content: the size of the picture, whose pixels then lie there instead, or what is wrong.
"""

from __future__ import annotations

import fcntl
import importlib
import mmap
import os
import resource
import signal
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_vit.errors import ImageError
from trt_vit.images.decode import NOT_ENOUGH_MEMORY
from trt_vit.images.limits import DecodeLimits

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

READY, PIXELS, REFUSED, MEMORY = b"r", b"p", b"e", b"m"
LENGTH = struct.Struct("<Q")
SIZE = struct.Struct("<II")
REPLY_BYTES = 1024


def serve(job: dict[str, Any]) -> None:
    """Decode what the other side asks for until it is gone.

    Args:
        job: The descriptors ``channel``, ``memory`` and ``lifeline``, and what ``DecodeWorkers`` was given.
    """
    _end_with(job["lifeline"])
    module, _, function = job["target"].partition(":")
    target = getattr(importlib.import_module(module), function)
    limits = DecodeLimits(**{**job["limits"], "formats": frozenset(job["limits"]["formats"])})
    channel = socket.socket(fileno=job["channel"])
    memory = mmap.mmap(job["memory"], 0)
    _limit_harm(job["memory_bytes"])
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff prints what is an error of the image's row anyway
    with suppress(ConnectionError):
        channel.send(READY)
        while request := channel.recv(LENGTH.size):
            (length,) = LENGTH.unpack(request)
            channel.send(_reply(memory, length, lambda data: target(data, limits)))


def _reply(memory: mmap.mmap, length: int, decode: Callable[[bytes], NDArray[np.uint8]]) -> bytes:
    try:
        pixels = decode(memory[:length])
        np.frombuffer(memory, np.uint8, pixels.size)[:] = pixels.reshape(-1)
    except MemoryError:
        return MEMORY
    except ImageError as error:
        message = str(error)
        return MEMORY if message == NOT_ENOUGH_MEMORY else (REFUSED + message.encode())[:REPLY_BYTES]
    return PIXELS + SIZE.pack(*pixels.shape[:2])


def _end_with(lifeline: int) -> None:
    """Have the kernel end this process when the other end of a pipe is closed; interrupts are for the other side."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)


def _limit_harm(memory_bytes: int) -> None:
    """Let this process have ``memory_bytes`` more than it has, leave no core, and go first where memory is short."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    wanted = pages * resource.getpagesize() + memory_bytes
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # a container may hide it
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
