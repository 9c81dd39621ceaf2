"""Images, and archives of them, for the tests of the sources."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from trt_vit.errors import ImageError
from trt_vit.images.limits import NO_FURTHER_LIMITS

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


HUGGING_FACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table_of(column: list[Any], kind: pa.DataType = HUGGING_FACE, name: str = "image", **others: Any) -> bytes:
    options = {key: others.pop(key) for key in ("row_group_size", "compression") if key in others}
    table = pa.table({"label": list(range(len(column))), name: pa.array(column, kind), **others})
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


def rows_of(shards: Iterable[Shard]) -> list[tuple[str, bytes | str]]:
    """What each image is called, and its bytes or why there are none."""
    rows: list[tuple[str, bytes | str]] = []
    for shard in shards:
        for item in shard.items():
            try:
                rows.append((item.name, item.read(NO_FURTHER_LIMITS)))
            except ImageError as error:
                rows.append((item.name, str(error)))
    return rows
