"""Shards: the pieces that a run is cut into before it starts, each of which is done or not done as a whole."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trt_vit.sources.item import FileItem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from trt_vit.sources.item import Item


class Shard(Protocol):
    """Some of a run's images, in order: the same ones whenever the run is started again."""

    @property
    def images(self) -> int | None:
        """How many there are, or None where only reading tells."""
        ...

    def describe(self) -> str:
        """Name it for a message."""
        ...

    def digest(self) -> str:
        """Return a digest, in hexadecimal, that changes if an image is another, or has been written since."""
        ...

    def holds(self, file: Path) -> bool:
        """Tell whether a file that exists is one that it reads."""
        ...

    def items(self) -> Iterator[Item]:
        """Give its images. What cannot be listed after all is an item whose ``read`` says why."""
        ...


@dataclass(frozen=True, slots=True)
class FileShard:
    """Files on a disk.

    Attributes:
        paths: All files of the run.
        first: Where this shard's begin.
        images: How many of them it has.
    """

    paths: Sequence[str]
    first: int
    images: int

    def describe(self) -> str:
        """See ``Shard.describe``."""
        first, last = self.paths[self.first], self.paths[self.first + self.images - 1]
        return f"{first!r} to {last!r}"

    def digest(self) -> str:
        """See ``Shard.digest``: of each path, and the file's size and time."""
        found = hashlib.sha256()
        for number in range(self.first, self.first + self.images):
            path = self.paths[number]
            found.update(f"{path}\0{_stamp(path)}\n".encode("utf-8", "surrogateescape"))
        return found.hexdigest()

    def holds(self, file: Path) -> bool:
        """See ``Shard.holds``."""
        paths = (self.paths[number] for number in range(self.first, self.first + self.images))
        suspects = (path for path in paths if path.endswith(file.suffix))
        return any(os.path.exists(path) and file.samefile(path) for path in suspects)  # noqa: PTH110

    def items(self) -> Iterator[FileItem]:
        """See ``Shard.items``."""
        return (FileItem(self.paths[number]) for number in range(self.first, self.first + self.images))


def file_shards(paths: Sequence[str], size: int) -> list[FileShard]:
    """Cut files into shards of ``size``; the last one may be smaller."""
    return [FileShard(paths, first, min(size, len(paths) - first)) for first in range(0, len(paths), size)]


def _stamp(path: str) -> str:
    """Return what changes when a file is written, or that it is not there."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of a million files costs more than the call
    except (OSError, ValueError):
        return "-"
    return f"{status.st_size} {status.st_mtime_ns}"
