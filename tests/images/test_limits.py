from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.images.samples import encoded, one_of_each, picture
from trt_vit.errors import ImageError, UsageError
from trt_vit.images.decode import MAX_BYTES, MAX_PIXELS, decode, read_image
from trt_vit.images.limits import FORMATS, DecodeLimits

if TYPE_CHECKING:
    from pathlib import Path

# What Pillow warns of is silenced for the process when trt_vit.images.decode is imported; pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

WHOLE = one_of_each()
PIXELS = 29 * 33


def format_of(name: str) -> Any:
    return {"apng": "png", "dib": "bmp"}.get(name, name.split("-", maxsplit=1)[0])


def error_of(data: bytes, limits: DecodeLimits) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, limits)
    return str(caught.value)


def test_the_default_is_what_decoding_has_always_kept_to() -> None:
    assert DecodeLimits() == DecodeLimits(
        formats=frozenset(("jpeg", "png", "webp", "bmp", "tiff", "gif")),
        pixels=MAX_PIXELS,
        file_bytes=MAX_BYTES,
        seconds=None,
    )
    assert (MAX_PIXELS, MAX_BYTES) == (178_956_970, 2**30)


def test_limits_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DecodeLimits().pixels = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"formats": frozenset(("jpeg", "svg"))}, "no image format is called 'svg' (the formats are bmp, gif, jpeg"),
        ({"formats": frozenset()}, "no image format is allowed (name at least one of bmp, gif"),
        ({"pixels": 0}, "the limit of pixels is 0 (it must be more than 0)"),
        ({"file_bytes": -1}, "the limit of file_bytes is -1"),
        ({"seconds": 0.0}, "the limit of seconds is 0.0"),
        ({"seconds": float("nan")}, "the limit of seconds is nan"),
    ],
)
def test_limits_that_mean_nothing(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        DecodeLimits(**values)
    assert str(caught.value).startswith(message)


class TestFormats:
    def test_every_format_has_a_file_here(self) -> None:
        assert {format_of(name) for name in WHOLE} == FORMATS

    @pytest.mark.parametrize("name", sorted(WHOLE))
    def test_only_what_is_allowed_is_decoded(self, name: str) -> None:
        own = frozenset((format_of(name),))
        np.testing.assert_array_equal(decode(WHOLE[name], DecodeLimits(formats=own)), decode(WHOLE[name]))
        assert error_of(WHOLE[name], DecodeLimits(formats=FORMATS - own)) == f"format {format_of(name)} is not allowed"

    def test_the_content_decides_and_nothing_of_it_is_read(self) -> None:
        only_jpeg = DecodeLimits(formats=frozenset(("jpeg",)))
        assert error_of(b"\x89PNG\r\n\x1a\n and nothing else", only_jpeg) == "format png is not allowed"
        assert error_of(b"not an image", only_jpeg).startswith("not an image: no known signature")
        assert error_of(b"", only_jpeg) == "empty file"

    def test_what_a_tiff_is_compressed_with_is_still_a_tiff(self) -> None:
        data = encoded(picture(20, 30), "TIFF", compression="jpeg")
        np.testing.assert_array_equal(decode(data, DecodeLimits(formats=frozenset(("tiff",)))), decode(data))


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_pixels(name: str) -> None:
    np.testing.assert_array_equal(decode(WHOLE[name], DecodeLimits(pixels=PIXELS)), decode(WHOLE[name]))
    message = error_of(WHOLE[name], DecodeLimits(pixels=PIXELS - 1))
    assert message == f"image has {PIXELS} pixels, more than the limit of {PIXELS - 1}"


def test_pixels_where_pillow_takes_over_a_jpeg() -> None:
    whole = WHOLE["jpeg-grey"]
    odd = whole[:11] + b"\x07" + whole[12:]  # JFIF revision 7, of which libjpeg only warns
    np.testing.assert_array_equal(decode(odd, DecodeLimits(pixels=PIXELS)), decode(whole))
    assert error_of(odd, DecodeLimits(pixels=PIXELS - 1)).startswith(f"image has {PIXELS} pixels")


def test_bytes(tmp_path: Path) -> None:
    data = WHOLE["png"]
    (tmp_path / "image").write_bytes(data)
    enough = DecodeLimits(file_bytes=len(data))
    assert read_image(str(tmp_path / "image"), enough) == data
    np.testing.assert_array_equal(decode(data, enough), decode(data))
    message = f"file has {len(data)} bytes, more than the limit of {len(data) - 1}"
    assert error_of(data, DecodeLimits(file_bytes=len(data) - 1)) == message
    with pytest.raises(ImageError) as caught:
        read_image(str(tmp_path / "image"), DecodeLimits(file_bytes=len(data) - 1))
    assert str(caught.value) == message
