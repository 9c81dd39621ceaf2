"""Files that are small and would be large in memory: each one is an image or an error within a bound of memory.

The bound is the kernel's, on a worker process above what it has at rest. What was measured is in brackets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import PIL
import pytest
from PIL import Image

from tests.corpus.bombs import (
    LONG,
    MIB,
    SHORT,
    bmp,
    chunk,
    exif_of,
    gif,
    ifd,
    inflating,
    jpeg_of_size,
    jpeg_with,
    png,
    repeating,
    tiff,
    webp_canvas,
    webp_lossless,
    webp_lossy,
)
from tests.images.samples import encoded, exif, picture
from trt_vit.errors import ImageError
from trt_vit.images.decode import decode
from trt_vit.images.limits import MAX_PIXELS, DecodeLimits
from trt_vit.images.workers import DecodeWorkers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What Pillow warns of is silenced for the process when trt_vit.images.decode is imported; pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

LIMITS = DecodeLimits(seconds=120)
TOO_MANY = f"pixels, more than the limit of {MAX_PIXELS}"
ZEROS = bytes(10**6)
COUNTS_REPEATED_TAGS = pytest.mark.skipif(
    int(PIL.__version__.partition(".")[0]) < 13, reason="needs Pillow 13: older ones copy what many tags share"
)


@pytest.fixture(scope="module")
def little() -> Iterator[DecodeWorkers]:
    """A worker that may take 4 MiB."""
    with DecodeWorkers(1, LIMITS, 4 * MIB) as workers:
        yield workers


def error_of(workers: DecodeWorkers, data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        workers.decode(data)
    return str(caught.value)


def outcome(data: bytes, memory: int, limits: DecodeLimits = LIMITS) -> str:
    """The shape or the error in a worker that may take so many MiB."""
    with DecodeWorkers(1, limits, memory * MIB) as workers:
        try:
            return str(workers.decode(data).shape)
        except ImageError as error:
            return str(error)


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (png(size=(100_000, 100_000)), 10**10),
        (png(size=(2**31 - 1, 2**31 - 1)), (2**31 - 1) ** 2),
        (gif((65_535, 65_535), (8, 8)), 65_535**2),
        (jpeg_of_size(65_500, 65_500), 65_500**2),
        (jpeg_of_size(65_500, 65_500, progressive=True), 65_500**2),
        (bmp(100_000, 100_000), 10**10),
        (bmp(2**31 - 1, 2**31 - 1), (2**31 - 1) ** 2),
        (webp_canvas(2**24, 255), 2**24 * 255),
        (webp_canvas(16_383, 16_383), 16_383**2),
        (webp_lossless(16_384, 16_384), 2**28),
        (webp_lossy(16_383, 16_383), 16_383**2),
        (tiff((60_000, 60_000)), 60_000**2),
        (tiff((2**32 - 1, 2**32 - 1), (259, SHORT, 1, 5)), (2**32 - 1) ** 2),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(little: DecodeWorkers, data: bytes, pixels: int) -> None:
    assert len(data) < 1000
    assert error_of(little, data) == f"image has {pixels} {TOO_MANY}"  # [0.3 MiB]


def test_a_frame_beyond_its_screen(little: DecodeWorkers) -> None:
    message = error_of(little, gif((8, 8), (65_535, 65_535)))
    assert message.startswith("broken GIF: Image size (4294836225 pixels) exceeds limit")


@pytest.mark.parametrize(
    "data",
    [
        *(png(size=size) for size in ((0, 8), (8, 0), (0, 0))),
        *(jpeg_of_size(*size) for size in ((0, 8), (8, 0), (0, 0))),
        *(bmp(*size) for size in ((0, 8), (8, 0), (0, 0))),
        *(tiff(size) for size in ((0, 8), (8, 0), (0, 0))),
        gif((0, 0), (0, 0)),
        gif((8, 8), (0, 0)),
        webp_lossy(0, 0),
    ],
)
def test_no_pixels_are_no_image(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"^broken (PNG|JPEG|BMP|TIFF|GIF|WEBP): \w"):
        decode(data)


@pytest.mark.parametrize("compression", [2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000, 50001])
def test_tiff_strips_and_tiles_larger_than_the_image(little: DecodeWorkers, compression: int) -> None:
    kind = (259, SHORT, 1, compression)
    strip = tiff((8, 8), kind, (278, LONG, 1, 2**32 - 1), (279, LONG, 1, 2**32 - 1))
    assert error_of(little, strip).startswith("broken TIFF: ")  # [0.3 MiB]
    side = 65_536
    tiles = [(322, LONG, 1, side), (323, LONG, 1, side), (324, LONG, 1, 8), (325, LONG, 1, 64)]
    expected = f"image has tiles of {side**2} {TOO_MANY}"
    assert error_of(little, tiff((8, 8), kind, *tiles)) == expected  # [0.3 MiB; it would be 2 GiB]


def test_tiff_tiles_follow_the_limit_of_pixels_but_may_be_larger_than_a_small_image() -> None:
    limits = DecodeLimits(pixels=64)
    for side, refused in ((1024, False), (1040, True)):
        tiles = [(322, LONG, 1, side), (323, LONG, 1, side), (324, LONG, 1, 8), (325, LONG, 1, 64)]
        with pytest.raises(ImageError) as caught:
            decode(tiff((8, 8), (259, SHORT, 1, 5), *tiles), limits)
        assert (str(caught.value) == f"image has tiles of {side**2} pixels, more than the limit of 64") is refused


@pytest.mark.parametrize("kind", [2, 5, 12])
def test_tiff_tiles_that_are_no_numbers(kind: int) -> None:
    """A text times a number would be a long text."""
    tiles = [(322, kind, 8, 8), (323, LONG, 1, 2**31 - 1), (324, LONG, 1, 8), (325, LONG, 1, 64)]
    assert outcome(tiff((8, 8), (259, SHORT, 1, 5), *tiles), 16)[:12] in ("broken TIFF:", "not an image")


class TestMetadata:
    """Text and profiles that inflate, directories that loop or share their data."""

    @pytest.mark.parametrize(("kind", "head"), [(b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")])
    def test_one_that_inflates_to_much(self, kind: bytes, head: bytes) -> None:
        data = png(chunk(kind, head + inflating(1024)))
        assert len(data) < 1.1 * MIB
        assert outcome(data, 8).startswith("broken PNG: Decompressed data too large")  # [4 MiB]

    def test_many_that_inflate_to_a_little(self) -> None:
        text = inflating(1)
        data = png(*[chunk(b"zTXt", b"k%d\0\0" % number + text) for number in range(1000)])
        assert len(data) < 1.1 * MIB
        assert outcome(data, 80).startswith("broken PNG: Too much memory used in text chunks")  # [68 MiB]
        profiles = png(*[chunk(b"iCCP", b"k\0\0" + text) for _ in range(100)])
        assert outcome(profiles, 8) == "(8, 8, 3)"  # [3 MiB]

    def test_pixels_that_inflate_to_more_than_the_image(self) -> None:
        data = png(pixels=inflating(1024))
        assert outcome(data, 4) == "(8, 8, 3)"  # [0.3 MiB]

    @COUNTS_REPEATED_TAGS
    @pytest.mark.parametrize(
        "make",
        [
            lambda exif: png(chunk(b"eXIf", exif[6:])),
            lambda exif: encoded(picture(8, 8), "WEBP", exif=exif),
            lambda exif: jpeg_with(
                *[(b"Exif\0\0" * bool(at)) + exif[at : at + 60_000] for at in range(0, 10**6, 60_000)]
            ),
        ],
        ids=["png", "webp", "jpeg"],
    )
    def test_exif_of_many_tags_that_share_their_data(self, make: Callable[[bytes], bytes]) -> None:
        data = make(exif_of(repeating(20_000, 900_000, ZEROS), ZEROS))
        assert len(data) < 1.3 * MIB
        assert outcome(data, 24) in ("(8, 8, 3)", "(13, 22, 3)")  # [8 MiB; it would be 17 GiB]

    @COUNTS_REPEATED_TAGS
    def test_tiff_of_many_tags_that_share_their_data(self) -> None:
        data = tiff((8, 8), *repeating(20_000, 10**6, ZEROS), data=ZEROS)
        assert outcome(data, 24) == "(8, 8, 3)"  # [5 MiB; it would be 19 GiB]

    def test_directories_that_loop(self) -> None:
        to_itself = [(tag, LONG, 1, 8) for tag in (330, 34_665, 34_853, 40_965)]
        assert outcome(jpeg_with(exif_of(to_itself, following=8)), 4) == "(13, 22, 3)"  # [0.7 MiB]
        to_itself = [(tag, LONG, 1, 72) for tag in (330, 34_665, 34_853, 40_965)]
        assert outcome(tiff((8, 8), *to_itself, following=72), 4) == "(8, 8, 3)"  # [0.3 MiB]

    def test_directories_within_directories(self) -> None:
        deep = b"".join(ifd([(34_665, LONG, 1, 26 + 18 * number)], 26 + 18 * number) for number in range(3000))
        assert outcome(jpeg_with(b"Exif\0\0II*\0\x08\0\0\0" + deep), 4) == "(13, 22, 3)"  # [0.9 MiB]

    @pytest.mark.parametrize("entry", [(258, SHORT, 2**31, 8), (320, SHORT, 2**32 - 1, 8), (273, LONG, 2**28, 8)])
    def test_more_values_than_the_file_has(self, entry: tuple[int, int, int, int]) -> None:
        assert outcome(tiff((8, 8), entry), 4)[:12] in ("(8, 8, 3)", "broken TIFF:")  # [0.3 MiB]

    def test_comments(self) -> None:
        whole = encoded(Image.new("L", (8, 8)), "GIF")
        at = whole.index(b"\x2c\0\0\0\0")
        comment = b"\x21\xfe" + (b"\xff" + b"x" * 255) * 1000 + b"\0"
        assert outcome(whole[:at] + comment * 4 + whole[at:], 24) == "(8, 8, 3)"  # [5 MiB]


HEIGHT, WIDTH = 1024, 1536
# Each with the bytes a pixel that decoding it may take. [Measured: one to two less; larger pictures take no more.]
KINDS: dict[str, tuple[int, Callable[[Image.Image], bytes]]] = {
    "jpeg": (5, lambda image: encoded(image, "JPEG")),
    "jpeg-turned": (8, lambda image: encoded(image, "JPEG", exif=exif(6))),
    "jpeg-progressive": (12, lambda image: encoded(image, "JPEG", progressive=True, subsampling="4:4:4")),
    "jpeg-cmyk": (17, lambda image: encoded(image.convert("CMYK"), "JPEG")),
    "png": (15, lambda image: encoded(image, "PNG", compress_level=1)),
    "png-16": (12, lambda image: encoded(image.convert("I;16"), "PNG", compress_level=1)),
    "png-alpha": (27, lambda image: encoded(image.convert("RGBA"), "PNG", compress_level=1)),
    "png-palette": (
        22,
        lambda image: encoded(image.quantize(16, Image.Quantize.FASTOCTREE), "PNG", transparency=3, compress_level=1),
    ),
    "bmp": (15, lambda image: encoded(image, "BMP")),
    "gif": (14, lambda image: encoded(image.quantize(16, Image.Quantize.FASTOCTREE), "GIF")),
    "tiff": (15, lambda image: encoded(image, "TIFF")),
    "tiff-lzw": (17, lambda image: encoded(image, "TIFF", compression="tiff_lzw")),
    "tiff-jpeg": (17, lambda image: encoded(image.convert("CMYK"), "TIFF", compression="jpeg")),
    "webp": (21, lambda image: encoded(image, "WEBP", method=0)),
    "webp-alpha": (38, lambda image: encoded(transparent(image), "WEBP", method=0, lossless=True, quality=0)),
}


def transparent(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(image.convert("L"))
    return image


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_memory_is_bounded_by_the_pixels(kind: str) -> None:
    """With less, it is the memory that is said to be too little, and never the image or, worse, other pixels."""
    enough, make = KINDS[kind]
    pixels = HEIGHT * WIDTH
    data = make(picture(HEIGHT, WIDTH))
    with DecodeWorkers(1, LIMITS, enough * pixels) as workers:
        np.testing.assert_array_equal(workers.decode(data), decode(data))
    for share in (0.05, 0.2, 0.4, 0.6):
        memory = int(share * enough * pixels)
        with DecodeWorkers(1, LIMITS, memory) as workers, pytest.raises(ImageError) as caught:
            workers.decode(data)
        assert str(caught.value) == f"decoding needs more than {memory / MIB:g} MiB"


def test_damage_that_is_known_to_be_damage_is_not_taken_for_lack_of_memory() -> None:
    assert outcome(tiff((3000, 3000)), 32).startswith("truncated TIFF: ")


def test_a_picture_of_one_colour_that_is_34_bytes() -> None:
    """Small but whole: only limits of pixels or memory are against it."""
    data = webp_lossless(8000, 8000)
    assert len(data) == 34
    assert outcome(data, 256) == "decoding needs more than 256 MiB"  # [1.1 GiB]
    assert outcome(data, 256, DecodeLimits(pixels=10**6)) == "image has 64000000 pixels, more than the limit of 1000000"


def test_memory_that_is_short_here_is_told_apart_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise MemoryError

    turned = [encoded(picture(13, 22), kind, exif=exif(6)) for kind in ("JPEG", "PNG", "TIFF", "WEBP")]
    assert [decode(data).shape for data in turned] == [(22, 13, 3)] * 4
    for name in ("PIL.Image.Image.getexif", "PIL.ImageFile.ImageFile.load"):  # without the first: not turned upright
        monkeypatch.setattr(name, refuse)
        for data in turned:
            with pytest.raises(ImageError, match=r"^not enough memory for this image$"):
                decode(data)
