"""The names of the classes, in the order of the logits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from trt_vit.checkpoint.files import TEXT_LIMIT
from trt_vit.errors import CheckpointError
from trt_vit.reading import is_plain, quoted, read_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LABELS_HINT = "pass the names with --labels FILE, one a line in the order of the model's classes"
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
"""One spelling for each index, so that two keys cannot mean the same."""


def labels_from_config(config: Mapping[str, Any], *, classes: int, path: Path) -> tuple[str, ...]:
    """Read ``id2label`` of a config.json.

    Where the key is missing, transformers saved a model with its placeholder names, and they are what it gets here.

    Args:
        config: The parsed config.json.
        classes: How many logits the model has.
        path: The config.json, for messages.

    Raises:
        CheckpointError: An index or a name is not one, or the indices are not 0 to ``classes`` - 1, each once.
    """
    given = config.get("id2label")
    if given is None:
        return tuple(f"LABEL_{index}" for index in range(classes))
    if not isinstance(given, dict):
        raise CheckpointError(f"{path}: id2label is {type(given).__name__}, not an object", hint=_LABELS_HINT)
    names = dict(_entry(key, name, path) for key, name in given.items())
    unnamed = next((index for index in range(classes) if index not in names), None)
    if unnamed is not None or len(names) != classes:
        detail = f", none for class {unnamed}" if unnamed is not None else ""
        raise CheckpointError(
            f"{path}: id2label has {len(names)} names for {classes} classes{detail}", hint=_LABELS_HINT
        )
    return tuple(names[index] for index in range(classes))


def is_label(name: object) -> bool:
    """Tell whether something is the name of a class: a text on one line that a terminal can be shown."""
    return isinstance(name, str) and bool(name.strip()) and is_plain(name)


def _entry(key: str, name: object, path: Path) -> tuple[int, str]:
    if not _INDEX.fullmatch(key):
        raise CheckpointError(f"{path}: id2label has the index {quoted(key)}, not a number", hint=_LABELS_HINT)
    label = name.strip() if isinstance(name, str) else name
    if not isinstance(label, str) or not is_label(label):
        raise CheckpointError(f"{path}: id2label[{key}] is {quoted(name)}, not a name", hint=_LABELS_HINT)
    return int(key), label


def labels_from_file(path: Path, *, classes: int) -> tuple[str, ...]:
    """Read a UTF-8 text file with one label a line; empty lines at its end do not count.

    Raises:
        CheckpointError: The file cannot be read, has a line among its labels that is empty or holds a control
            character, or has not ``classes`` of them.
    """
    try:
        text = read_file(path, TEXT_LIMIT).decode("utf-8-sig")
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", hint="pass an existing, readable file") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 at byte {error.start}", hint="save the file as UTF-8") from error
    labels = [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    if "" in labels:
        raise CheckpointError(
            f"{path}: line {labels.index('') + 1} is empty", hint="one label a line, none of them empty"
        )
    if odd := next((number for number, label in enumerate(labels, start=1) if not is_plain(label)), None):
        message = f"{path}: line {odd} is {quoted(labels[odd - 1])}, which holds a control character"
        raise CheckpointError(message, hint="one label a line, of letters that can be shown")
    if len(labels) != classes:
        raise CheckpointError(
            f"{path}: {len(labels)} labels for a model with {classes} classes",
            hint=f"give exactly {classes} lines, in the order of the model's classes",
        )
    return tuple(labels)
