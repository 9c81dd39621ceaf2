"""What an exported ONNX file says about itself, so that it can be built later without the checkpoint or any flag."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import ValidationError

from trt_vit.checkpoint.files import read_json_object, refuse_links_outside
from trt_vit.checkpoint.labels import is_label, labels_from_config, labels_from_file
from trt_vit.checkpoint.preprocessing import PREPROCESSOR_FILE, read_preprocessing
from trt_vit.errors import CheckpointError
from trt_vit.images.preprocessing import Preprocessing
from trt_vit.reading import is_plain, parse_json, plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trt_vit.checkpoint.export import Export

PREPROCESSING_KEY = "trt_vit.preprocessing"
LABELS_KEY = "trt_vit.labels"
CHECKPOINT_KEY = "trt_vit.checkpoint"

_HINT = "pass --preprocessor FILE and --labels FILE, or export the checkpoint again"


def metadata_of(export: Export) -> dict[str, str]:
    """The entries for ``metadata_props`` of the ONNX file."""
    checkpoint = {
        "source": plain(export.source),
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
    value = _parse(text, PREPROCESSING_KEY, where)
    try:
        return Preprocessing.model_validate(value)
    except ValidationError as error:
        raise CheckpointError(f"{where}: its metadata {PREPROCESSING_KEY} cannot be read", hint=_HINT) from error


def stored_labels(metadata: Mapping[str, str], *, classes: int, where: str) -> tuple[str, ...] | None:
    """The labels in an ONNX file's metadata, or None where it has none.

    Raises:
        CheckpointError: The entry is not a list of ``classes`` names.
    """
    text = metadata.get(LABELS_KEY)
    if text is None:
        return None
    labels = _parse(text, LABELS_KEY, where)
    if not isinstance(labels, list) or len(labels) != classes or not all(map(is_label, labels)):
        raise CheckpointError(f"{where}: its metadata {LABELS_KEY} is not a list of {classes} labels", hint=_HINT)
    return tuple(labels)


def stored_checkpoint(metadata: Mapping[str, str], *, where: str) -> dict[str, object]:
    """What the metadata says about the checkpoint the file was exported from; empty where it says nothing.

    Raises:
        CheckpointError: The entry is not a JSON object, or a text in it holds a control character.
    """
    value = _parse(metadata.get(CHECKPOINT_KEY, "{}"), CHECKPOINT_KEY, where)
    if not isinstance(value, dict) or not all(is_plain(text) for text in value.values() if isinstance(text, str)):
        raise CheckpointError(f"{where}: its metadata {CHECKPOINT_KEY} is not an object of plain text", hint=_HINT)
    return value


def _parse(text: str, key: str, where: str) -> object:
    try:
        value: object = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{where}: its metadata {key} is not JSON", hint=_HINT) from error
    return value


def find_preprocessing(path: Path, metadata: Mapping[str, str], given: Path | None, where: str) -> Preprocessing:
    """The preprocessing of an ONNX file: what is given, what its metadata says, or the file beside it.

    Args:
        path: The ONNX file.
        metadata: Its metadata.
        given: A preprocessor_config.json, which goes before all else.
        where: What to name in messages.

    Raises:
        CheckpointError: There is none, or it cannot be reproduced.
    """
    refuse_links_outside(path.parent, PREPROCESSOR_FILE, "config.json")
    beside = path.parent / PREPROCESSOR_FILE
    if given is None and (stored := stored_preprocessing(metadata, where=where)) is not None:
        return stored
    if given is None and not beside.is_file():
        raise CheckpointError(
            f"{where}: neither its metadata nor a {PREPROCESSOR_FILE} beside it says how to prepare images",
            hint=f"pass --preprocessor FILE, the {PREPROCESSOR_FILE} the model was trained with",
        )
    config = path.parent / "config.json"
    model_type = text_of(read_json_object(config), "model_type") if config.is_file() else None
    return read_preprocessing(given or beside, model_type=model_type)


def find_labels(
    path: Path, metadata: Mapping[str, str], given: Path | None, classes: int, where: str
) -> tuple[str, ...]:
    """The names of an ONNX file's classes: the file that is given, what its metadata says, or config.json beside it.

    Args:
        path: The ONNX file.
        metadata: Its metadata.
        given: A text file with one label a line, which goes before all else.
        classes: How many logits it has.
        where: What to name in messages.

    Raises:
        CheckpointError: There are none, or not one for each class.
    """
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


def text_of(values: Mapping[str, object], key: str) -> str | None:
    """The value of a key where it is a text, or None."""
    value = values.get(key)
    return value if isinstance(value, str) else None
