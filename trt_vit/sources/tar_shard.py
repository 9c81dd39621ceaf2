"""A tar archive of images, as WebDataset has them: one shard, read in one pass and never unpacked to a disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_vit.errors import ImageError
from trt_vit.images.decode import check_file_size
from trt_vit.images.limits import MAX_BYTES
from trt_vit.images.source import is_image
from trt_vit.sources.files import File, LocalFile, reason_of, refuse_to_guess
from trt_vit.sources.item import BrokenItem, HeldItem
from trt_vit.sources.shard import digest_of
from trt_vit.sources.tar import Member, TarError, TarReader
from trt_vit.sources.urls import SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trt_vit.images.limits import DecodeLimits
    from trt_vit.outputs import Output
    from trt_vit.sources.item import Item

HELD_BYTES = 4 << 20
"""Largest member of an archive behind a URL that is kept from when the archive is passed to when it is decoded. Larger
ones are asked for again then, so that the images under way take a bounded memory."""


@dataclass(frozen=True, slots=True)
class TarShard:
    """A tar archive.

    Attributes:
        file: Where it lies.
    """

    file: File

    @property
    def images(self) -> None:
        """See ``Shard.images``: only reading tells."""
        return

    def describe(self) -> str:
        """See ``Shard.describe``."""
        return repr(self.file.name)

    def digest(self) -> str:
        """See ``Shard.digest``."""
        return digest_of((self.file,))

    def holds(self, output: Output) -> bool:
        """See ``Shard.holds``."""
        return self.file.is_output(output)

    def items(self) -> Iterator[Item]:
        """See ``Shard.items``. What is wrong with the archive is an item of its name, after those that could be read.

        Raises:
            EnvironmentFault: A connection breaks.

        Links, devices and sparse files that are called like images are items whose ``read`` says what they are.
        """
        try:
            with self.file.open() as stream:
                reader = TarReader(stream, self.file.size())
                for member in reader.members():
                    if member.kind != "a directory" and _is_wanted(member.name):
                        yield self._item(reader, member)
        except TarError as error:
            yield BrokenItem(self.file.name, str(error))
        except OSError as error:
            refuse_to_guess(self.file, error)
            yield BrokenItem(self.file.name, f"cannot read the file: {reason_of(error)}")

    def _item(self, reader: TarReader, member: Member) -> Item:
        name = f"{self.file.name}{SEPARATOR}{member.name}"
        if member.kind is not None:
            return BrokenItem(name, f"not a plain file but {member.kind}")
        if member.size > MAX_BYTES:
            return BrokenItem(name, f"file has {member.size} bytes, more than the limit of {MAX_BYTES}")
        if isinstance(self.file, LocalFile) or member.size > HELD_BYTES:
            return _PartItem(name, self.file, member.start, member.size)
        return HeldItem(name, reader.read(member))


@dataclass(frozen=True, slots=True)
class _PartItem:
    """A member that is read where it lies when its turn comes."""

    name: str
    file: File
    start: int
    size: int

    def read(self, limits: DecodeLimits) -> bytes:
        check_file_size(self.size, limits)
        try:
            data = self.file.read_part(self.start, self.size)
        except OSError as error:
            refuse_to_guess(self.file, error)
            raise ImageError(f"cannot read the file: {reason_of(error)}") from error
        if len(data) < self.size:
            raise ImageError(f"only {len(data)} of its {self.size} bytes are there")
        return data


def _is_wanted(name: str) -> bool:
    return is_image(name) and "__MACOSX" not in name.split("/")
