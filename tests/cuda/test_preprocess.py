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
from tests.support.kernels import CANARY, best, preprocessed
from trt_vit.cuda.preprocess import (
    ARGUMENTS,
    SOURCE,
    ImagePlan,
    PlacedImage,
    describe,
    plan_image,
    plan_resized,
    preprocess_kernel,
)
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


def by_hand(preprocessing: Preprocessing, size: tuple[int, int], image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The same without our code: Pillow resizes, each output pixel is picked, and the formula is computed for it."""
    height, width = image.shape[:2]
    sides = height, width
    resize = preprocessing.resize
    if isinstance(resize, Squash):
        sides = resize.size
    elif resize is not None:
        shorter = min(height, width)
        sides = int(resize.edge * height / shorter), int(resize.edge * width / shorter)
    resample = Image.Resampling[preprocessing.filter.upper()]
    resized = np.asarray(Image.fromarray(image).resize(sides[::-1], resample))
    padded = np.zeros((*size, 3), dtype=np.uint8)
    (down, inside_down), (across, inside_across) = (
        (at, (at >= 0) & (at < side))
        for wanted, side in zip(size, sides, strict=True)
        for at in [np.arange(wanted) + (side - wanted) // 2]
    )
    padded[np.ix_(inside_down, inside_across)] = resized[np.ix_(down[inside_down], across[inside_across])]
    values = padded.transpose(2, 0, 1).astype(np.float32)
    if preprocessing.rescale is not None:
        values = (values.astype(np.float64) * preprocessing.rescale).astype(np.float32)
    if preprocessing.mean is not None:
        mean, std = (np.array(given, np.float32)[:, None, None] for given in (preprocessing.mean, preprocessing.std))
        values = (values - mean) / std
    return values


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
            assert np.array_equal(found, by_hand(preprocessing, size, image))


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
BORDERS = [
    (40, 40), (41, 40), (39, 40),  # as many columns as before
    (40, 30), (41, 30), (39, 30),  # as many rows, and one more, and one fewer
    (80, 60), (81, 60), (79, 60), (80, 59), (80, 61), (81, 61),  # twice as many rows fewer as columns fewer
    (700, 1), (1, 700), (700, 6), (700, 7), (700, 8),
]  # fmt: skip


@pytest.mark.parametrize("sides", BORDERS)
@pytest.mark.parametrize("name", FILTERS)
def test_where_the_order_of_the_passes_changes(sides: tuple[int, int], name: Filter) -> None:
    preprocessing = Preprocessing(resize=Squash(size=(40, 40)), filter=name, **HALVES)
    preprocessor, image = Preprocessor(preprocessing, (40, 40)), noise(*sides)
    found = preprocessed(preprocessor, [image])[0]
    assert np.array_equal(found, by_pillow(preprocessor, image))
    assert np.array_equal(found, by_hand(preprocessing, (40, 40), image))


@pytest.mark.parametrize("sides", [(120, 60), (60, 120), (41, 30), (39, 30), (81, 60), (80, 60), (79, 60)])
def test_the_order_of_the_passes_matters(sides: tuple[int, int]) -> None:
    """If it did not, the tests above could not fail for it."""
    preprocessor = Preprocessor(Preprocessing(resize=Squash(size=(40, 40)), filter="bicubic", **HALVES), (40, 40))
    image = noise(*sides)
    plan = plan_image(preprocessor, *sides)
    assert plan is not None
    other = ImagePlan(plan.rows, plan.columns, plan.top, plan.left, not plan.vertical_first)
    assert plan.vertical_first is vertical_first(*sides, 40, 40)
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
    found = preprocessed(preprocessor, [image])[0]
    assert np.array_equal(found, expected)
    assert np.array_equal(found, by_hand(*wanted, image))


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
            assert image.shape[0] == 1 or image.strides[0] > 3 * image.shape[1]
            assert np.array_equal(made, by_pillow(preprocessor, np.ascontiguousarray(image)))


@pytest.mark.parametrize("around", [0, 255])
@pytest.mark.parametrize("sides", [(70, 130), (300, 40)])  # rows first, columns first
def test_what_is_around_an_image_changes_nothing_and_is_not_changed(around: int, sides: tuple[int, int]) -> None:
    height, width = sides
    preprocessing = Preprocessing(resize=ShortestEdge(edge=37), filter="lanczos", crop=(45, 33), **IMAGENET)
    preprocessor, image = Preprocessor(preprocessing, (45, 33)), noise(height, width)
    memory = np.full((height + 20, width + 20, 3), around, dtype=np.uint8)
    placed = memory[10:-10, 10:-10]
    placed[:] = image
    before = memory.copy()
    assert np.array_equal(preprocessed(preprocessor, [placed])[0], by_pillow(preprocessor, image))
    assert np.array_equal(memory, before)


SIDES_OF_TILES = [(1, 1), (31, 32), (32, 32), (32, 33), (64, 65), (97, 31)]


@pytest.mark.parametrize("size", SIDES_OF_TILES)
@pytest.mark.parametrize("sides", [(1, 1), (63, 64), (64, 65), (65, 128), (129, 20), (33, 31)])
def test_where_tiles_and_chunks_end(size: tuple[int, int], sides: tuple[int, int]) -> None:
    for resize in (Squash(size=size), ShortestEdge(edge=48), None):
        preprocessing = Preprocessing(resize=resize, filter="bicubic", crop=size, **HALVES)
        image = noise(*sides)
        assert np.array_equal(
            preprocessed(Preprocessor(preprocessing, size), [image])[0], by_hand(preprocessing, size, image)
        )


def test_a_batch_of_none() -> None:
    preprocessor = Preprocessor(VIT, (224, 224))
    assert np.unique(preprocessed(preprocessor, [None, None])).tolist() == [-1.0]


# The last one makes odd numbers up to 765 and 2805: between two of bf16's, or of fp16's, as often as not.
NARROWED = [
    DEIT,
    Preprocessing(resize=None, crop=(224, 224), rescale=3),
    Preprocessing(resize=None, crop=(33, 70), rescale=11),
]


@pytest.mark.parametrize("preprocessing", NARROWED)
def test_fp16_is_the_wide_output_rounded(preprocessing: Preprocessing) -> None:
    preprocessor, images = Preprocessor(preprocessing, preprocessing.crop or (0, 0)), [noise(250, 333), None]
    wide = preprocessed(preprocessor, images)
    found = preprocessed(preprocessor, images, "fp16")
    assert found.dtype == np.float16
    assert np.array_equal(found, wide.astype(np.float16))


@pytest.mark.parametrize("preprocessing", NARROWED)
def test_bf16_is_the_wide_output_rounded(preprocessing: Preprocessing) -> None:
    torch = pytest.importorskip("torch", reason="needs torch, which knows bf16")
    preprocessor, images = Preprocessor(preprocessing, preprocessing.crop or (0, 0)), [noise(250, 333), None]
    wide = torch.from_numpy(preprocessed(preprocessor, images).copy())
    found = preprocessed(preprocessor, images, "bf16")
    assert found.dtype == np.uint16
    assert np.array_equal(found, wide.bfloat16().view(torch.uint16).numpy())


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
    out = np.frombuffer(bytes([CANARY]) * 2 * SOURCE.itemsize, SOURCE).copy()
    describe([PlacedImage(plan, 0x1000, 99, 40), None], out)
    assert out[0].tolist() == (0x1000, 99, (40 + 12, 2, 6), (40, 1, 4), 1, 0)
    assert out[1].tolist() == (0, 0, (0, 0, 0), (0, 0, 0), 0, 0)
    assert plan.words == 30
    with pytest.raises(ValueError, match="argument 2 is longer"):
        describe([None], out)


@pytest.mark.parametrize(
    ("size", "tiles"), [((1, 1), 1), ((32, 32), 1), ((33, 32), 2), ((224, 224), 49), ((40, 97), 8)]
)
def test_the_argument_and_the_grid(size: tuple[int, int], tiles: int) -> None:
    kernel = preprocess_kernel(Preprocessor(Preprocessing(resize=Squash(size=size)), size))
    assert kernel.grid(5) == (tiles, 5)
    argument = kernel.arguments(sources=1, tables=2, values=3, output=4)
    assert np.frombuffer(argument, ARGUMENTS)[0].tolist() == (1, 2, 3, 4, *size)


SANITIZED = """
import ctypes, sys
sys.path.insert(0, {root!r})
from tests.support import cpu_kernels
cpu_kernels.FLAGS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
from tests.cuda.test_preprocess import sanitized_runs
sanitized_runs()
print("clean")
"""


def sanitized_runs() -> None:
    """Images at the very ends of their memory: whatever is read beyond is seen by the sanitizer."""
    padded = Preprocessing(resize=ShortestEdge(edge=40), crop=(70, 45), **HALVES)
    unresized = Preprocessing(resize=None, crop=(65, 33), **HALVES)
    sides = [(300, 200), (200, 300), (1, 50), (50, 1), (230, 224), (64, 65), (1, 1)]
    for preprocessing, size in [(LANCZOS, (192, 160)), (DEIT, (224, 224)), (padded, (70, 45)), (unresized, (65, 33))]:
        for name in FILTERS:
            preprocessor = Preprocessor(preprocessing.model_copy(update={"filter": name}), size)
            gaps = np.concatenate([noise(40, 60).reshape(-1), noise(1, 50).reshape(-1)])  # of the last row, no gap
            image = np.lib.stride_tricks.as_strided(gaps, (41, 50, 3), (180, 3, 1))
            for dtype in ("fp32", "fp16"):
                preprocessed(preprocessor, [*(noise(*pair) for pair in sides), None, image], dtype)
    for classes, k in [(1, 1), (7, 7), (257, 5), (1500, 1024)]:
        logits = noise(1, classes)[0, :, 0].astype(np.float32)[np.newaxis].repeat(2, axis=0)
        best(logits, k)
        best(logits.astype(np.float16), k, "fp16")
        best(logits.astype(np.uint16), k, "bf16")


@pytest.mark.slow
def test_nothing_outside_of_what_the_kernels_are_given_is_read() -> None:
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
