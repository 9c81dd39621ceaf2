from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from trt_vit.images.limits import NO_FURTHER_LIMITS
from trt_vit.images.preprocess import Preprocessor
from trt_vit.images.preprocessing import Preprocessing, Squash
from trt_vit.pipeline.stages import IN_THIS_PROCESS, Opener, StageSeconds, load_image
from trt_vit.sources.item import FileItem

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PREPROCESSOR = Preprocessor(Preprocessing(resize=Squash(size=(4, 4)), rescale=None), (4, 4))


def test_an_image_lands_in_its_place(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "a.png")
    out = np.zeros((3, 4, 4), dtype=np.float32)
    loaded = load_image(FileItem(str(tmp_path / "a.png")), IN_THIS_PROCESS, PREPROCESSOR, out)
    assert loaded.error is None
    assert [np.unique(channel).tolist() for channel in out] == [[1.0], [2.0], [3.0]]
    assert [stage for stage, seconds in loaded.seconds.seconds.items() if seconds > 0] == [
        "read",
        "decode",
        "preprocess",
    ]


def test_too_little_memory_for_one_image_is_an_error_of_its_row(tmp_path: Path) -> None:
    def fail(_data: bytes) -> NDArray[np.uint8]:
        raise MemoryError

    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    out = np.zeros((3, 4, 4), dtype=np.float32)
    opener = Opener(NO_FURTHER_LIMITS, fail)
    assert (
        load_image(FileItem(str(tmp_path / "a.png")), opener, PREPROCESSOR, out).error
        == "not enough memory for this image"
    )


def test_seconds_add_up() -> None:
    total, part = StageSeconds(["infer", "write"]), StageSeconds(["infer"])
    part.seconds["infer"] = 1.5
    total.add(part)
    total.add(part)
    assert total.seconds["infer"] == 3.0
    assert sum(total.seconds.values()) == 3.0
