"""What an exported ONNX file says about itself, so that it can be built later without the checkpoint or any flag."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import ValidationError

from trt_vit.errors import CheckpointError
from trt_vit.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trt_vit.checkpoint.export import Export

PREPROCESSING_KEY = "trt_vit.preprocessing"
LABELS_KEY = "trt_vit.labels"
CHECKPOINT_KEY = "trt_vit.checkpoint"

_HINT = "pass --preprocessor FILE and --labels FILE, or export the checkpoint again"


def metadata_of(export: Export) -> dict[str, str]:
    """The entries for ``metadata_props`` of the ONNX file."""
    checkpoint = {
        "source": export.source,
        "revision": export.revision,
        "architecture": export.architecture,
        "model_type": export.model_type,
        "weights_sha256": export.weights_sha256,
        "versions": dict(export.versions),
    }
    return {
        PREPROCESSING_KEY: export.preprocessing.model_dump_json(),
        LABELS_KEY: json.dumps(export.labels, ensure_ascii=False),
        CHECKPOINT_KEY: json.dumps(checkpoint, ensure_ascii=False),
    }


def stored_preprocessing(metadata: Mapping[str, str], *, where: str) -> Preprocessing | None:
    """The preprocessing in an ONNX file's metadata, or None where it has none.

    Raises:
        CheckpointError: The entry is not one that this package wrote.
    """
    text = metadata.get(PREPROCESSING_KEY)
    if text is None:
        return None
    try:
        return Preprocessing.model_validate_json(text)
    except ValidationError as error:
        raise CheckpointError(f"{where}: its metadata {PREPROCESSING_KEY} cannot be read", hint=_HINT) from error


def stored_labels(metadata: Mapping[str, str], *, classes: int, where: str) -> tuple[str, ...] | None:
    """The labels in an ONNX file's metadata, or None where it has none.

    Raises:
        CheckpointError: The entry is not a list of ``classes`` texts.
    """
    text = metadata.get(LABELS_KEY)
    if text is None:
        return None
    labels = _parse(text, LABELS_KEY, where)
    if not isinstance(labels, list) or len(labels) != classes or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(f"{where}: its metadata {LABELS_KEY} is not a list of {classes} labels", hint=_HINT)
    return tuple(labels)


def stored_checkpoint(metadata: Mapping[str, str], *, where: str) -> dict[str, object]:
    """What the metadata says about the checkpoint the file was exported from; empty where it says nothing.

    Raises:
        CheckpointError: The entry is not a JSON object.
    """
    value = _parse(metadata.get(CHECKPOINT_KEY, "{}"), CHECKPOINT_KEY, where)
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: its metadata {CHECKPOINT_KEY} is not an object", hint=_HINT)
    return value


def _parse(text: str, key: str, where: str) -> object:
    try:
        value: object = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{where}: its metadata {key} is not JSON", hint=_HINT) from error
    return value
