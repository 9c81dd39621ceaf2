"""Photos that are too large for the repository, used by tests where they are present."""

from __future__ import annotations

import os
from pathlib import Path

_BESIDE_THE_REPOSITORY = Path(__file__).parents[2].parent / "shared" / "data"


def sample_photos() -> list[Path]:
    """ImageNet photos (JPEG), sorted; empty where there are none.

    They are looked for in ``imagenet-sample/`` below the directory that VIT_TEST_DATA names, or below
    ``../shared/data`` seen from the repository.
    """
    directory = Path(os.environ.get("VIT_TEST_DATA") or _BESIDE_THE_REPOSITORY)
    return sorted((directory / "imagenet-sample").glob("*.JPEG"))
