"""What a run is given: named images whose bytes are read when their turn comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trt_vit.images.decode import read_image

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
