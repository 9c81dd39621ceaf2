"""The names of the classes, in the order of the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trt_vit.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LABELS_HINT = "pass the names with --labels FILE, one a line in the order of the model's classes"


def labels_from_config(config: Mapping[str, Any], *, classes: int, path: Path) -> tuple[str, ...]:
    """Read ``id2label`` of a config.json.

    Where the key is missing, transformers saved a model with its placeholder names, and they are what it gets here.

    Args:
        config: The parsed config.json.
        classes: How many logits the model has.
        path: The config.json, for messages.

    Raises:
        CheckpointError: An index or a name is not one, or the indices are not 0 to ``classes`` - 1.
    """
    given = config.get("id2label")
    if given is None:
        return tuple(f"LABEL_{index}" for index in range(classes))
    if not isinstance(given, dict):
        raise CheckpointError(f"{path}: id2label is {type(given).__name__}, not an object", hint=_LABELS_HINT)
    names = dict(_entry(key, name, path) for key, name in given.items())
    unnamed = sorted(set(range(classes)) - names.keys())
    if unnamed or len(names) != classes:
        detail = f", none for class {unnamed[0]}" if unnamed else ""
        raise CheckpointError(
            f"{path}: id2label has {len(names)} names for {classes} classes{detail}", hint=_LABELS_HINT
        )
    return tuple(names[index] for index in range(classes))


def _is_text(name: str) -> bool:
    """Whether UTF-8 can hold it: JSON can spell half of a surrogate pair."""
    return name == name.encode("utf-8", "ignore").decode()


def _entry(key: str, name: object, path: Path) -> tuple[int, str]:
    if not key.isdecimal():
        raise CheckpointError(f"{path}: id2label has the index {key!r}, not a number", hint=_LABELS_HINT)
    if not isinstance(name, str) or not name.strip() or not _is_text(name):
        raise CheckpointError(f"{path}: id2label[{key}] is {name!r}, not a name", hint=_LABELS_HINT)
    return int(key), name


def labels_from_file(path: Path, *, classes: int) -> tuple[str, ...]:
    """Read a UTF-8 text file with one label a line; empty lines at its end do not count.

    Raises:
        CheckpointError: The file cannot be read, has an empty line among its labels, or has not ``classes`` of them.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", hint="pass an existing, readable file") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 at byte {error.start}", hint="save the file as UTF-8") from error
    labels = [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    if "" in labels:
        raise CheckpointError(
            f"{path}: line {labels.index('') + 1} is empty", hint="one label a line, none of them empty"
        )
    if len(labels) != classes:
        raise CheckpointError(
            f"{path}: {len(labels)} labels for a model with {classes} classes",
            hint=f"give exactly {classes} lines, in the order of the model's classes",
        )
    return tuple(labels)
