"""Images and what they show: class folders, ImageNet's validation set, tables of file and class.

Nothing is guessed. Where a file's convention cannot be told, or an image's label not be found, that is said.
"""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trt_vit.errors import InputError, UsageError
from trt_vit.evaluate.classes import WNID, Classes, number
from trt_vit.evaluate.devkit import framework_indices, read_lines, read_text
from trt_vit.images.source import list_images
from trt_vit.reading import parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence

SYNSET_TABLES = ("LOC_synset_mapping.txt", "synset_words.txt", "synsets.txt", "map_clsloc.txt")
"""Files that name ImageNet's synsets, one a line, the identifier first."""
_BESIDE = ("labels.csv", "val.txt", "ILSVRC2012_validation_ground_truth.txt", "real.json")
"""Files of labels that are found by themselves where they lie with the images."""
_VALIDATION_NAME = "ILSVRC2012_val_{:08d}"
_SHOWN = 3


@dataclass(frozen=True)
class Labelled:
    """Images with their classes.

    Attributes:
        paths: The images.
        targets: The classes that each of them may be taken for; one but for multi-labels.
        unlabelled: Images that nothing is said of. They are not evaluated.
        missing: How many labels are there of images that are not.
        source: Where the labels come from, in words.
    """

    paths: list[str]
    targets: list[frozenset[int]]
    unlabelled: list[str]
    missing: int
    source: str

    def limited(self, count: int | None) -> Labelled:
        """Return ``count`` of the images, spread evenly over all of them, or all."""
        if count is None or count >= len(self.paths):
            return self
        kept = [number * len(self.paths) // count for number in range(count)]
        return replace(self, paths=[self.paths[n] for n in kept], targets=[self.targets[n] for n in kept])


def find_labelled(data: Path, labels: Path | None, names: Sequence[str]) -> Labelled:
    """Find labelled images.

    Without a file of labels, there may be one with the images (labels.csv, val.txt, the devkit's ground truth or
    real.json); otherwise each folder of ``data`` is a class.

    Args:
        data: Directory of images.
        labels: A file of labels, or None.
        names: Label of each of the checkpoint's classes, by index.

    Raises:
        UsageError: ``data`` or ``labels`` is not there.
        InputError: The labels do not fit the images or the classes, or nothing says what they mean.
    """
    if not data.is_dir():
        raise UsageError(f"no such directory: {data}", hint="--data is the directory of the images")
    if labels is not None and not labels.is_file():
        raise UsageError(f"no such file: {labels}", hint="--labels is a file with the images' labels")
    paths = list_images([str(data)])
    if labels is None:
        labels = next((data / name for name in _BESIDE if (data / name).is_file()), None)
    if labels is None:
        return _by_folder(data, paths, names)
    table = _read_labels(labels, Classes(names, _synsets([labels.parent, data], len(names))))
    return _matched(paths, data, table, labels)


def _by_folder(data: Path, paths: Sequence[str], names: Sequence[str]) -> Labelled:
    folders = [Path(path).relative_to(data).parts[0] if Path(path).parent != data else None for path in paths]
    found = sorted({folder for folder in folders if folder is not None})
    if not found:
        message = f"nothing says what the images in {data} show"
        raise InputError(message, hint="give --labels FILE, or a folder for each class")
    synsets = _synsets([data, data.parent], len(names))
    if synsets is None and len(found) == len(names) and all(WNID.fullmatch(folder) for folder in found):
        synsets = found  # all of the synsets: the framework's order is that of their names
    classes = Classes(names, synsets)
    index_of = _resolve(found, classes, f"folders of {data}")
    labelled = [(path, index_of[folder]) for path, folder in zip(paths, folders, strict=True) if folder is not None]
    return Labelled(
        paths=[path for path, _ in labelled],
        targets=[frozenset((index,)) for _, index in labelled],
        unlabelled=[path for path, folder in zip(paths, folders, strict=True) if folder is None],
        missing=0,
        source=f"{len(found)} folders",
    )


def _resolve(names: Sequence[str], classes: Classes, where: str) -> dict[str, int]:
    """Return the class of each name; all names that have none are told at once."""
    wrong = [name for name in names if not classes.has(name)]
    errors = list[InputError]()
    for name in wrong[:_SHOWN]:
        try:
            classes.find(name)
        except InputError as error:
            errors.append(error)
    if errors:
        others = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        reasons = "; ".join(error.message for error in errors)
        raise InputError(f"{where}: {reasons}{others}", hint=errors[0].hint)
    return {name: classes.find(name) for name in names}


def _synsets(directories: Sequence[Path], count: int) -> list[str] | None:
    """Return the synsets by index, from a table in one of some directories; the framework's order is that of names."""
    for directory in directories:
        for name in SYNSET_TABLES:
            if (directory / name).is_file():
                lines = read_lines(directory / name)
                found = sorted({line.split()[0] for line in lines if WNID.fullmatch(line.split()[0])})
                if len(found) == count:
                    return found
    return None


def _read_labels(file: Path, classes: Classes) -> dict[str, frozenset[int]]:
    """Return the classes of each file that a file of labels names, by name without suffix where it has none."""
    if file.suffix.lower() == ".json":
        return _read_multi_labels(file, len(classes))
    if file.suffix.lower() == ".csv":
        return _read_csv(file, classes)
    lines = read_lines(file)
    numbers = [number(line.strip()) for line in lines]
    known = [index for index in numbers if index is not None]
    if known and len(known) == len(numbers):
        indices = framework_indices(file, known, len(classes))
        return {_VALIDATION_NAME.format(number): frozenset((index,)) for number, index in enumerate(indices, start=1)}
    pairs = [line.rsplit(maxsplit=1) for line in lines]
    if any(len(pair) != 2 for pair in pairs):  # noqa: PLR2004 - a file and its class
        raise InputError(f"{file}: a line is not a file and its class", hint="write `FILE CLASS` lines, or a .csv")
    return _resolved([(name, label) for name, label in pairs], classes, file)


def _read_multi_labels(file: Path, count: int) -> dict[str, frozenset[int]]:
    """Read ReaL's labels: for each image of the validation set, in order, the classes it may be taken for."""
    try:
        rows = parse_json(read_text(file))
    except ValueError as error:
        raise InputError(f"cannot read {file}: {error}", hint="check the file") from error
    good = isinstance(rows, list) and all(
        isinstance(row, list) and all(type(index) is int and 0 <= index < count for index in row) for row in rows
    )
    if not good:
        hint = f"it is a list of lists of class indices from 0 to {count - 1}, one for each image in order"
        raise InputError(f"{file} is not a file of ReaL labels", hint=hint)
    return {_VALIDATION_NAME.format(number): frozenset(row) for number, row in enumerate(rows, start=1)}


def _read_csv(file: Path, classes: Classes) -> dict[str, frozenset[int]]:
    """Read a table whose first column is the file; of index, synset and label the first that it has is the class."""
    try:
        rows = [row for row in csv.reader(io.StringIO(read_text(file), newline="")) if row]
    except csv.Error as error:
        raise InputError(f"cannot read {file}: {error}", hint="check the file") from error
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    column = next((header.index(name) for name in ("class_index", "wnid", "label", "name") if name in header), None)
    if column is not None:
        rows = rows[1:]
    if any(len(row) <= (column or 1) for row in rows):
        raise InputError(f"{file}: a row has no class", hint="its columns are file and class_index, wnid or label")
    return _resolved([(row[0], row[column or 1].strip()) for row in rows], classes, file)


def _resolved(pairs: Sequence[tuple[str, str]], classes: Classes, file: Path) -> dict[str, frozenset[int]]:
    numbers = [index for _, label in pairs if (index := number(label)) is not None]
    if len(numbers) == len(pairs) and numbers and min(numbers) == 1 and max(numbers) == len(classes):
        message = f"{file} counts classes from 1 to {len(classes)}, and the checkpoint from 0"
        raise InputError(message, hint="the devkit's own order is another one; give the framework's indices or synsets")
    index_of = _resolve(sorted({label for _, label in pairs}), classes, str(file))
    return {name: frozenset((index_of[label],)) for name, label in pairs}


def _matched(paths: Sequence[str], data: Path, table: dict[str, frozenset[int]], file: Path) -> Labelled:
    """Find each image's label by its path below ``data``, its name, or its name without the suffix."""
    left, labelled, unlabelled = set(table), list[tuple[str, frozenset[int]]](), list[str]()
    for path in paths:
        name = os.path.basename(path)  # noqa: PTH119 - a million paths are cheap as strings
        candidates = (os.path.relpath(path, data), name, name.rpartition(".")[0])
        key = next((candidate for candidate in candidates if candidate in table), None)
        left.discard(key or "")
        if key is None or not table[key]:
            unlabelled.append(path)
        else:
            labelled.append((path, table[key]))
    if not labelled:
        message = f"{file} names none of the {len(paths)} images in {data}"
        raise InputError(message, hint="it names files as they are called, or by their path below --data")
    return Labelled(
        paths=[path for path, _ in labelled],
        targets=[target for _, target in labelled],
        unlabelled=unlabelled,
        missing=sum(bool(table[key]) for key in left),
        source=str(file),
    )
