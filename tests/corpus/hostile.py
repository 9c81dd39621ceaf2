"""Decoders that do in a worker what a hostile image may make a real one do: crash, hang, take memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.errors import ImageError
from trt_vit.images.decode import decode

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from trt_vit.images.limits import DecodeLimits

TARGET = f"{__name__}:decode_or_harm"


def _touch(memory: bytearray | mmap.mmap) -> None:
    for begin in range(0, len(memory), mmap.PAGESIZE):
        memory[begin] = 1


def _refuse(message: str) -> None:
    raise ImageError(message)


def _fail(message: str) -> None:
    raise RuntimeError(message)


_HARM: dict[bytes, Callable[[bytes], object]] = {
    b"read-address": lambda value: ctypes.string_at(int(value)),
    b"signal": lambda value: os.kill(os.getpid(), int(value)),
    b"exit": lambda value: os._exit(int(value)),
    b"raise": lambda value: _fail(value.decode()),
    b"sleep": lambda value: time.sleep(float(value)),
    b"hang": lambda _: ctypes.PyDLL(None).pause(),  # in native code, with Python's lock held
    b"allocate": lambda value: _touch(bytearray(int(value))),
    b"map": lambda value: _touch(mmap.mmap(-1, int(value))),
    b"refuse": lambda value: _refuse(value.decode()),
    b"modules": lambda value: _refuse(" ".join(sorted(n for n in sys.modules if n.split(".")[0] == value.decode()))),
}


def decode_or_harm(data: bytes, limits: DecodeLimits) -> NDArray[np.uint8]:
    """Do what ``data`` says; ``pixels N`` is a row of so many black ones, and anything else is decoded."""
    command, _, value = data.partition(b" ")
    if command == b"pixels":
        return np.zeros((1, int(value), 3), np.uint8)
    if command in _HARM:
        _HARM[command](value)
    return decode(data, limits)
