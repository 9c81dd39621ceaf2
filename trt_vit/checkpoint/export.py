"""A checkpoint in the Hugging Face layout becomes one ONNX file that knows its preprocessing, labels and origin."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from trt_vit.checkpoint.files import needs_export_extra, staged, writing
from trt_vit.checkpoint.graph import OPSET, check_opset, max_abs_difference, reference_logits, trace
from trt_vit.checkpoint.labels import labels_from_config, labels_from_file
from trt_vit.checkpoint.metadata import metadata_of
from trt_vit.checkpoint.model import load_model, read_config
from trt_vit.checkpoint.preprocessing import read_preprocessing
from trt_vit.errors import CheckpointError, ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from trt_vit.checkpoint.source import Checkpoint, Kind
    from trt_vit.images.preprocessing import Preprocessing

INPUT_NAME = "pixel_values"
OUTPUT_NAME = "logits"
TOLERANCE = 1e-3
"""Largest difference of a logit between torch and the exported graph, both in float32, that passes for rounding."""
MAX_EMBEDDED_BYTES = 2**31 - 2**24
"""Weights above this go to a file beside the model: a protobuf message ends at 2 GiB, some of it for the graph."""


@dataclass(frozen=True)
class Export:
    """An ONNX file and all that the manifest of a bundle says about where it came from.

    Attributes:
        path: The ONNX file.
        source: SOURCE as it was given.
        kind: What SOURCE was.
        revision: Commit hash of a hub checkpoint.
        preprocessing: What happens to an image before the model sees it.
        labels: Names of the classes, in the order of the logits.
        input_name: Name of the input, float32 of shape [batch, 3, height, width].
        output_name: Name of the output, float32 of shape [batch, classes].
        image_size: Height and width in pixels.
        classes: How many logits an image gets.
        batch: The batch size the graph is fixed to, or None where any will do.
        quantized: Whether the graph came with Q/DQ nodes.
        opset: Version of the default ONNX operator set.
        max_abs_difference: Largest difference of a logit from torch's on random images; None for a file made elsewhere.
        architecture: Class of the model in transformers, where known.
        model_type: ``model_type`` of its configuration, where known.
        weights_sha256: SHA-256 of the files the weights were read from.
        parameters: How many weights the model has.
        versions: Versions of the packages that made the graph, by name.
    """

    path: Path
    source: str
    kind: Kind
    revision: str | None
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    input_name: str
    output_name: str
    image_size: tuple[int, int]
    classes: int
    batch: int | None
    quantized: bool
    opset: int
    max_abs_difference: float | None
    architecture: str | None
    model_type: str | None
    weights_sha256: str
    parameters: int
    versions: Mapping[str, str] = field(default_factory=dict)


def export_onnx(
    checkpoint: Checkpoint,
    output: Path,
    *,
    preprocessor: Path | None = None,
    labels: Path | None = None,
    opset: int = OPSET,
) -> Export:
    """Export a checkpoint directory to ONNX and check the file against torch.

    Nothing is left at ``output`` unless the exported graph agrees with the model.

    Args:
        checkpoint: A resolved checkpoint of kind "hub" or "directory".
        output: The ONNX file to write. Weights of 2 GiB and more go to ``output`` + ".data".
        preprocessor: A preprocessor_config.json to use instead of the checkpoint's.
        labels: A text file with one label a line to use instead of the checkpoint's.
        opset: Version of the default ONNX operator set, 18 or later.

    Raises:
        CheckpointError: The checkpoint is not a complete image classifier with known preprocessing.
        ExportError: torch cannot export the model, or the graph disagrees with it.
        EnvironmentFault: A package of the export extra is missing.
        OutputError: ``output`` cannot be written.
        UsageError: ``opset`` is not one that can be exported.
    """
    with needs_export_extra():
        import onnxscript  # noqa: F401  # torch asks for it only when it exports
        import torch  # noqa: F401

        check_opset(opset)
    config = read_config(checkpoint)
    preprocessing = read_preprocessing(preprocessor or checkpoint.path, model_type=config["model_type"])
    where = str(preprocessor or checkpoint.source)
    model = load_model(checkpoint)
    image_size = agreed_image_size(preprocessing, model.image_size, where=where)
    references = reference_logits(model.module, image_size)
    classes = references[0].logits.shape[1]
    draft = Export(
        path=output,
        source=checkpoint.source,
        kind=checkpoint.kind,
        revision=checkpoint.revision,
        preprocessing=preprocessing,
        labels=labels_from_file(labels, classes=classes)
        if labels is not None
        else labels_from_config(config, classes=classes, path=checkpoint.path / "config.json"),
        input_name=INPUT_NAME,
        output_name=OUTPUT_NAME,
        image_size=image_size,
        classes=classes,
        batch=None,
        quantized=False,
        opset=opset,
        max_abs_difference=None,
        architecture=model.architecture,
        model_type=model.model_type,
        weights_sha256=model.weights_sha256,
        parameters=model.parameters,
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnx", "onnxscript")},
    )
    program = trace(model.module, image_size, opset=opset, input_name=INPUT_NAME, output_name=OUTPUT_NAME)
    with staged(output) as stage:
        _write(program, stage, draft)
        difference = max_abs_difference(stage, references)
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{checkpoint.source}: the exported graph's logits differ from torch's by {difference:.2g}, "
                f"more than {TOLERANCE:g}",
                hint="check the weights for values that are not finite, or try another version of torch",
            )
    return replace(draft, max_abs_difference=difference)


def agreed_image_size(preprocessing: Preprocessing, expected: tuple[int, int] | None, *, where: str) -> tuple[int, int]:
    """The one size that the preprocessing gives and the model takes, as height and width in pixels.

    Args:
        preprocessing: What happens to an image before the model sees it.
        expected: What the model takes, or None where any size will do.
        where: What to name in messages.

    Raises:
        CheckpointError: The preprocessing gives images of different sizes, or another size than ``expected``.
    """
    given = preprocessing.output_size
    hint = "correct size or crop_size in preprocessor_config.json, or in a copy of it passed with --preprocessor FILE"
    if given is None:
        raise CheckpointError(f"{where}: the preprocessing gives every image another size", hint=hint)
    if expected is not None and given != expected:
        raise CheckpointError(
            f"{where}: the preprocessing gives {given[0]}x{given[1]} pixels (height x width), "
            f"but the model takes {expected[0]}x{expected[1]}",
            hint=hint,
        )
    return given


def _write(program: torch.onnx.ONNXProgram, stage: Path, export: Export) -> None:
    model = program.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with the paths of this machine
    model.graph.metadata_props.clear()
    model.metadata_props.update(metadata_of(export))
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    with writing(export.path):
        program.save(stage, external_data=size > MAX_EMBEDDED_BYTES)
