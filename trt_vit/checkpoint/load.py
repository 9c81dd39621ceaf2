"""The one entrance of the build flow: whatever SOURCE is, an ONNX file comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_vit.checkpoint.export import Export, export_onnx
from trt_vit.checkpoint.graph import OPSET
from trt_vit.checkpoint.onnx_source import copy_onnx
from trt_vit.checkpoint.source import resolve
from trt_vit.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path


def to_onnx(
    source: str,
    output: Path,
    *,
    revision: str | None = None,
    preprocessor: Path | None = None,
    labels: Path | None = None,
    opset: int = OPSET,
) -> Export:
    """Turn a Hugging Face id, a checkpoint directory or an .onnx file into one ONNX file with all a build needs.

    Args:
        source: Hugging Face id, directory or .onnx file.
        output: The ONNX file to write; missing directories are made.
        revision: Branch, tag or commit of a hub id.
        preprocessor: A preprocessor_config.json to use instead of the source's.
        labels: A text file with one label a line to use instead of the source's.
        opset: Version of the default ONNX operator set of an export; an .onnx file keeps its own.

    Raises:
        UsageError: ``source`` names nothing, or another argument does not go with it.
        CheckpointError: The source is not a complete image classifier with known preprocessing and labels.
        ExportError: The exported graph disagrees with the model.
        EnvironmentFault: A package of the export extra is missing, or the hub cannot be reached.
        OutputError: ``output`` cannot be written.
    """
    if output.is_dir():
        raise OutputError(f"cannot write {output}: it is a directory", hint="name a file in it")
    checkpoint = resolve(source, revision=revision)
    if checkpoint.kind == "onnx":
        return copy_onnx(checkpoint, output, preprocessor=preprocessor, labels=labels)
    return export_onnx(checkpoint, output, preprocessor=preprocessor, labels=labels, opset=opset)
