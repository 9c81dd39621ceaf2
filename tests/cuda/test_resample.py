"""The weights, against Pillow's own loops written out, and Pillow itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast, get_args

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trt_vit.cuda import resample
from trt_vit.cuda.resample import FRACTION_BITS, MAX_WORDS, identity_table, resize_table, vertical_first
from trt_vit.images.preprocessing import Filter

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from trt_vit.cuda.resample import AxisTable

FILTERS = cast("tuple[Filter, ...]", get_args(Filter))
SIZES = [(500, 224), (375, 224), (100, 224), (1, 7), (7, 1), (1, 1), (224, 223), (223, 224), (333, 56), (3, 8)]


def shape_of(name: Filter) -> tuple[float, Callable[[float], float]]:
    """Half a filter's width and its value at a distance."""

    def sinc(x: float) -> float:
        return 1.0 if x == 0 else math.sin(x * math.pi) / (x * math.pi)

    def bicubic(x: float) -> float:
        x = abs(x)
        if x < 1:
            return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
        return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0

    def hamming(x: float) -> float:
        x = abs(x)
        mean, swing = (float(np.float32(value)) for value in (0.54, 0.46))
        return 0.0 if x >= 1 else sinc(x) * (mean + swing * math.cos(x * math.pi)) if x else 1.0

    return {
        "box": (0.5, lambda x: 1.0 if -0.5 < x <= 0.5 else 0.0),
        "bilinear": (1.0, lambda x: max(0.0, 1.0 - abs(x))),
        "hamming": (1.0, hamming),
        "bicubic": (2.0, bicubic),
        "lanczos": (3.0, lambda x: sinc(x) * sinc(x / 3) if -3 <= x < 3 else 0.0),
    }[name]


def weighed(source: int, target: int, name: Filter) -> list[tuple[int, list[float]]]:
    """Where each pixel of an axis begins, and its weights, one after the other."""
    scale = source / target
    if name == "nearest":
        position, found = scale * 0.5, []
        for _ in range(target):
            found.append((int(position), [1.0]))
            position += scale
        return found
    half, value = shape_of(name)
    stretch = max(1.0, scale)
    pixels = []
    for index in range(target):
        center = (index + 0.5) * scale
        start = max(0, int(center - half * stretch + 0.5))
        end = min(source, int(center + half * stretch + 0.5))
        weights = [value((at - center + 0.5) * (1.0 / stretch)) for at in range(start, end)]
        total = 0.0
        for weight in weights:
            total += weight
        pixels.append((start, [weight / total if total else weight for weight in weights]))
    return pixels


def written_out(source: int, target: int, name: Filter) -> list[tuple[int, list[int]]]:
    """The same with weights rounded to integers."""

    def rounded(weight: float) -> int:
        scaled = weight * (1 << FRACTION_BITS)
        return int(scaled - 0.5 if scaled < 0 else scaled + 0.5)

    return [(start, [rounded(weight) for weight in weights]) for start, weights in weighed(source, target, name)]


def pixels_of(table: AxisTable) -> list[tuple[int, list[int]]]:
    words = table.words.reshape(-1, table.length)
    return [(int(words[0, i]), words[2 : 2 + words[1, i], i].tolist()) for i in range(table.length)]


def made(source: int, target: int, name: Filter, first: int = 0, length: int | None = None) -> AxisTable:
    table = resize_table(source, target, name, first, target - first if length is None else length)
    assert table is not None
    return table


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_the_weights_are_pillow_s(source: int, target: int, name: Filter) -> None:
    if source == target:
        assert pixels_of(made(source, target, name)) == [(i, [1 << FRACTION_BITS]) for i in range(target)]
    else:
        assert pixels_of(made(source, target, name)) == written_out(source, target, name)


@pytest.mark.parametrize("name", [name for name in FILTERS if name != "nearest"])
@pytest.mark.parametrize(("source", "target"), [pair for pair in SIZES if pair[0] != pair[1]])
def test_the_weights_are_pillow_s_to_the_last_bit_before_they_are_rounded(
    monkeypatch: pytest.MonkeyPatch, source: int, target: int, name: Filter
) -> None:
    """A last bit hardly ever decides how a weight is rounded, so that no test of rounded ones would find it."""
    found = []

    def unrounded(starts: NDArray[np.int64], weights: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        for index, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
            found.append((start, weights[:count, index].tolist()))

    monkeypatch.setattr(resample, "_table", unrounded)
    resize_table.__wrapped__(source, target, name, 0, target)
    assert found == weighed(source, target, name)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_nearest_is_one_pixel_each(source: int, target: int) -> None:
    line = np.arange(source, dtype=np.int32)[np.newaxis]
    picked = np.asarray(Image.fromarray(line).resize((target, 1), Image.Resampling.NEAREST))[0].tolist()
    assert pixels_of(made(source, target, "nearest")) == [(pixel, [1 << FRACTION_BITS]) for pixel in picked]


@given(st.integers(1, 900), st.integers(1, 300), st.sampled_from(FILTERS), st.data())
@settings(deadline=None)
def test_a_slice_is_that_part_of_the_whole_and_never_goes_back(
    source: int, target: int, name: Filter, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, target - 1))
    length = data.draw(st.integers(1, target - first))
    whole = pixels_of(made(source, target, name))
    assert pixels_of(made(source, target, name, first, length)) == whole[first : first + length]
    ends = [start + len(weights) for start, weights in whole]
    assert [start for start, _ in whole] == sorted(start for start, _ in whole)
    assert ends == sorted(ends)
    assert ends[-1] <= source


def test_identity() -> None:
    assert pixels_of(identity_table(3)) == [(i, [1 << FRACTION_BITS]) for i in range(3)]
    assert pixels_of(identity_table(2, first=5)) == [(i, [1 << FRACTION_BITS]) for i in (5, 6)]


@pytest.mark.parametrize(
    ("name", "times"), [("box", 288), ("bilinear", 144), ("hamming", 144), ("bicubic", 72), ("lanczos", 48)]
)
def test_too_large_a_table_is_none(name: Filter, times: int) -> None:
    table = resize_table(times * 224, 224, name, 0, 224)
    assert table is not None
    assert MAX_WORDS - 5 * 224 < table.words.size <= MAX_WORDS
    assert resize_table(times * 224 + 1, 224, name, 0, 224) is None
    assert resize_table(times * 224 + 1, 224, name, 5, 200) is not None  # what is cropped away takes no room


def test_a_table_is_shared_so_it_is_not_to_be_changed() -> None:
    assert resize_table(30, 20, "bicubic", 0, 20) is resize_table(30, 20, "bicubic", 0, 20)
    assert not made(30, 20, "bicubic").words.flags.writeable


@pytest.mark.parametrize(
    ("version", "sizes", "columns_first"),
    [
        ("12.0.0", (1000, 5, 10, 5), False),
        ("12.1.1", (1000, 5, 10, 5), False),
        ("12.2.0", (501, 5, 10, 5), True),
        ("12.2.0", (500, 5, 10, 5), False),
        ("12.2.0", (300, 200, 224, 224), False),
        ("12.3.0", (501, 5, 500, 5), True),
        ("12.3.0", (501, 5, 600, 5), False),
        ("12.3.0", (501, 5, 10, 5), True),
        ("12.3.1", (501, 5, 10, 5), True),
        ("12.3.1", (300, 200, 224, 224), False),
        ("12.10.0", (501, 5, 10, 5), True),
        ("12.3.1", (500, 5, 10, 5), False),
        ("13.0.0", (500, 5, 10, 5), True),
        ("13.0.0", (300, 200, 224, 224), True),
        ("13.0.0", (400, 312, 224, 224), False),  # 176 rows fewer, 88 columns fewer: exactly twice as many
        ("13.0.0", (401, 312, 224, 224), True),
        ("13.0.0", (399, 312, 224, 224), False),
        ("13.0.0", (401, 313, 224, 224), False),
        ("13.0.0", (223, 100, 224, 224), False),
        ("13.0.0", (224, 100, 224, 224), False),
        ("13.0.0", (225, 100, 224, 224), True),
        ("14.1.0", (225, 100, 224, 224), True),
    ],
)
def test_which_pass_comes_first(
    monkeypatch: pytest.MonkeyPatch, version: str, sizes: tuple[int, int, int, int], *, columns_first: bool
) -> None:
    monkeypatch.setattr(PIL, "__version__", version)
    assert vertical_first(*sizes) is columns_first


def one_pass(image: NDArray[np.uint8], axis: int, target: int, name: Filter) -> NDArray[np.uint8]:
    """One axis resized by its table, in whole numbers."""
    source = image.shape[axis]
    weights = np.zeros((target, source), dtype=np.int64)
    for index, (start, values) in enumerate(pixels_of(made(source, target, name))):
        weights[index, start : start + len(values)] = values
    sums = np.moveaxis(np.tensordot(weights, image.astype(np.int64), (1, axis)), 0, axis)
    rounded: NDArray[np.int64] = (sums + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS
    return np.clip(rounded, 0, 255).astype(np.uint8)


# What is resized, and to what, on both sides of where any Pillow changes the order of its passes, and on it.
RESIZES = [
    ((80, 60), (40, 40)), ((81, 60), (40, 40)), ((79, 60), (40, 40)),
    ((80, 59), (40, 40)), ((81, 61), (40, 40)), ((82, 61), (40, 40)),
    ((41, 30), (40, 40)), ((39, 30), (40, 40)), ((20, 30), (40, 40)),
    ((41, 41), (40, 40)), ((43, 41), (40, 40)), ((120, 60), (31, 33)), ((60, 120), (33, 31)),
    ((1201, 12), (40, 10)), ((1200, 12), (40, 10)), ((1201, 12), (40, 700)),
    ((301, 3), (400, 40)), ((203, 2), (224, 224)),
]  # fmt: skip


@pytest.mark.parametrize(("sizes", "target"), RESIZES)
@pytest.mark.parametrize("name", ["bilinear", "hamming", "bicubic", "lanczos"])  # the others may copy, in any order
def test_only_one_order_of_the_passes_is_that_of_the_installed_pillow(
    sizes: tuple[int, int], target: tuple[int, int], name: Filter
) -> None:
    image = np.random.default_rng(sizes).integers(0, 256, size=(*sizes, 3), dtype=np.uint8)
    pillow = np.asarray(Image.fromarray(image).resize(target[::-1], Image.Resampling[name.upper()]))
    columns_first = one_pass(one_pass(image, 0, target[0], name), 1, target[1], name)
    rows_first = one_pass(one_pass(image, 1, target[1], name), 0, target[0], name)
    right, wrong = columns_first, rows_first
    if not vertical_first(*sizes, *target):
        right, wrong = wrong, right
    assert np.array_equal(right, pillow)
    assert not np.array_equal(wrong, pillow)
