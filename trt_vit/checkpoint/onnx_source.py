"""An .onnx file as the source: checked, completed with preprocessing and labels, copied into one file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from trt_vit.checkpoint.export import MAX_EMBEDDED_BYTES, Export, agreed_image_size
from trt_vit.checkpoint.files import needs_export_extra, read_json_object, sha256_of, staged, writing
from trt_vit.checkpoint.labels import labels_from_config, labels_from_file
from trt_vit.checkpoint.metadata import metadata_of, stored_checkpoint, stored_labels, stored_preprocessing
from trt_vit.checkpoint.preprocessing import PREPROCESSOR_FILE, read_preprocessing
from trt_vit.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from trt_vit.checkpoint.source import Checkpoint
    from trt_vit.images.preprocessing import Preprocessing

_GRAPH_HINT = (
    "export the classifier with one float32 image input [batch, 3, height, width] and one output [batch, classes]"
)
_RUNTIME_QUANTIZED = frozenset({"DynamicQuantizeLinear", "QLinearMatMul", "MatMulInteger", "QLinearConv", "QGemm"})
_IMAGE_RANK = 4
_LOGITS_RANK = 2


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
    model = _load(checkpoint.path)
    where = checkpoint.source
    input_name, batch, image_size = _image_input(model, where)
    output_name, classes = _logits_output(model, where)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    origin = stored_checkpoint(metadata, where=where)
    preprocessing = _preprocessing(checkpoint.path, metadata, preprocessor, where)
    agreed_image_size(preprocessing, image_size, where=where)
    export = Export(
        path=output,
        source=checkpoint.source,
        kind=checkpoint.kind,
        revision=_text(origin, "revision"),
        preprocessing=preprocessing,
        labels=_labels(checkpoint.path, metadata, labels, classes, where),
        input_name=input_name,
        output_name=output_name,
        image_size=image_size,
        classes=classes,
        batch=batch,
        quantized=_is_quantized(model, where),
        opset=_opset(model, where),
        max_abs_difference=None,
        architecture=_text(origin, "architecture"),
        model_type=_text(origin, "model_type"),
        weights_sha256=sha256_of(_files(checkpoint.path)),
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


def _load(path: Path) -> onnx.ModelProto:
    with needs_export_extra():
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path)
        try:
            onnx.checker.check_model(path)
        except onnx.checker.ValidationError as error:
            if "topologically sorted" not in str(error):
                raise
            model = _sorted(model)  # some converters leave nodes before what they read
    except DecodeError as error:
        raise CheckpointError(
            f"{path}: not an ONNX file, or a truncated one", hint="export or download it again"
        ) from error
    except onnx.checker.ValidationError as error:
        reason = next(iter(str(error).strip().splitlines()), "no details")
        raise CheckpointError(
            f"{path}: not a valid ONNX model: {reason}",
            hint="export it again; external weights must lie beside the file",
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path}: {' '.join(str(error).split())}",
            hint="its external weights are incomplete: export or download them again",
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror}", hint="pass a readable file with its external weights beside it"
        ) from error
    return model


def _sorted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put every node after what it reads, and check what the checker has not come to."""
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes.common import TopologicalSortPass

    in_order = ir.from_proto(model)
    TopologicalSortPass()(in_order)
    proto: onnx.ModelProto = ir.to_proto(in_order)
    onnx.checker.check_model(proto)
    return proto


def _image_input(model: onnx.ModelProto, where: str) -> tuple[str, int | None, tuple[int, int]]:
    """Name, fixed batch or None, and height and width of the one input."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
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
    return inputs[0].name, batch, (height, width)


def _logits_output(model: onnx.ModelProto, where: str) -> tuple[str, int]:
    outputs = list(model.graph.output)
    if len(outputs) != 1:
        names = ", ".join(value.name for value in outputs) or "none"
        raise CheckpointError(f"{where}: expected one output, found {len(outputs)}: {names}", hint=_GRAPH_HINT)
    shape = _shape(outputs[0], where)
    if len(shape) != _LOGITS_RANK or shape[1] is None:
        raise CheckpointError(
            f"{where}: the output {outputs[0].name} has the shape {_spell(shape)}, not [batch, classes]",
            hint=_GRAPH_HINT,
        )
    return outputs[0].name, shape[1]


def _shape(value: onnx.ValueInfoProto, where: str) -> list[int | None]:
    """The dimensions of a float32 tensor, None for one that is dynamic."""
    import onnx

    tensor = value.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        found = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise CheckpointError(f"{where}: {value.name} is {found}, not float32", hint=_GRAPH_HINT)
    return [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]


def _spell(shape: list[int | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _preprocessing(path: Path, metadata: dict[str, str], given: Path | None, where: str) -> Preprocessing:
    beside = path.parent / PREPROCESSOR_FILE
    if given is None and (stored := stored_preprocessing(metadata, where=where)) is not None:
        return stored
    if given is None and not beside.is_file():
        raise CheckpointError(
            f"{where}: neither its metadata nor a {PREPROCESSOR_FILE} beside it says how to prepare images",
            hint=f"pass --preprocessor FILE, the {PREPROCESSOR_FILE} the model was trained with",
        )
    config = path.parent / "config.json"
    model_type = _text(read_json_object(config), "model_type") if config.is_file() else None
    return read_preprocessing(given or beside, model_type=model_type)


def _labels(path: Path, metadata: dict[str, str], given: Path | None, classes: int, where: str) -> tuple[str, ...]:
    if given is not None:
        return labels_from_file(given, classes=classes)
    if (stored := stored_labels(metadata, classes=classes, where=where)) is not None:
        return stored
    config = path.parent / "config.json"
    if config.is_file():
        return labels_from_config(read_json_object(config), classes=classes, path=config)
    raise CheckpointError(
        f"{where}: neither its metadata nor a config.json beside it names its {classes} classes",
        hint="pass --labels FILE, one label a line in the order of the model's classes",
    )


def _text(values: dict[str, Any], key: str) -> str | None:
    value = values.get(key)
    return value if isinstance(value, str) else None


def _opset(model: onnx.ModelProto, where: str) -> int:
    for entry in model.opset_import:
        if entry.domain in {"", "ai.onnx"}:
            return int(entry.version)
    raise CheckpointError(f"{where}: no version of the default operator set", hint=_GRAPH_HINT)


def _is_float(tensor: onnx.TensorProto) -> bool:
    import onnx

    kinds = onnx.TensorProto
    return tensor.data_type in {kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE}


def _files(path: Path) -> list[Path]:
    """The .onnx file, then the files of its external weights in the order of their names."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    names = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    return [path, *(path.parent / name for name in sorted(names))]


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
