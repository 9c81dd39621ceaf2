"""What a run is given: named images whose bytes are read when their turn comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trt_vit.errors import ImageError
from trt_vit.images.decode import read_image

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Item(Protocol):
    """One image, wherever it lies."""

    @property
    def name(self) -> str:
        """What its row calls it: a path, a URL, or a member of something larger."""
        ...

    def read(self) -> bytes:
        """Read its bytes. Decode threads call this, several at once.

        Raises:
            ImageError: It cannot be read, which costs its own row.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileItem:
    """A file on a disk.

    Attributes:
        name: Its path.
    """

    name: str

    def read(self) -> bytes:
        """See ``Item.read``."""
        return read_image(self.name)


def file_items(paths: Iterable[str]) -> Iterator[FileItem]:
    """Return files as items, in their order."""
    return map(FileItem, paths)


@dataclass(frozen=True, slots=True)
class HeldItem:
    """An image whose bytes have been read already.

    Attributes:
        name: See ``Item.name``.
        data: Its bytes.
    """

    name: str
    data: bytes

    def read(self) -> bytes:
        """See ``Item.read``."""
        return self.data


@dataclass(frozen=True, slots=True)
class BrokenItem:
    """What should be an image and cannot be read.

    Attributes:
        name: See ``Item.name``.
        reason: Why, on one line.
    """

    name: str
    reason: str

    def read(self) -> bytes:
        """See ``Item.read``."""
        raise ImageError(self.reason)
