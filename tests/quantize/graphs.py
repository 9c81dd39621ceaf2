"""Small graphs for the tests of precision, and what runs them on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from trt_vit.quantize.equalize import Methods, Numbers
from trt_vit.quantize.linear import groups, linear_layers
from trt_vit.quantize.qdq import place
from trt_vit.quantize.solve import reason_to_leave_out, solve
from trt_vit.quantize.statistics import measure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from trt_vit.quantize.codes import Code
    from trt_vit.quantize.solve import GroupCodes

OPSET = 21
PLAIN = Methods(equalize=False, ranges="max", round_together=False, correct_biases=False)
"""Nothing done for accuracy: ranges that clip nothing, each weight rounded to its nearest code."""


def graph_of(
    nodes: Sequence[Any],
    weights: Mapping[str, NDArray[Any]],
    *,
    given: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    opset: int = OPSET,
) -> ir.Model:
    """A checked float32 model of some nodes."""
    graph = helper.make_graph(
        list(nodes),
        "hand-made",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in given.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    onnx.checker.check_model(proto, full_check=True)
    model: ir.Model = ir.from_proto(proto)
    return model


def check(model: ir.Model) -> None:
    """Raise what the full checker says, types and shapes included."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def evaluate(model: ir.Model, *images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a graph in ONNX Runtime and return its first output.

    Q/DQ nodes are run one by one: the INT8 products that they would become saturate at 16 bits on a CPU without VNNI.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    serialised = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(serialised, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return np.asarray(session.run(None, dict(zip(names, images, strict=True)))[0])


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The least cosine similarity of two batches of logits."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.min(np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))))


def node(model: ir.Model, kind: str, number: int = 0) -> ir.Node:
    """The nth node of an operator."""
    return [node for node in model.graph if node.op_type == kind][number]


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def array(value: ir.Value | None) -> NDArray[Any]:
    """The values of a weight."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def dtypes(values: Sequence[ir.Value | None]) -> list[str]:
    """The types of the float tensors among some, by their short names (f32, f16, bf16)."""
    found = [value.dtype for value in values if value is not None and value.dtype is not None]
    return [dtype.short_name() for dtype in found if dtype.is_floating_point()]


def quantized(
    model: ir.Model,
    batches: Sequence[NDArray[np.float32]],
    number: Code = "int8",
    weights: Code | None = None,
    methods: Methods = PLAIN,
) -> list[GroupCodes]:
    """Quantize every linear layer of a graph that can be, in place, and return what each group of them became."""
    statistics = measure(model, batches, images=sum(len(batch) for batch in batches))
    numbers = Numbers(number, weights or number)
    solved = [
        solve(group, statistics, numbers, methods)
        for group in groups(linear_layers(model))
        if reason_to_leave_out(group, statistics, number) is None
    ]
    place(model, solved)
    return solved
