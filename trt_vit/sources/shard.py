"""Shards: the pieces that a run is cut into before it starts, each of which is done or not done as a whole."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trt_vit.sources.files import LocalFile, replaces_any
from trt_vit.sources.item import BrokenItem, FileItem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from trt_vit.outputs import Output
    from trt_vit.sources.files import File, RemoteFile
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

    def holds(self, output: Output) -> bool:
        """Tell whether an output would replace a file that it reads."""
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
        return digest_of(map(LocalFile, self._own()))

    def holds(self, output: Output) -> bool:
        """See ``Shard.holds``."""
        return replaces_any(output, self._own())

    def items(self) -> Iterator[FileItem]:
        """See ``Shard.items``."""
        return map(FileItem, self._own())

    def _own(self) -> Iterator[str]:
        return (self.paths[number] for number in range(self.first, self.first + self.images))


@dataclass(frozen=True, slots=True)
class RemoteShard:
    """Files behind URLs.

    Attributes:
        files: All files of the run that follow one another.
        first: Where this shard's begin.
        images: How many of them it has.
    """

    files: Sequence[RemoteFile]
    first: int
    images: int

    def describe(self) -> str:
        """See ``Shard.describe``."""
        first, last = self.files[self.first], self.files[self.first + self.images - 1]
        return f"{first.name!r} to {last.name!r}"

    def digest(self) -> str:
        """See ``Shard.digest``: of each URL without secrets, and what its server told of the file."""
        return digest_of(self.items())

    def holds(self, output: Output) -> bool:
        """See ``Shard.holds``."""
        return any(file.is_output(output) for file in self.items())

    def items(self) -> Iterator[RemoteFile]:
        """See ``Shard.items``."""
        return (self.files[number] for number in range(self.first, self.first + self.images))


@dataclass(frozen=True, slots=True)
class BrokenShard:
    """A file of many images that cannot be read at all, which makes one row of its name.

    Attributes:
        file: The file.
        reason: Why, on one line.
    """

    file: File
    reason: str

    @property
    def images(self) -> int:
        """See ``Shard.images``."""
        return 1

    def describe(self) -> str:
        """See ``Shard.describe``."""
        return repr(self.file.name)

    def digest(self) -> str:
        """See ``Shard.digest``."""
        return digest_of((self.file,))

    def holds(self, output: Output) -> bool:
        """See ``Shard.holds``."""
        return self.file.is_output(output)

    def items(self) -> Iterator[BrokenItem]:
        """See ``Shard.items``."""
        return iter((BrokenItem(self.file.name, self.reason),))


def digest_of(files: Iterable[File]) -> str:
    """Return a digest of the names of files, and of what tells whether they have been written since."""
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.name}\0{file.stamp()}\n".encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def file_shards(paths: Sequence[str], size: int) -> list[FileShard]:
    """Cut files into shards of ``size``; the last one may be smaller."""
    return [FileShard(paths, first, min(size, len(paths) - first)) for first in range(0, len(paths), size)]


def remote_shards(files: Sequence[RemoteFile], size: int) -> list[RemoteShard]:
    """Cut files behind URLs into shards of ``size``; the last one may be smaller."""
    return [RemoteShard(files, first, min(size, len(files) - first)) for first in range(0, len(files), size)]
