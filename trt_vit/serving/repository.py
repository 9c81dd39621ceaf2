"""Triton's model repository on disk: a directory a model, and in it a directory a version."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trt_vit.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_VERSION = re.compile(r"[1-9][0-9]*")
"""Triton ignores other directories of a model."""
_HINT = "choose another --name, or another REPOSITORY"


@dataclass(frozen=True)
class TritonModel:
    """One model, and one version of it.

    Attributes:
        name: Its directory's name, which is that of its configuration.
        shared: What all versions have, by file name: the configuration and the labels.
        version: What this version has, by file name.
    """

    name: str
    shared: Mapping[str, bytes]
    version: Mapping[str, bytes]


@dataclass(frozen=True)
class Added:
    """What has become of models that were added.

    Attributes:
        version: The version that all of them have got.
        files: What was written, relative to the repository.
    """

    version: int
    files: tuple[str, ...]


def add_models(repository: Path, models: Sequence[TritonModel]) -> Added:
    """Add models to a repository, as a version that none of them has: all of them, whole, or none.

    They appear in the order given, each by one rename, so that a server that is looking finds no model before those
    that it is made of.

    Raises:
        OutputError: A model of that name has other shared files, or the repository cannot be written.
    """
    place = repository.resolve()
    try:
        _refuse_others(place, models)
        version = 1 + max(_latest_version(place / model.name) for model in models)
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{place.name}.", suffix=".partial", dir=_scratch_place(place)
        ) as scratch:
            moves, files = [], list[str]()
            for model in models:
                source, target = _write(model, version, place, Path(scratch))
                moves.append((source, target))
                written = sorted(file for file in source.rglob("*") if file.is_file())
                files += [str((target / file.relative_to(source)).relative_to(place)) for file in written]
            _move_all(moves)
    except OSError as error:
        message = f"cannot write to the model repository {repository}: {error.strerror or error}"
        raise OutputError(message, hint="choose a REPOSITORY with room that you can write to") from error
    return Added(version, tuple(files))


def _refuse_others(place: Path, models: Sequence[TritonModel]) -> None:
    """Refuse a name that something else has: versions of a model share its configuration and labels."""
    if place.exists() and not place.is_dir():
        raise OutputError(f"{place} is a file", hint="name a directory as the REPOSITORY")
    for model in models:
        directory = place / model.name
        if not os.path.lexists(directory):
            continue
        for name, content in model.shared.items():
            if not (directory / name).is_file():
                raise OutputError(f"{directory} is there, and is no model that has a {name}", hint=_HINT)
            if (directory / name).read_bytes() != content:
                raise OutputError(f"{directory} is another model: its {name} differs", hint=_HINT)


def _latest_version(directory: Path) -> int:
    names = [entry.name for entry in directory.iterdir()] if directory.is_dir() else []
    return max((int(name) for name in names if _VERSION.fullmatch(name)), default=0)


def _scratch_place(place: Path) -> Path:
    """Return where to write what is then renamed into ``place``: beside it, where a server does not look.

    A repository that is mounted, or in a directory of somebody else, has no such place, and what is written lies in it.
    """
    beside = place.parent
    return beside if beside.stat().st_dev == place.stat().st_dev and os.access(beside, os.W_OK) else place


def _write(model: TritonModel, version: int, place: Path, scratch: Path) -> tuple[Path, Path]:
    """Write a model, or only its new version where it is there, and return from where to where it has to be moved."""
    root = scratch / model.name
    directory = root / str(version)
    directory.mkdir(parents=True)
    for name, content in model.version.items():
        (directory / name).write_bytes(content)
    if (place / model.name).exists():
        return directory, place / model.name / str(version)
    for name, content in model.shared.items():
        (root / name).write_bytes(content)
    return root, place / model.name


def _move_all(moves: Sequence[tuple[Path, Path]]) -> None:
    with ExitStack() as undo:
        for source, target in moves:
            source.rename(target)
            undo.callback(target.rename, source)
        undo.pop_all()
