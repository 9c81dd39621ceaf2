"""From what the user names to the shards of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_vit.images.source import list_images
from trt_vit.sources.shard import file_shards

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trt_vit.sources.shard import Shard


def open_shards(inputs: Sequence[str], size: int) -> list[Shard]:
    """List all images that ``inputs`` name, and cut them into shards.

    Args:
        inputs: Files, directories, lists or globs, as ``list_images`` takes them.
        size: Images a shard.

    Raises:
        UsageError: An input names nothing.
        InputError: An input holds no image, or cannot be listed or read.
    """
    return [*file_shards(list_images(inputs), size)]
