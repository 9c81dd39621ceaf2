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

from trt_vit.cuda.resample import FRACTION_BITS, MAX_WORDS, identity_table, resize_table, vertical_first
from trt_vit.images.preprocessing import Filter

if TYPE_CHECKING:
    from collections.abc import Callable

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


def written_out(source: int, target: int, name: Filter) -> list[tuple[int, list[int]]]:
    """Where each pixel of an axis begins, and its weights, one after the other."""
    half, value = shape_of(name)
    scale = source / target
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
        scaled = [(weight / total if total else weight) * (1 << FRACTION_BITS) for weight in weights]
        pixels.append((start, [int(weight - 0.5 if weight < 0 else weight + 0.5) for weight in scaled]))
    return pixels


def pixels_of(table: AxisTable) -> list[tuple[int, list[int]]]:
    words = table.words.reshape(-1, table.length)
    return [(int(words[0, i]), words[2 : 2 + words[1, i], i].tolist()) for i in range(table.length)]


def made(source: int, target: int, name: Filter, first: int = 0, length: int | None = None) -> AxisTable:
    table = resize_table(source, target, name, first, target - first if length is None else length)
    assert table is not None
    return table


@pytest.mark.parametrize("name", [name for name in FILTERS if name != "nearest"])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_the_weights_are_pillow_s(source: int, target: int, name: Filter) -> None:
    if source == target:
        assert pixels_of(made(source, target, name)) == [(i, [1 << FRACTION_BITS]) for i in range(target)]
    else:
        assert pixels_of(made(source, target, name)) == written_out(source, target, name)


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


def test_too_large_a_table_is_none() -> None:
    assert resize_table(11_000, 224, "lanczos", 0, 224) is None
    table = resize_table(30_000, 224, "bilinear", 0, 224)
    assert table is not None
    assert table.words.size <= MAX_WORDS
    assert not table.words.flags.writeable


@pytest.mark.parametrize(
    ("version", "sizes", "columns_first"),
    [
        ("12.0.0", (1000, 5, 10, 5), False),
        ("12.3.0", (501, 5, 10, 5), True),
        ("12.3.1", (500, 5, 10, 5), False),
        ("13.0.0", (500, 5, 10, 5), True),
        ("13.0.0", (300, 200, 224, 224), True),
        ("13.0.0", (400, 312, 224, 224), False),  # 176 rows fewer, 88 columns fewer: exactly twice as many
        ("13.0.0", (401, 312, 224, 224), True),
        ("13.0.0", (224, 100, 224, 224), False),
        ("14.1.0", (225, 100, 224, 224), True),
    ],
)
def test_which_pass_comes_first(
    monkeypatch: pytest.MonkeyPatch, version: str, sizes: tuple[int, int, int, int], *, columns_first: bool
) -> None:
    monkeypatch.setattr(PIL, "__version__", version)
    assert vertical_first(*sizes) is columns_first
