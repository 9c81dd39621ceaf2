"""ONNX to an ONNX Runtime engine: the model itself, in one file."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from trt_vit.runtime.onnxruntime import ENGINE

if TYPE_CHECKING:
    from pathlib import Path


def write_engine(onnx: Path, directory: Path) -> tuple[str, ...]:
    """Write the engine's file into ``directory`` and return its name.

    ONNX Runtime optimises the graph for the machine when it loads it, so what it optimised here would not serve there.
    """
    shutil.copyfile(onnx, directory / ENGINE)
    return (ENGINE,)
