"""A small model for the readers of ONNX, and changes to it that keep it a message that parses."""

from __future__ import annotations

import functools
from typing import Any

CLASSES = 4
EDGE = 8
_NOT_UTF8 = "~not-utf-8~"
"""Stands for bytes that protobuf's own interface would not take for a text."""
_INTEGERS = (0, 1, -1, 2, 3, 8, 18, 99, 2**16, 2**31 - 1, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
_TEXTS = (
    "", ".", "..", "images", "logits", "outside", "weights.bin", "../weights.bin", "/etc/passwd", "a/b", "\0",
    "\x1b[31m", "x\ny", _NOT_UTF8, "x" * 5000, "0", "-1", "48", "1e3", "9" * 5000, "\u0660", "location", "offset",
    "length",
    "trt_vit.labels", "trt_vit.checkpoint", "trt_vit.preprocessing", '["a", "b", "c", "d"]', '["\\u001b"]',
    '["\\ud800"]', "[" * 2000, "{}", "null", '{"architecture": "\\u001b"}',
    '{"resize": {"kind": "squash", "size": [8, 8]}}',
    "Constant", "If", "MatMulInteger", "DequantizeLinear", "ai.onnx", "com.microsoft", "batch",
)  # fmt: skip


def weights() -> bytes:
    """What lies in weights.bin beside the model."""
    import numpy as np

    return np.arange(3 * CLASSES, dtype=np.float32).tobytes()


@functools.cache
def small_model() -> bytes:
    """A classifier with weights of each kind: in the graph, beside the file, in a constant, and in a branch."""
    import onnx
    from onnx import helper

    kind = onnx.TensorProto
    outside = kind(name="outside", data_type=kind.FLOAT, dims=[3, CLASSES], data_location=kind.EXTERNAL)
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", str(len(weights())))):
        outside.external_data.add(key=key, value=value)
    inside = helper.make_tensor("inside", kind.FLOAT, [CLASSES], bytes(4 * CLASSES), raw=True)
    constant = helper.make_tensor("value", kind.FLOAT, [CLASSES], [0.0] * CLASSES)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["sum"], ["branch_out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("branch_out", kind.FLOAT, None)],
    )
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0, name="mean"),
        helper.make_node("MatMul", ["means", "outside"], ["product"], name="fc"),
        helper.make_node("Constant", [], ["constant"], value=constant),
        helper.make_node("Add", ["product", "inside"], ["partial"]),
        helper.make_node("Add", ["partial", "constant"], ["sum"]),
        helper.make_node("If", ["yes"], ["logits"], then_branch=branch, else_branch=branch),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("images", kind.FLOAT, ["batch", 3, EDGE, EDGE])],
        [helper.make_tensor_value_info("logits", kind.FLOAT, ["batch", CLASSES])],
        [outside, inside, helper.make_tensor("yes", kind.BOOL, [], [True])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="by-hand")
    model.metadata_props.add(key="author", value="nobody")
    data: bytes = model.SerializeToString()
    return data


class _Source:
    """Numbers from bytes, and zeros where these have ended."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def below(self, count: int) -> int:
        taken = self._data[self._at : self._at + 2]
        self._at += 2
        return int.from_bytes(taken, "little") % count

    def chosen(self, values: Any) -> Any:
        return values[self.below(len(values))]

    def rest(self) -> bytes:
        return self._data[self._at :]


def edited(data: bytes) -> bytes:
    """The small model after some changes that ``data`` choose, each of any field anywhere in it."""
    import onnx

    source = _Source(data)
    model = onnx.ModelProto.FromString(small_model())
    for _ in range(source.below(8)):
        _change(source.chosen(_messages(model)), source)
    serialized: bytes = model.SerializeToString()
    return serialized.replace(_NOT_UTF8.encode(), b"\xff\xfe\x80" + bytes(len(_NOT_UTF8) - 3))


def needs_files(data: bytes) -> bool:
    """Whether any tensor of a model lies in another file."""
    import onnx

    tensors = [message for message in _messages(onnx.ModelProto.FromString(data)) if hasattr(message, "data_location")]
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors)


def _messages(model: Any) -> list[Any]:
    found: list[Any] = []
    waiting = [model]
    while waiting:
        message = waiting.pop()
        found.append(message)
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if hasattr(value, "ListFields") else value)
    return found


def _change(message: Any, source: _Source) -> None:
    field = source.chosen(message.DESCRIPTOR.fields)
    value = getattr(message, field.name)
    repeated = hasattr(value, "extend")
    if field.message_type is not None:
        _change_messages(message, field.name, value if repeated else None, source)
    elif not repeated:
        setattr(message, field.name, _scalar(field, source))
    elif source.below(3) == 0 and len(value):
        del value[source.below(len(value))]
    else:
        value.append(_scalar(field, source))


def _change_messages(message: Any, name: str, values: Any, source: _Source) -> None:
    how = source.below(3)
    if values is None:
        if how == 0:
            message.ClearField(name)
        else:
            getattr(message, name).SetInParent()
    elif how == 0 or not len(values):
        values.add()
    elif how == 1:
        del values[source.below(len(values))]
    else:
        copied = type(source.chosen(values))()
        copied.CopyFrom(source.chosen(values))
        values.append(copied)


def _scalar(field: Any, source: _Source) -> Any:
    if field.type == field.TYPE_STRING:
        return source.chosen(_TEXTS)
    if field.type == field.TYPE_BYTES:
        return bytes(source.below(64))
    if field.type in {field.TYPE_FLOAT, field.TYPE_DOUBLE}:
        return source.chosen((0.0, 1.0, float("nan"), float("inf")))
    if field.type == field.TYPE_ENUM:
        return source.chosen([value.number for value in field.enum_type.values])
    bits = 31 if field.type == field.TYPE_INT32 else 63
    least = 0 if field.type in {field.TYPE_UINT64, field.TYPE_UINT32} else -(2**bits)
    return min(max(source.chosen(_INTEGERS), least), 2**bits - 1)
