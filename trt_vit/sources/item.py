"""What a run is given: named images whose bytes are read when their turn comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trt_vit.errors import ImageError
from trt_vit.images.decode import check_file_size, read_image

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trt_vit.images.limits import DecodeLimits


class Item(Protocol):
    """One image, wherever it lies."""

    @property
    def name(self) -> str:
        """What its row calls it: a path, a URL, or a member of something larger."""
        ...

    def read(self, limits: DecodeLimits) -> bytes:
        """Read its bytes. Decode threads call this, several at once.

        Args:
            limits: How many bytes it may have.

        Raises:
            ImageError: It cannot be read, which costs its own row.
            EnvironmentFault: What it lies on fails, which says nothing about it.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileItem:
    """A file on a disk.

    Attributes:
        name: Its path.
    """

    name: str

    def read(self, limits: DecodeLimits) -> bytes:
        """See ``Item.read``."""
        return read_image(self.name, limits)


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

    def read(self, limits: DecodeLimits) -> bytes:
        """See ``Item.read``."""
        check_file_size(len(self.data), limits)
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

    def read(self, limits: DecodeLimits) -> bytes:  # noqa: ARG002 - there is nothing to read
        """See ``Item.read``."""
        raise ImageError(self.reason)
