"""The CUDA kernels, compiled for the CPU from the same source, so that what they compute is tested without a GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

import trt_vit.cuda

DIRECTORY = Path(trt_vit.cuda.__file__).parent
FLAGS: tuple[str, ...] = ("-O2",)
"""What the compiler is told beside what every build needs."""
SOURCES = tuple(sorted(path.name for path in DIRECTORY.glob("*.cu")))


def launch(name: str, grid: tuple[int, int], arguments: bytes) -> None:
    """Run a kernel over a grid of blocks, in x and y. Addresses in its argument are of this process."""
    function = next(found for library in _libraries() if (found := getattr(library, name, None)) is not None)
    function(ctypes.c_uint(grid[0]), ctypes.c_uint(grid[1]), arguments)


def compile_for_cpu(source: str, library: Path) -> None:
    """Make a shared library of a source."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    flags = [*FLAGS, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-x", "c++", DIRECTORY / source, "-o", library], check=True)


@cache
def _libraries() -> list[ctypes.CDLL]:
    with tempfile.TemporaryDirectory() as name:
        libraries = []
        for source in SOURCES:
            library = Path(name, f"{source}.so")
            compile_for_cpu(source, library)
            libraries.append(ctypes.CDLL(str(library)))
    return libraries
