"""Photos to measure with: a directory's, or pictures of noise where none is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from trt_vit.images.source import list_images

if TYPE_CHECKING:
    from pathlib import Path


def photos(directory: Path | None, work: Path, count: int) -> list[str]:
    """Return the paths of ``count`` photos of a directory, or of as many made of noise, 500 x 375, in ``work``."""
    if directory is not None:
        return list_images([str(directory)])[:count]
    generator = np.random.default_rng(0)
    (work / "noise").mkdir()
    for number in range(count):
        coarse = generator.integers(0, 256, size=(38, 50, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        photo.save(work / "noise" / f"{number:03}.jpg", quality=90)
    return list_images([str(work / "noise")])
