"""ONNX to an OpenVINO engine: its intermediate representation, a graph and its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_vit.errors import EngineError, OutputError
from trt_vit.runtime.openvino import ENGINE_GRAPH, failure_reason, import_openvino

if TYPE_CHECKING:
    from pathlib import Path


def write_engine(onnx: Path, directory: Path) -> None:
    """Convert the model and write the engine's files into ``directory``.

    Weights keep the precision they have in the ONNX: OpenVINO would otherwise round them to fp16 on disk.

    Raises:
        EnvironmentFault: OpenVINO is missing.
        EngineError: OpenVINO cannot convert the model.
        OutputError: The files cannot be written.
    """
    openvino = import_openvino()
    try:
        model = openvino.Core().read_model(str(onnx))
    except RuntimeError as error:
        message = f"OpenVINO cannot convert the model: {failure_reason(error)}"
        raise EngineError(message, hint="build for --runtime onnxruntime, or export with another opset") from error
    try:
        openvino.save_model(model, str(directory / ENGINE_GRAPH), compress_to_fp16=False)
    except RuntimeError as error:
        message = f"OpenVINO cannot write the engine: {failure_reason(error)}"
        raise OutputError(message, hint="choose a place with room with -o") from error
