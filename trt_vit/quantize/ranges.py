"""Calibration: how large the numbers are that each linear layer reads.

The reductions run inside ONNX Runtime, as nodes added to the graph: the activations of a batch are gigabytes, what
leaves the session is one number for each tensor.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trt_vit.errors import EngineError
from trt_vit.quantize.linear import linear_layers
from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.onnxruntime import open_session

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_MODEL = "calibration.onnx"


def activation_ranges(model: ir.Model, batches: Iterable[NDArray[np.float32]]) -> dict[str, float]:
    """Measure the range of every tensor that a linear layer reads.

    Args:
        model: An fp32 graph of opset 18 or later; it is left as it is.
        batches: Preprocessed images, float32 [n, 3, height, width], of any n > 0 that the graph takes; read once.

    Returns:
        Largest absolute value over all batches by the tensor's name, finite. It is 0 of a tensor that was zero in
        every image, which says nothing of its range: ``trt_vit.quantize.qdq.quantize`` leaves its layers out.

    Raises:
        EngineError: There is no batch, or a tensor or the logits are infinite or not a number.
        EnvironmentFault: ONNX Runtime is missing.
        ArtifactError: ONNX Runtime cannot read the graph.
    """
    return largest_values(
        model, list(dict.fromkeys(str(layer.activation.name) for layer in linear_layers(model))), batches
    )


def largest_values(model: ir.Model, names: list[str], batches: Iterable[NDArray[np.float32]]) -> dict[str, float]:
    """Measure the largest absolute value of some tensors of a graph, as ``activation_ranges`` does.

    Raises:
        EngineError: As for ``activation_ranges``.
        EnvironmentFault: As there.
        ArtifactError: As there.
    """
    if not names:
        return {}
    with tempfile.TemporaryDirectory() as directory:
        session = _open(_with_reductions(model, names), Path(directory, _MODEL))
        ranges = np.full(len(names), -np.inf)
        for batch in batches:
            ranges = np.maximum(ranges, _largest(session, names, batch))
    if np.isneginf(ranges).all():
        raise EngineError("there is no calibration image", hint="name a directory of images: --calibration DIR")
    return dict(zip(names, ranges.tolist(), strict=True))


def _with_reductions(model: ir.Model, names: list[str]) -> ir.Model:
    """Copy a graph, weights shared, and let it give out the largest absolute value of some of its tensors."""
    copy = model.clone()
    values = {str(value.name): value for value in ir.convenience.create_value_mapping(copy.graph).values()}
    for index, name in enumerate(names):
        absolute = ir.node("Abs", [values[name]], name=f"calibration_abs_{index}")
        absolute.outputs[0].name = f"calibration_abs_{index}"
        largest = ir.Value(name=f"calibration_{index}", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT))
        reduce = ir.node("ReduceMax", absolute.outputs, {"keepdims": 0}, outputs=[largest], name=largest.name)
        copy.graph.extend([absolute, reduce])
        copy.graph.outputs.append(largest)
    return copy


def _open(model: ir.Model, path: Path) -> Any:
    """Open a session on a model, whose weights lie in a file of their own, as those of ViT-g are beyond 2 GB."""
    ir.save(model, path, external_data=f"{path.name}.data")
    return open_session(path, threads=usable_cores())


def _largest(session: Any, names: list[str], batch: NDArray[np.float32]) -> NDArray[np.float64]:
    results = session.run(None, {session.get_inputs()[0].name: batch})
    outputs, ranges = results[: -len(names)], np.array(results[-len(names) :], dtype=np.float64)
    infinite = np.flatnonzero(~np.isfinite(ranges))
    # A reduction may skip what is not a number, but the logits show it.
    if infinite.size or not all(np.isfinite(output).all() for output in outputs):
        name = names[infinite[0]] if infinite.size else "logits"
        hint = "check that the checkpoint classifies in fp32, and its preprocessing"
        raise EngineError(f"{name}: infinite or not a number on calibration images", hint=hint)
    return ranges
