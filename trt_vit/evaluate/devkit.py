"""ILSVRC2012's development kit numbers the classes from 1 in an order of its own, which its tables tell."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from trt_vit.errors import InputError
from trt_vit.evaluate.classes import WNID, number
from trt_vit.reading import parse_json, read_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_TEXT_TABLE = "map_clsloc.txt"
"""Lines of synset, the kit's number and a name: ``n02119789 1 kit_fox``."""
_MATLAB_TABLE = "meta.mat"
_MATLAB_READER = """
import io, json, resource, sys
from scipy.io import loadmat
resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
rows = loadmat(io.BytesIO(sys.stdin.buffer.read()), squeeze_me=True)["synsets"]
json.dump([[int(row["ILSVRC2012_ID"]), str(row["WNID"])] for row in rows], sys.stdout)
"""
"""Run by a process of its own: a damaged file ends the process that scipy reads it in."""
_SECONDS = 60
_MOST_BYTES = 2**28
"""Of a file of labels: one of ImageNet's training set has 60 MB."""


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
    kept = {number: name for number, name in synsets.items() if 1 <= number <= classes}
    if len(set(kept.values())) != classes:
        message = f"the table beside {file} has {len(set(kept.values()))} classes, the checkpoint {classes}"
        raise InputError(message, hint="evaluate a checkpoint of the kit's classes")
    index_of = {name: index for index, name in enumerate(sorted(kept.values()))}
    unknown = next((number for number in numbers if number not in kept), None)
    if unknown is not None:
        raise InputError(f"{file}: no class has the number {unknown}", hint="check the file")
    return [index_of[kept[number]] for number in numbers]


def read_bytes(file: Path) -> bytes:
    """Return the bytes of a file of labels.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return read_file(file, _MOST_BYTES)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}", hint="check the file") from error


def read_text(file: Path) -> str:
    """Return what a file of labels holds.

    Raises:
        InputError: It cannot be read, or is no text.
    """
    try:
        return read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {file}: it is not UTF-8 at byte {error.start}", hint="check the file") from error


def read_lines(file: Path) -> list[str]:
    """Return the lines of a file of labels that hold anything.

    Raises:
        InputError: As for ``read_text``.
    """
    return [line for line in read_text(file).splitlines() if line.strip()]


def _synsets_by_number(directory: Path) -> dict[int, str] | None:
    if (directory / _TEXT_TABLE).is_file():
        rows = [line.split() for line in read_lines(directory / _TEXT_TABLE)]
        found = {number(row[1]): row[0] for row in rows if len(row) > 1 and WNID.fullmatch(row[0])}
        return {index: name for index, name in found.items() if index is not None}
    if (directory / _MATLAB_TABLE).is_file():
        return _read_matlab(directory / _MATLAB_TABLE)
    return None


def _read_matlab(file: Path) -> dict[int, str]:
    if importlib.util.find_spec("scipy") is None:
        raise InputError(f"reading {file} needs scipy", hint=f"pip install 'trt-vit[devkit]', or bring {_TEXT_TABLE}")
    data = read_bytes(file)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _MATLAB_READER],
            input=data,
            capture_output=True,
            check=True,
            timeout=_SECONDS,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        return {int(index): str(name) for index, name in parse_json(done.stdout)}
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        raise InputError(f"cannot read {file}: it is not the kit's table", hint=f"bring {_TEXT_TABLE}") from error
