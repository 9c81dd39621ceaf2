"""Images, and archives of them, for the tests of the sources."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from trt_vit.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trt_vit.sources.shard import Shard


def png(seed: int, size: int = 8) -> bytes:
    """A small image that is another one for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def tar_of(members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def rows_of(shards: Iterable[Shard]) -> list[tuple[str, bytes | str]]:
    """What each image is called, and its bytes or why there are none."""
    rows: list[tuple[str, bytes | str]] = []
    for shard in shards:
        for item in shard.items():
            try:
                rows.append((item.name, item.read()))
            except ImageError as error:
                rows.append((item.name, str(error)))
    return rows
