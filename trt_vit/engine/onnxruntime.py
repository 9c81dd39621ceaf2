"""ONNX to an ONNX Runtime engine: the model itself, in one file."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from trt_vit.errors import EngineError
from trt_vit.runtime.onnxruntime import ENGINE

if TYPE_CHECKING:
    from pathlib import Path


def write_engine(onnx: Path, directory: Path) -> None:
    """Write the engine's file into ``directory``.

    ONNX Runtime optimises the graph for the machine when it loads it, so what it optimised here would not serve there.

    Raises:
        EngineError: The model keeps its weights in a second file, being over 2 GiB.
    """
    if onnx.with_name(f"{onnx.name}.data").exists():
        message = "ONNX Runtime loads a model from verified bytes, and this one is larger than the 2 GiB it takes so"
        raise EngineError(message, hint="build for --runtime openvino")
    shutil.copyfile(onnx, directory / ENGINE)
