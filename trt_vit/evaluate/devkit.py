"""ILSVRC2012's development kit numbers the classes from 1 in an order of its own, which its tables tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trt_vit.errors import InputError
from trt_vit.evaluate.classes import WNID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_TEXT_TABLE = "map_clsloc.txt"
"""Lines of synset, the kit's number and a name: ``n02119789 1 kit_fox``."""
_MATLAB_TABLE = "meta.mat"


def framework_indices(file: Path, numbers: Sequence[int], classes: int) -> list[int]:
    """Return the framework's class indices of the kit's numbers: the synsets in the order of their names.

    Args:
        file: The kit's ground truth; its tables lie beside it.
        numbers: The kit's number of each image's class.
        classes: How many classes there are.

    Raises:
        InputError: There is no table, it cannot be read, or it does not fit.
    """
    synsets = _synsets_by_number(file.parent)
    if synsets is None:
        message = f"{file} holds the development kit's own class numbers, which are not the checkpoint's"
        raise InputError(message, hint=f"put the kit's {_MATLAB_TABLE} or {_TEXT_TABLE} beside it")
    kept = {number: name for number, name in synsets.items() if number <= classes}
    if len(kept) != classes:
        message = f"the table beside {file} has {len(kept)} classes, the checkpoint {classes}"
        raise InputError(message, hint="evaluate a checkpoint of the kit's classes")
    index_of = {name: index for index, name in enumerate(sorted(kept.values()))}
    unknown = next((number for number in numbers if number not in kept), None)
    if unknown is not None:
        raise InputError(f"{file}: no class has the number {unknown}", hint="check the file")
    return [index_of[kept[number]] for number in numbers]


def _synsets_by_number(directory: Path) -> dict[int, str] | None:
    if (directory / _TEXT_TABLE).is_file():
        rows = [line.split() for line in (directory / _TEXT_TABLE).read_text(encoding="utf-8").splitlines()]
        good = [row for row in rows if len(row) > 1 and WNID.fullmatch(row[0]) and row[1].isdigit()]
        return {int(row[1]): row[0] for row in good}
    if (directory / _MATLAB_TABLE).is_file():
        return _read_matlab(directory / _MATLAB_TABLE)
    return None


def _read_matlab(file: Path) -> dict[int, str]:
    try:
        from scipy.io import loadmat  # noqa: PLC0415 - only this table needs it
    except ImportError as error:
        raise InputError(
            f"reading {file} needs scipy", hint=f"pip install 'trt-vit[devkit]', or bring {_TEXT_TABLE}"
        ) from error
    try:
        rows: Any = loadmat(file, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {file}: {error}", hint="check the file") from error
