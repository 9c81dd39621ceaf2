"""A bundle's engine as one of Triton's backends wants it: its files by their other names, and its tensors by theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.errors import ArtifactError, UsageError
from trt_vit.runtime import onnxruntime, openvino, tensorrt
from trt_vit.serving.model_config import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trt_vit.engine.bundle import Bundle
    from trt_vit.engine.manifest import ModelRecord


@dataclass(frozen=True)
class ServedEngine:
    """What goes into a version of the model.

    Attributes:
        files: The engine's bytes, as they were built, by the names that the backend looks for.
        model: The manifest's interface, with the tensor names that the backend looks for.
    """

    files: Mapping[str, bytes]
    model: ModelRecord


def served_engine(bundle: Bundle) -> ServedEngine:
    """Read a bundle's engine, verified, and look at its tensors where that needs no GPU.

    Raises:
        UsageError: Triton cannot serve such an engine.
        ArtifactError: A file is not what was built, or the engine is not what the manifest says.
        EnvironmentFault: The library that reads the engine is missing.
    """
    manifest = bundle.manifest
    if manifest.runtime not in BACKENDS:
        message = f"{bundle.path} is an engine for {manifest.runtime}, which Triton has no backend for"
        raise UsageError(message, hint="build one for --runtime tensorrt, onnxruntime or openvino")
    if manifest.runtime == "tensorrt":
        return _tensorrt(bundle)
    return _onnxruntime(bundle) if manifest.runtime == "onnxruntime" else _openvino(bundle)


def _tensorrt(bundle: Bundle) -> ServedEngine:
    """A plan opens only on its GPU, so Triton is the first to look at its tensors; it refuses what is not there."""
    smallest = bundle.manifest.batch.min
    if smallest > 1:
        message = f"{bundle.path} takes {smallest} images or more at once, and Triton sends single ones"
        raise UsageError(message, hint="build it with --batch 1,OPT,MAX")
    return ServedEngine({"model.plan": bundle.read(tensorrt.ENGINE)}, bundle.manifest.model)


def _onnxruntime(bundle: Bundle) -> ServedEngine:
    engine = bundle.read(onnxruntime.ENGINE)
    session = onnxruntime.open_session(engine, threads=1)
    found = [
        _described(port.name, port.type, ["batch" if isinstance(size, str) else size for size in port.shape])
        for port in (*session.get_inputs(), *session.get_outputs())
    ]
    model = bundle.manifest.model
    _refuse_different(bundle, found, _expected(model, "tensor(float)"))
    return ServedEngine({"model.onnx": engine}, model)


def _openvino(bundle: Bundle) -> ServedEngine:
    library = openvino.import_openvino()
    graph, weights = bundle.read(openvino.ENGINE_GRAPH), bundle.read(openvino.ENGINE_WEIGHTS)
    try:
        read = library.Core().read_model(graph, library.Tensor(np.frombuffer(weights, dtype=np.uint8)))
    except RuntimeError as error:
        message = f"OpenVINO cannot load {bundle.path}: {openvino.failure_reason(error)}"
        raise ArtifactError(message, hint="build the bundle again with this version of OpenVINO") from error
    model, ports = bundle.manifest.model, [*read.inputs, *read.outputs]
    known = (model.input_name, model.output_name)
    found = [
        _described(
            next((name for name in known if name in port.get_names()), port.get_any_name()),
            port.get_element_type().get_type_name(),
            ["batch" if size.is_dynamic else size.get_length() for size in port.get_partial_shape()],
        )
        for port in ports
    ]
    _refuse_different(bundle, found, _expected(model, "f32"))
    names = {"input_name": ports[0].get_any_name(), "output_name": ports[1].get_any_name()}
    return ServedEngine({"model.xml": graph, "model.bin": weights}, model.model_copy(update=names))


def _expected(model: ModelRecord, data_type: str) -> list[str]:
    return [
        _described(model.input_name, data_type, ["batch", 3, model.height, model.width]),
        _described(model.output_name, data_type, ["batch", model.classes]),
    ]


def _described(name: str, data_type: str, shape: list[str | int]) -> str:
    return f"{name} {data_type} [{', '.join(map(str, shape))}]"


def _refuse_different(bundle: Bundle, found: list[str], expected: list[str]) -> None:
    """Refuse an engine whose tensors, inputs first, are not those of the manifest: Triton would not load it.

    Raises:
        ArtifactError: They are not.
    """
    if found != expected:
        message = f"{bundle.path}: the engine has {' and '.join(found)}, the manifest says {' and '.join(expected)}"
        raise ArtifactError(message, hint="build the bundle again with trt-vit build-engine")
