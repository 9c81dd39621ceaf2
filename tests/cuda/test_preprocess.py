"""The preprocessing kernel, made for the CPU, against Pillow: bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.cuda.test_resample import FILTERS
from tests.support.data import sample_photos
from tests.support.kernels import preprocessed
from trt_vit.cuda.preprocess import SOURCE, ImagePlan, PlacedImage, describe, plan_image, plan_resized
from trt_vit.cuda.resample import identity_table, vertical_first
from trt_vit.errors import ImageError
from trt_vit.images.decode import decode
from trt_vit.images.preprocess import Preprocessor
from trt_vit.images.preprocessing import Filter, Preprocessing, ShortestEdge, Squash

if TYPE_CHECKING:
    from numpy.typing import NDArray

HALVES: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
VIT = Preprocessing(resize=Squash(size=(224, 224)), **HALVES)
DEIT = Preprocessing(resize=ShortestEdge(edge=256), filter="bicubic", crop=(224, 224), **IMAGENET)
LANCZOS = Preprocessing(resize=Squash(size=(192, 160)), filter="lanczos", **IMAGENET)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)


def by_pillow(preprocessor: Preprocessor, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    out = np.empty((3, *preprocessor.output_size), dtype=np.float32)
    preprocessor(image, out)
    return out


@pytest.mark.parametrize(
    ("preprocessing", "size"),
    [(VIT, (224, 224)), (DEIT, (224, 224)), (LANCZOS, (192, 160))],
    ids=["vit", "deit", "lanczos"],
)
def test_photos(preprocessing: Preprocessing, size: tuple[int, int]) -> None:
    photos = sample_photos()
    if not photos:
        pytest.skip("needs photos: see tests/support/data.py")
    preprocessor = Preprocessor(preprocessing, size)
    for first in range(0, len(photos), 25):
        images = [decode(path.read_bytes()) for path in photos[first : first + 25]]
        for found, image in zip(preprocessed(preprocessor, images), images, strict=True):
            assert np.array_equal(found, by_pillow(preprocessor, image))


SIDES = st.one_of(st.integers(1, 12), st.integers(1, 130), st.integers(1, 700))


@st.composite
def preprocessings(draw: st.DrawFn) -> tuple[Preprocessing, tuple[int, int]]:
    size = (draw(st.integers(1, 80)), draw(st.integers(1, 80)))
    name: Filter = draw(st.sampled_from(FILTERS))
    kind = draw(st.sampled_from(["squash", "edge", "none"]))
    if kind == "squash":
        return Preprocessing(resize=Squash(size=size), filter=name, **HALVES), size
    resize = ShortestEdge(edge=draw(st.integers(1, 90))) if kind == "edge" else None
    return Preprocessing(resize=resize, filter=name, crop=size, **HALVES), size


# Sizes on both sides of where Pillow changes the order of its passes, and on it.
BORDERS = [(40, 40), (41, 40), (39, 40), (80, 60), (81, 60), (80, 61), (81, 61), (79, 60), (80, 59), (700, 1), (1, 700)]


@pytest.mark.parametrize("sides", BORDERS)
@pytest.mark.parametrize("name", FILTERS)
def test_where_the_order_of_the_passes_changes(sides: tuple[int, int], name: Filter) -> None:
    preprocessor = Preprocessor(Preprocessing(resize=Squash(size=(40, 40)), filter=name, **HALVES), (40, 40))
    image = noise(*sides)
    assert np.array_equal(preprocessed(preprocessor, [image])[0], by_pillow(preprocessor, image))


def test_the_order_of_the_passes_matters() -> None:
    """If it did not, the tests above could not fail for it."""
    preprocessor = Preprocessor(Preprocessing(resize=Squash(size=(40, 40)), filter="bicubic", **HALVES), (40, 40))
    image = noise(120, 60)
    plan = plan_image(preprocessor, 120, 60)
    assert plan is not None
    other = ImagePlan(plan.rows, plan.columns, plan.top, plan.left, not plan.vertical_first)
    assert plan.vertical_first is vertical_first(120, 60, 40, 40)
    assert not np.array_equal(preprocessed(preprocessor, [image], plans=[other])[0], by_pillow(preprocessor, image))


@given(preprocessings(), SIDES, SIDES, st.integers(0, 5))
@example((Preprocessing(resize=Squash(size=(1, 1)), **HALVES), (1, 1)), 1, 1, 0)
@example((Preprocessing(resize=ShortestEdge(edge=9), filter="nearest", crop=(80, 3), **HALVES), (80, 3)), 1, 700, 1)
@settings(max_examples=500, deadline=None)
def test_any_size_filter_and_crop(
    wanted: tuple[Preprocessing, tuple[int, int]], height: int, width: int, seed: int
) -> None:
    preprocessor, image = Preprocessor(*wanted), noise(height, width, seed)
    try:
        expected = by_pillow(preprocessor, image)
        assume(plan_image(preprocessor, height, width) is not None)
    except ImageError:
        with pytest.raises(ImageError):
            plan_image(preprocessor, height, width)
        return
    assert np.array_equal(preprocessed(preprocessor, [image])[0], expected)


def test_pillow_and_a_table_say_the_same_as_our_own_preprocessing() -> None:
    """The reference of the tests above, without our code: resize, crop, look up."""
    preprocessor, image = Preprocessor(DEIT, (224, 224)), noise(300, 500)
    resized = Image.fromarray(image).resize((426, 256), Image.Resampling.BICUBIC)
    cropped = np.asarray(resized.crop((101, 16, 325, 240))).astype(np.float64)
    scaled = (cropped * (1 / 255)).astype(np.float32)
    expected = (scaled - np.array(IMAGENET["mean"], np.float32)) / np.array(IMAGENET["std"], np.float32)
    assert np.array_equal(preprocessed(preprocessor, [image])[0], expected.transpose(2, 0, 1))


def test_images_of_different_sizes_in_one_batch_with_gaps_between_rows() -> None:
    preprocessor = Preprocessor(Preprocessing(resize=Squash(size=(70, 45)), **IMAGENET), (70, 45))
    images: list[NDArray[np.uint8] | None] = [
        noise(height, width + 9, height)[:, :width]
        for height, width in [(33, 200), (200, 33), (1, 1), (70, 45), (71, 300)]
    ]
    images.insert(2, None)
    found = preprocessed(preprocessor, images)
    for made, image in zip(found, images, strict=True):
        if image is None:
            assert np.array_equal(made, np.broadcast_to(preprocessor.table[:, :1, np.newaxis], made.shape))
        else:
            assert np.array_equal(made, by_pillow(preprocessor, np.ascontiguousarray(image)))


def test_a_batch_of_none() -> None:
    preprocessor = Preprocessor(VIT, (224, 224))
    assert np.unique(preprocessed(preprocessor, [None, None])).tolist() == [-1.0]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_narrow_outputs_are_the_wide_one_rounded(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    preprocessor, image = Preprocessor(DEIT, (224, 224)), noise(250, 333)
    expected = torch.from_numpy(by_pillow(preprocessor, image))
    if dtype == "fp16":
        assert np.array_equal(preprocessed(preprocessor, [image], dtype)[0], expected.half().numpy())
    else:
        bits = expected.bfloat16().view(torch.uint16).numpy()
        assert np.array_equal(preprocessed(preprocessor, [image], dtype)[0], bits)


@pytest.mark.parametrize("preprocessing", [VIT, DEIT, Preprocessing(resize=None, crop=(224, 224))])
@pytest.mark.parametrize("sides", [(300, 500), (500, 300), (100, 90)])
def test_an_image_that_was_resized_already(preprocessing: Preprocessing, sides: tuple[int, int]) -> None:
    preprocessor, image = Preprocessor(preprocessing, (224, 224)), noise(*sides)
    geometry = preprocessor.geometry(*sides)
    resized = np.ascontiguousarray(preprocessor.resized(image, geometry))
    found = preprocessed(preprocessor, [resized], plans=[plan_resized(geometry)])
    assert np.array_equal(found[0], by_pillow(preprocessor, image))


def test_a_plan_that_would_take_too_much_room_is_none() -> None:
    assert plan_image(Preprocessor(LANCZOS, (192, 160)), 20_000, 100) is None
    assert plan_image(Preprocessor(LANCZOS, (192, 160)), 100, 20_000) is None


def test_what_the_kernel_is_told() -> None:
    plan = ImagePlan(identity_table(4), identity_table(6), 1, 2, True)
    out = np.full(2, 0, SOURCE)
    out[1]["pitch"] = 5
    describe([PlacedImage(plan, 0x1000, 99, 40), None], out)
    assert out[0].tolist() == (0x1000, 99, (40 + 12, 2, 6), (40, 1, 4), 1, 0)
    assert not any(np.asarray(value).any() for value in (out[1]["pixels"], out[1]["pitch"], out[1]["vertical_first"]))
    assert plan.words == 30


SANITIZED = """
import ctypes, sys
sys.path.insert(0, {root!r})
from tests.support import cpu_kernels
cpu_kernels.FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
from tests.cuda.test_preprocess import sanitized_runs
sanitized_runs()
print("clean")
"""


def sanitized_runs() -> None:
    """Images at the very ends of their memory: whatever is read beyond is seen by the sanitizer."""
    for preprocessing, size in [(VIT, (224, 224)), (DEIT, (224, 224)), (LANCZOS, (192, 160))]:
        for name in FILTERS:
            preprocessor = Preprocessor(preprocessing.model_copy(update={"filter": name}), size)
            preprocessed(
                preprocessor, [noise(*sides) for sides in [(300, 200), (200, 300), (1, 50), (50, 1), (230, 224)]]
            )


@pytest.mark.slow
def test_nothing_outside_of_the_images_is_read() -> None:
    """The same kernels with the address sanitizer, in a process of their own."""
    library = _library("libasan.so")
    environment: dict[str, Any] = os.environ | {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0"}
    script = SANITIZED.format(root=str(Path(__file__).parents[2]))
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.stdout.strip() == "clean", done.stderr[-2000:]


def _library(name: str) -> str:
    try:
        done = subprocess.run(["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True)
    except OSError:
        pytest.skip("needs g++")
    if not Path(done.stdout.strip()).is_absolute():
        pytest.skip("needs the address sanitizer of g++")
    return done.stdout.strip()
