"""Directories of images of which some are none."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import random
    from pathlib import Path

_FORMATS = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "webp": "WEBP", "gif": "GIF", "tif": "TIFF"}
_ODD = ("a\nb", "q\"uo'te", "-o", "=1+1", "x,y;z", "\t", "\r", "é\u2028", "\udcff", "\\xff", " ", "..")


def write_inputs(root: Path, count: int, chance: random.Random) -> None:
    """Write ``count`` files below ``root``, about a third of them broken, some by names that few expect."""
    for number in range(count):
        folder = root / f"{chance.randrange(4)}"
        folder.mkdir(parents=True, exist_ok=True)
        suffix = chance.choice(list(_FORMATS))
        name = chance.choice(_ODD) if chance.random() < 0.1 else ""
        _write_input(folder / f"{name}{number}.{suffix}", suffix, chance)


def _write_input(file: Path, suffix: str, chance: random.Random) -> None:
    kind = chance.choice(["good"] * 6 + ["truncated", "flipped", "empty", "fifo", "link"])
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "link":
        file.symlink_to(chance.choice(["gone.png", file.name, "/dev/zero"]))
    else:
        data = bytearray(_image(suffix, chance))
        if kind == "truncated":
            del data[chance.randrange(len(data)) :]
        elif kind == "flipped":
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == "empty":
            data.clear()
        file.write_bytes(data)


def _image(suffix: str, chance: random.Random) -> bytes:
    generator = np.random.default_rng(chance.randrange(2**32))
    height, width = chance.randint(1, 60), chance.randint(1, 60)
    stream = io.BytesIO()
    pixels = generator.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, _FORMATS[suffix])
    return stream.getvalue()
