from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.serving.fake_backend import Backend, TritonError
from trt_vit.errors import ArtifactError
from trt_vit.images.decode import decode
from trt_vit.images.preprocess import Preprocessor
from trt_vit.images.preprocessing import Preprocessing, ShortestEdge

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PREPROCESSING = Preprocessing(
    resize=ShortestEdge(edge=20), filter="bicubic", crop=(16, 24), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)
OUTPUT = {"name": "pixels", "data_type": "TYPE_FP32", "dims": [3, 16, 24]}
MODEL = "from trt_vit.serving.preprocess import TritonPythonModel\n"


def picture(seed: int, height: int = 30, width: int = 50, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    return served(tmp_path, monkeypatch)


def served(directory: Path, monkeypatch: pytest.MonkeyPatch, dims: tuple[int, ...] = (3, 16, 24)) -> Backend:
    version = directory / "3"
    version.mkdir()
    (version / "model.py").write_text(MODEL)
    (version / "preprocessing.json").write_text(PREPROCESSING.model_dump_json())
    return Backend(monkeypatch, directory, 3, OUTPUT | {"dims": list(dims)})


def expected(*files: bytes) -> NDArray[np.float32]:
    preprocessor = Preprocessor(PREPROCESSING, (16, 24))
    pixels = np.full((len(files), 3, 16, 24), np.nan, dtype=np.float32)
    for file, out in zip(files, pixels, strict=True):
        preprocessor(decode(file), out)
    return pixels


def test_each_request_gets_its_own_pixels(backend: Backend) -> None:
    one, two, three = picture(1), picture(2, 40, 41, "PNG"), picture(3, 99, 21)
    first, second = backend.infer([[one], [two, three]])
    np.testing.assert_array_equal(first, expected(one))
    np.testing.assert_array_equal(second, expected(two, three))
    assert not np.array_equal(expected(one), expected(two))


def test_a_broken_image_fails_its_request_and_no_other(backend: Backend) -> None:
    good = picture(1)
    first, second, third = backend.infer([[good], [good, b"GIF87a broken"], [good[: len(good) // 2]]])
    np.testing.assert_array_equal(first, expected(good))
    assert isinstance(second, TritonError)
    assert second.message().startswith("image 1 of 2: broken GIF")
    assert isinstance(third, TritonError)
    assert third.message().startswith("image 0 of 1: truncated JPEG")
    assert {second.code(), third.code()} == {"INVALID_ARG"}


def test_an_answer_does_not_change_with_the_next(backend: Backend) -> None:
    one, two = picture(1), picture(2)
    (first,) = backend.infer([[one]])
    backend.infer([[two]])
    np.testing.assert_array_equal(first, expected(one))


def test_no_requests(backend: Backend) -> None:
    assert backend.infer([]) == []


def test_preprocessing_of_another_engine_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match="preprocessing gives 24x16 pixels, the model takes 32x32"):
        served(tmp_path, monkeypatch, (3, 32, 32))
