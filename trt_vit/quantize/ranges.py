"""Calibration: how large the numbers are that each linear layer reads.

The reductions run inside ONNX Runtime, as nodes added to the graph: the activations of a batch are gigabytes, what
leaves the session is one number for each tensor.
"""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trt_vit.errors import EngineError
from trt_vit.quantize.linear import linear_layers
from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.onnxruntime import open_session

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from numpy.typing import NDArray

UNSOUND = "check that the checkpoint classifies in fp32, and its preprocessing"
"""What to do about a graph that gives infinities in fp32."""

_MODEL = "calibration.onnx"


def activation_ranges(model: ir.Model, batches: Iterable[NDArray[np.float32]]) -> dict[str, float]:
    """Measure the range of every tensor that a linear layer reads, and of what its product gives.

    Args:
        model: A float graph of opset 18 or later; it is left as it is.
        batches: Preprocessed images, float32 [n, 3, height, width], of any n > 0 that the graph takes; read once.

    Returns:
        Largest absolute value over all batches by the tensor's name, finite. It is 0 of a tensor that was zero in
        every image, which says nothing of its range: ``trt_vit.quantize.qdq.quantize`` leaves its layers out.

    Raises:
        EngineError: There is no batch, or a tensor or the logits are infinite or not a number.
        EnvironmentFault: ONNX Runtime is missing.
        ArtifactError: ONNX Runtime cannot read the graph.
    """
    tensors = [value for layer in linear_layers(model) for value in (layer.activation, layer.node.outputs[0])]
    names = list(dict.fromkeys(str(value.name) for value in tensors))
    largest = largest_values(model, names, batches)
    infinite = next((name for name, number in largest.items() if not np.isfinite(number)), None)
    if infinite is not None:
        raise EngineError(f"{infinite}: infinite or not a number on calibration images", hint=UNSOUND)
    return {name: largest[name] for name in names}


def largest_values(
    model: ir.Model, names: list[str], batches: Iterable[NDArray[np.float32]], *, signed: Collection[str] = ()
) -> dict[str, float]:
    """Measure the largest absolute value of some tensors of a graph, and of its outputs.

    Every node computes what it stands for: no Q/DQ pair is fused into a product.

    Args:
        model: A graph of opset 18 or later; it is left as it is.
        names: The tensors.
        batches: As for ``activation_ranges``.
        signed: Names of the tensors whose largest value is wanted instead: of these, minus infinity may be seen.

    Returns:
        The value by the tensor's name, in the order of ``names``, then of the outputs. It may be infinite or not a
        number. A reduction may skip what is not a number, but the value of an output then is not a number.

    Raises:
        EngineError: There is no batch.
        EnvironmentFault: As for ``activation_ranges``.
        ArtifactError: As there.
    """
    if not names:
        return {}
    largest: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        session = _open(_with_reductions(model, names, signed), Path(directory, _MODEL))
        for batch in batches:
            for name, number in _largest(session, names, batch).items():
                largest[name] = float(np.maximum(largest.get(name, -np.inf), number))
    if not largest:
        raise EngineError("there is no calibration image", hint="name a directory of images: --calibration DIR")
    return largest


def _with_reductions(model: ir.Model, names: list[str], signed: Collection[str]) -> ir.Model:
    """Copy a graph, weights shared, and let it give out the largest value of some of its tensors as float32."""
    copy = model.clone()
    values = {str(value.name): value for value in ir.convenience.create_value_mapping(copy.graph).values()}
    for index, name in enumerate(names):
        nodes = [] if name in signed else [ir.node("Abs", [values[name]], name=f"calibration_abs_{index}")]
        nodes.append(ir.node("ReduceMax", [values[name]], {"keepdims": 0}, name=f"calibration_max_{index}"))
        nodes.append(ir.node("Cast", [values[name]], {"to": ir.DataType.FLOAT}, name=f"calibration_{index}"))
        for before, after in pairwise(nodes):
            after.replace_input_with(0, before.outputs[0])
        for node in nodes:
            node.outputs[0].name = node.name
        largest = nodes[-1].outputs[0]
        largest.shape, largest.type = ir.Shape([]), ir.TensorType(ir.DataType.FLOAT)
        copy.graph.extend(nodes)
        copy.graph.outputs.append(largest)
    return copy


def _open(model: ir.Model, path: Path) -> Any:
    """Open a session on a model, whose weights lie in a file of their own, as those of ViT-g are beyond 2 GB."""
    ir.save(model, path, external_data=f"{path.name}.data")
    return open_session(path, threads=usable_cores(), fuse_qdq=False)


def _largest(session: Any, names: list[str], batch: NDArray[np.float32]) -> dict[str, float]:
    results = session.run(None, {session.get_inputs()[0].name: batch})
    reduced = dict(zip(names, map(float, results[-len(names) :]), strict=True))
    outputs = zip((output.name for output in session.get_outputs()), results[: -len(names)], strict=False)
    return reduced | {name: float(np.abs(array).max()) for name, array in outputs}
