"""An .onnx file as the source: checked, completed with preprocessing and labels, copied into one file."""

from __future__ import annotations

import hashlib
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trt_vit.checkpoint.export import MAX_EMBEDDED_BYTES, Export, agreed_image_size
from trt_vit.checkpoint.files import bytes_of, needs_export_extra, quiet, staged, take_in, writing
from trt_vit.checkpoint.metadata import find_labels, find_preprocessing, metadata_of, stored_checkpoint, text_of
from trt_vit.engine.manifest import MAX_BATCH, MAX_CLASSES
from trt_vit.errors import CheckpointError
from trt_vit.images.preprocessing import MAX_EDGE
from trt_vit.reading import is_plain, plain, quoted, read_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import onnx

    from trt_vit.checkpoint.source import Checkpoint

_GRAPH_HINT = (
    "export the classifier with one float32 image input [batch, 3, height, width] and one output [batch, classes]"
)
_RUNTIME_QUANTIZED = frozenset({"DynamicQuantizeLinear", "QLinearMatMul", "MatMulInteger", "QLinearConv", "QGemm"})
_IMAGE_RANK = 4
_LOGITS_RANK = 2
_MOST_BYTES = 2**31
"""What a protobuf message may have."""
_LONGEST_NAME = 1000
_SHOWN = 8
"""Inputs, outputs or sizes that a message names."""
_FREE_TEXTS = frozenset({"doc_string", "key", "value"})
"""Fields with texts that name nothing and are not shown: notes, and what metadata holds."""
_LONGEST_REASON = 500


def copy_onnx(checkpoint: Checkpoint, output: Path, *, preprocessor: Path | None, labels: Path | None) -> Export:
    """Check an .onnx file and copy it, with its external weights and what was found about it, into one file.

    Preprocessing comes from ``preprocessor``, the file's own metadata, or a preprocessor_config.json beside it, in this
    order; labels from ``labels``, the metadata, or the config.json beside it. A graph with a fixed batch keeps it.

    Args:
        checkpoint: A resolved checkpoint of kind "onnx".
        output: The ONNX file to write. Weights of 2 GiB and more go to ``output`` + ".data".
        preprocessor: A preprocessor_config.json.
        labels: A text file with one label a line.

    Raises:
        CheckpointError: The file is not a valid image classifier, or nothing says what its preprocessing or labels are.
        EnvironmentFault: onnx is missing.
        OutputError: ``output`` cannot be written.
    """
    model, weights_sha256 = _load(checkpoint.path)
    where = checkpoint.source
    input_name, batch, image_size = _image_input(model, where)
    output_name, classes = _logits_output(model, where)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    origin = stored_checkpoint(metadata, where=where)
    preprocessing = find_preprocessing(checkpoint.path, metadata, preprocessor, where)
    agreed_image_size(preprocessing, image_size, where=where)
    export = Export(
        path=output,
        source=checkpoint.source,
        kind=checkpoint.kind,
        revision=text_of(origin, "revision"),
        preprocessing=preprocessing,
        labels=find_labels(checkpoint.path, metadata, labels, classes, where),
        input_name=input_name,
        output_name=output_name,
        image_size=image_size,
        classes=classes,
        batch=batch,
        quantized=_is_quantized(model, where),
        opset=_opset(model, where),
        max_abs_difference=None,
        architecture=text_of(origin, "architecture"),
        model_type=text_of(origin, "model_type"),
        weights_sha256=weights_sha256,
        parameters=sum(math.prod(tensor.dims) for tensor in model.graph.initializer if _is_float(tensor)),
        versions={model.producer_name: model.producer_version} if model.producer_name else {},
    )
    _write(model, export)
    return export


def _is_quantized(model: onnx.ModelProto, where: str) -> bool:
    """Tell whether a graph holds Q/DQ nodes: explicit quantization, which every runtime reads.

    Raises:
        CheckpointError: It is quantized by operators of one runtime, which others do not have.
    """
    kinds = {node.op_type for node in model.graph.node}
    if kinds & _RUNTIME_QUANTIZED:
        message = f"{where} is quantized for one runtime: it has {min(kinds & _RUNTIME_QUANTIZED)} nodes"
        raise CheckpointError(message, hint="pass the model from before its quantization, or one with Q/DQ nodes")
    return "DequantizeLinear" in kinds


def _load(path: Path) -> tuple[onnx.ModelProto, str]:
    """Return the model with its external weights in it, and the SHA-256 of the bytes that all of it was read from."""
    with needs_export_extra():
        import onnx
        import onnx_ir as ir
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        data = read_file(path, _MOST_BYTES)
        digest = hashlib.sha256(data)
        model = onnx.load_model_from_string(data)
        _refuse_odd_names(model, path)
        tensors = [message for message in _messages(model) if _is_tensor(message)]
        external = [tensor for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL]
        checked = path if external else model  # onnx looks for weights beside the file
        take_in(external, path, digest)
        _refuse_odd_sizes(tensors, path)
        try:
            onnx.checker.check_model(checked)
        except onnx.checker.ValidationError as error:
            if "topologically sorted" not in str(error):
                raise
            model = _sorted(model)  # some converters leave nodes before what they read
        with _failures_of_ir():
            ir.from_proto(model)  # as every later step of a build does
    except DecodeError as error:
        raise CheckpointError(
            f"{path}: not an ONNX file, or a truncated one", hint="export or download it again"
        ) from error
    except onnx.checker.ValidationError as error:
        raise CheckpointError(
            f"{path}: not a valid ONNX model: {_first_line(error)}",
            hint="export it again; external weights must lie beside the file",
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {_first_line(error)}", hint="export or download it again") from error
    except OSError as error:
        where = f"its file {quoted(error.filename)} " if error.filename not in {None, str(path)} else ""
        raise CheckpointError(
            f"{path}: {where}cannot be read: {error.strerror}",
            hint="pass a readable file with its external weights beside it",
        ) from error
    return model, digest.hexdigest()


def _first_line(error: Exception) -> str:
    return next(iter(plain(str(error).strip().partition("\n")[0])[:_LONGEST_REASON].splitlines()), "no details")


def _messages(outer: Any) -> Iterator[Any]:
    """Every message in a model or graph, wherever it may stand: in subgraphs, functions or sparse tensors, say."""
    waiting: list[Any] = [outer]
    while waiting:
        message = waiting.pop()
        yield message
        if _is_tensor(message):  # whose other fields are numbers, which listing them would copy
            waiting.extend((*message.external_data, *message.metadata_props))
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if hasattr(value, "ListFields") else value)


def _is_tensor(message: Any) -> bool:
    return bool(message.DESCRIPTOR.name == "TensorProto")


def _texts(message: Any) -> Iterator[tuple[str, str | bytes]]:
    """The texts of one message with the names of their fields; bytes where a text is not UTF-8."""
    if _is_tensor(message):
        yield from (("name", message.name), ("doc_string", message.doc_string))
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            yield from ((field.name, text) for text in ([value] if isinstance(value, str | bytes) else value))


def _refuse_odd_names(model: onnx.ModelProto, path: Path) -> None:
    """Refuse names that are no text, or that act on whatever shows them: messages and reports name nodes and tensors.

    Raises:
        CheckpointError: There is one.
    """
    for message in _messages(model):
        for kind, text in _texts(message):
            if isinstance(text, str) and (kind in _FREE_TEXTS or (is_plain(text) and len(text) <= _LONGEST_NAME)):
                continue
            raise CheckpointError(f"{path}: it holds the name {quoted(text)}", hint="export it again with plain names")
    if any(getattr(message, "ref_attr_name", "") for message in _messages(model.graph)):
        message = f"{path}: a node refers to an attribute of a function, and is in none"
        raise CheckpointError(message, hint="export it again without functions")


def _refuse_odd_sizes(tensors: list[onnx.TensorProto], path: Path) -> None:
    """Refuse tensors with more or fewer bytes than their shape and type need, which not every onnx does.

    Raises:
        CheckpointError: There is one.
    """
    for tensor in tensors:
        size, needed = len(tensor.raw_data), bytes_of(tensor)
        if tensor.HasField("segment") or (tensor.HasField("raw_data") and size != needed):
            message = f"{path}: the tensor {tensor.name} has {size} bytes, or a part, of the {needed} of its shape"
            raise CheckpointError(message, hint="export or download it again")


@contextmanager
def _failures_of_ir() -> Iterator[None]:
    """Raise what onnx_ir cannot read or write as a ValueError, as onnx does, and keep its warnings silent.

    Raises:
        ValueError: It could not.
    """
    import onnx_ir as ir

    try:
        with quiet():
            yield
    except ir.serde.SerdeError as error:
        raise ValueError(f"not a valid ONNX model: {error}") from error


def _sorted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put every node after what it reads, and check what the checker has not come to."""
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes.common import TopologicalSortPass

    with _failures_of_ir():
        in_order = ir.from_proto(model)
        TopologicalSortPass()(in_order)
        proto: onnx.ModelProto = ir.to_proto(in_order)
    onnx.checker.check_model(proto)
    return proto


def _some_names(values: list[onnx.ValueInfoProto]) -> str:
    return ", ".join(value.name for value in values[:_SHOWN]) + (", ..." if values[_SHOWN:] else "") or "none"


def _image_input(model: onnx.ModelProto, where: str) -> tuple[str, int | None, tuple[int, int]]:
    """Name, fixed batch or None, and height and width of the one input."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = _some_names(inputs)
        raise CheckpointError(f"{where}: expected one input, found {len(inputs)}: {names}", hint=_GRAPH_HINT)
    shape = _shape(inputs[0], where)
    if len(shape) != _IMAGE_RANK or shape[1] != 3:  # noqa: PLR2004  # red, green and blue
        raise CheckpointError(
            f"{where}: the input {inputs[0].name} has the shape {_spell(shape)}, not [batch, 3, height, width]",
            hint=_GRAPH_HINT,
        )
    batch, _, height, width = shape
    if height is None or width is None:
        raise CheckpointError(
            f"{where}: the input {inputs[0].name} has no fixed height and width: {_spell(shape)}",
            hint="export it with a fixed image size; only the batch may be dynamic",
        )
    if max(height, width) > MAX_EDGE or (batch or 1) > MAX_BATCH:
        message = f"{where}: the input {inputs[0].name} has the shape {_spell(shape)}"
        raise CheckpointError(message, hint=f"pixels go up to {MAX_EDGE} a side, and images to {MAX_BATCH} a batch")
    return inputs[0].name, batch, (height, width)


def _logits_output(model: onnx.ModelProto, where: str) -> tuple[str, int]:
    outputs = list(model.graph.output)
    if len(outputs) != 1:
        names = _some_names(outputs)
        raise CheckpointError(f"{where}: expected one output, found {len(outputs)}: {names}", hint=_GRAPH_HINT)
    shape = _shape(outputs[0], where)
    if len(shape) != _LOGITS_RANK or shape[1] is None:
        raise CheckpointError(
            f"{where}: the output {outputs[0].name} has the shape {_spell(shape)}, not [batch, classes]",
            hint=_GRAPH_HINT,
        )
    if shape[1] > MAX_CLASSES:
        raise CheckpointError(f"{where}: the model has {shape[1]} classes", hint=f"{MAX_CLASSES} are the most")
    return outputs[0].name, shape[1]


def _shape(value: onnx.ValueInfoProto, where: str) -> list[int | None]:
    """The dimensions of a float32 tensor, None for one that is dynamic."""
    import onnx
    import onnx_ir as ir

    tensor = value.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        found = ir.DataType(tensor.elem_type).name
        raise CheckpointError(f"{where}: {value.name} is {found}, not float32", hint=_GRAPH_HINT)
    return [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]


def _spell(shape: list[int | None]) -> str:
    sizes = ["?" if size is None else str(size) for size in shape[:_SHOWN]]
    return f"[{', '.join(sizes)}{', ...' if shape[_SHOWN:] else ''}]"


def _opset(model: onnx.ModelProto, where: str) -> int:
    for entry in model.opset_import:
        if entry.domain in {"", "ai.onnx"}:
            return int(entry.version)
    raise CheckpointError(f"{where}: no version of the default operator set", hint=_GRAPH_HINT)


def _is_float(tensor: onnx.TensorProto) -> bool:
    import onnx

    kinds = onnx.TensorProto
    return tensor.data_type in {kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE}


def _write(model: onnx.ModelProto, export: Export) -> None:
    import onnx

    onnx.helper.set_model_props(model, {e.key: e.value for e in model.metadata_props} | metadata_of(export))
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    with staged(export.path) as stage, writing(export.path):
        onnx.save(
            model,
            stage,
            save_as_external_data=size > MAX_EMBEDDED_BYTES,
            location=f"{stage.name}.data",
        )
