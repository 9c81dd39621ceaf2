from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from tests.images.samples import encoded, exif, one_of_each, picture
from tests.support.data import sample_photos
from trt_vit.errors import ImageError
from trt_vit.images.decode import MAX_BYTES, MAX_PIXELS, decode, read_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# What Pillow warns of is silenced for the process when trt_vit.images.decode is imported; pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PHOTOS = sample_photos()
WHOLE = one_of_each()


def with_pillow(data: bytes) -> NDArray[np.uint8]:
    """The contract, written with Pillow alone: upright, on white, RGB."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def assert_exact(data: bytes) -> NDArray[np.uint8]:
    decoded = decode(data)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, with_pillow(data), strict=True)
    return decoded


def error_of(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data)
    message = str(caught.value)
    assert "\n" not in message
    assert "0x7f" not in message  # no address of an object
    return message


class TestJpeg:
    @pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"optimize": True}])
    @pytest.mark.parametrize("size", [(1, 1), (8, 16), (17, 15), (61, 83), (1, 40)])
    def test_colour(self, subsampling: str, options: dict[str, bool], size: tuple[int, int]) -> None:
        assert_exact(encoded(picture(*size), "JPEG", subsampling=subsampling, **options))

    @pytest.mark.parametrize("quality", [1, 30, 75, 95, 100])
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_quality_and_mode(self, quality: int, mode: str) -> None:
        assert_exact(encoded(picture(45, 62, mode), "JPEG", quality=quality))

    def test_colour_space_rgb(self) -> None:
        assert_exact(encoded(picture(20, 30), "JPEG", keep_rgb=True))

    @given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 100))
    @settings(max_examples=40, deadline=None)
    def test_any_size(self, height: int, width: int, quality: int) -> None:
        assert_exact(encoded(picture(height, width), "JPEG", quality=quality))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation(self, orientation: int) -> None:
        decoded = assert_exact(encoded(picture(13, 22), "JPEG", exif=exif(orientation)))
        assert decoded.shape == ((13, 22, 3) if orientation < 5 else (22, 13, 3))

    def test_orientation_in_xmp(self) -> None:
        xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
        assert assert_exact(encoded(picture(13, 22), "JPEG", xmp=xmp)).shape == (22, 13, 3)

    @pytest.mark.parametrize("before", [b"", b"\xff", b"\xff\xe2\0\x06\xff\xda12", b"\xff\xfe\0\x02", b"\xff\xd0"])
    def test_metadata_is_found_behind_anything(self, before: bytes) -> None:
        whole = encoded(picture(13, 22), "JPEG", exif=exif(6))
        at = whole.index(b"\xff\xe1")
        assert assert_exact(whole[:at] + before + whole[at:]).shape == (22, 13, 3)

    @pytest.mark.parametrize("orientation", [0, 9, 65535])
    def test_an_orientation_that_means_nothing(self, orientation: object) -> None:
        assert assert_exact(encoded(picture(13, 22), "JPEG", exif=exif(orientation))).shape == (13, 22, 3)

    def test_metadata_that_cannot_be_read_costs_nothing(self) -> None:
        whole = encoded(picture(13, 22), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
        np.testing.assert_array_equal(decode(whole), decode(encoded(picture(13, 22), "JPEG")))

    def test_several_pictures_in_one_file(self) -> None:
        assert_exact(encoded(picture(13, 22), "MPO", save_all=True, append_images=[picture(13, 22, seed=1)]))

    def test_bytes_after_the_end(self) -> None:
        assert_exact(encoded(picture(13, 22), "JPEG") + b"and more" * 100)

    def test_warnings_that_cost_no_pixel(self) -> None:
        whole = encoded(picture(13, 22), "JPEG")
        scan = whole.index(b"\xff\xda")
        for harmless in (
            whole[:scan] + b"junk" + whole[scan:],
            whole[:11] + b"\x07" + whole[12:],  # JFIF revision 7
        ):
            assert harmless != whole
            np.testing.assert_array_equal(decode(harmless), decode(whole))

    def test_damage_is_refused_where_pillow_paints_grey(self) -> None:
        whole = encoded(picture(61, 83), "JPEG", restart_marker_blocks=2)
        marker = whole.index(b"\xff\xd3")
        damaged = whole[:marker] + b"\xff\xd6" + whole[marker + 2 :]
        assert with_pillow(damaged).shape == (61, 83, 3)
        assert error_of(damaged) == "broken JPEG: found marker 0xd6 instead of RST3"
        plain = encoded(picture(61, 83), "JPEG")
        cut = plain[: len(plain) // 2] + plain[-2:]
        assert with_pillow(cut).shape == (61, 83, 3)
        assert error_of(cut) == "broken JPEG: premature end of data segment"
        assert error_of(plain[: len(plain) // 2]) == "truncated JPEG: Premature end of JPEG file"

    def test_damage_in_cmyk_is_refused_too(self) -> None:
        whole = encoded(picture(61, 83, "CMYK"), "JPEG")
        cut = whole[: len(whole) // 2] + whole[-2:]
        assert with_pillow(cut).shape == (61, 83, 3)
        assert error_of(cut) == "broken JPEG: premature end of data segment"

    @pytest.mark.skipif(not PHOTOS, reason="needs the photos of tests/support/data.py")
    def test_photos(self) -> None:
        for path in PHOTOS:
            data = read_image(str(path))
            np.testing.assert_array_equal(decode(data), with_pillow(data), strict=True, err_msg=path.name)


class TestOtherFormats:
    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
    def test_png(self, mode: str) -> None:
        assert_exact(encoded(picture(21, 34, mode), "PNG"))

    @pytest.mark.parametrize("transparency", [0, 5, bytes(range(0, 256, 16))])
    def test_palette_with_transparency(self, transparency: int | bytes) -> None:
        data = encoded(picture(21, 34).quantize(16), "PNG", transparency=transparency)
        decoded = assert_exact(data)
        opaque = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert not np.array_equal(decoded, opaque)

    @pytest.mark.parametrize(("mode", "transparency"), [("L", 40), ("RGB", (10, 20, 30))])
    def test_one_transparent_value(self, mode: str, transparency: int | tuple[int, ...]) -> None:
        image = picture(21, 34, mode)
        image.putpixel((3, 4), transparency)
        assert assert_exact(encoded(image, "PNG", transparency=transparency))[4, 3].tolist() == [255, 255, 255]

    def test_transparency_is_blended_with_white(self) -> None:
        image = Image.fromarray(np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8))
        assert assert_exact(encoded(image, "PNG")).tolist() == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]

    @pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
    def test_grey_of_16_bits_keeps_its_high_byte(self, file_format: str) -> None:
        samples = np.array([[0, 255, 256, 0x1234, 0xFF00, 0xFFFF]], np.uint16)
        decoded = decode(encoded(Image.fromarray(samples), file_format))
        assert decoded.tolist() == [[[value >> 8] * 3 for value in samples[0].tolist()]]

    def test_grey_of_16_bits_big_endian(self) -> None:
        image = Image.frombytes("I;16B", (2, 1), b"\x12\x34\xfe\xdc")
        assert decode(encoded(image, "TIFF")).tolist() == [[[0x12] * 3, [0xFE] * 3]]

    def test_grey_of_16_bits_with_a_transparent_value(self) -> None:
        samples = np.array([[0x1234, 0x1235]], np.uint16)
        whole = encoded(Image.fromarray(samples), "PNG")
        body = b"tRNS" + struct.pack(">H", 0x1234)
        chunk = struct.pack(">I", 2) + body + struct.pack(">I", zlib.crc32(body))
        at = whole.index(b"IDAT") - 4
        assert decode(whole[:at] + chunk + whole[at:]).tolist() == [[[255] * 3, [0x12] * 3]]

    @pytest.mark.parametrize("dtype", [np.int32, np.float32])
    def test_samples_of_32_bits_are_refused(self, dtype: type) -> None:
        message = error_of(encoded(Image.fromarray(np.ones((2, 3), dtype)), "TIFF"))
        assert message == "samples are not of 8 or 16 unsigned bits, so nothing says which value is white"

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"])
    @pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
    def test_tiff(self, mode: str, compression: str | None) -> None:
        assert_exact(encoded(picture(21, 34, mode), "TIFF", compression=compression))

    def test_tiff_lab(self) -> None:
        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        image = ImageCms.applyTransform(picture(21, 34), to_lab)
        assert image is not None
        assert_exact(encoded(image, "TIFF"))

    def test_tiff_jpeg_and_fax(self) -> None:
        assert_exact(encoded(picture(21, 34), "TIFF", compression="jpeg"))
        assert_exact(encoded(picture(21, 34, "1"), "TIFF", compression="group4"))

    @pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
    @pytest.mark.parametrize("file_format", ["BMP", "DIB"])
    def test_bmp(self, mode: str, file_format: str) -> None:
        assert_exact(encoded(picture(21, 34, mode), file_format))

    @pytest.mark.parametrize("options", [{}, {"lossless": True}, {"quality": 5}])
    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_webp(self, mode: str, options: dict[str, int]) -> None:
        assert_exact(encoded(picture(21, 34, mode), "WEBP", **options))

    @pytest.mark.parametrize("options", [{}, {"transparency": 2}, {"interlace": 0}])
    def test_gif(self, options: dict[str, int]) -> None:
        assert_exact(encoded(picture(21, 34).quantize(16), "GIF", **options))

    @pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
    def test_the_first_frame_or_page_counts(self, file_format: str) -> None:
        frames = [picture(21, 34, seed=seed).quantize(64).convert("RGB") for seed in range(3)]
        options = {"lossless": True} if file_format == "WEBP" else {}
        decoded = assert_exact(encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options))
        np.testing.assert_array_equal(decoded, np.asarray(frames[0]))

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
    def test_orientation(self, file_format: str, orientation: int) -> None:
        decoded = assert_exact(encoded(picture(13, 22), file_format, exif=exif(orientation)))
        assert decoded.shape == ((13, 22, 3) if orientation < 5 else (22, 13, 3))

    def test_conversion_is_that_of_transformers(self) -> None:
        transforms = pytest.importorskip("transformers.image_transforms", reason="needs transformers")
        for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
            data = encoded(picture(21, 34, mode), "PNG")
            expected = transforms.convert_to_rgb(Image.open(io.BytesIO(data)), return_numpy=True)
            np.testing.assert_array_equal(decode(data), expected)


class TestRefused:
    def test_nothing(self) -> None:
        assert error_of(b"") == "empty file"

    @pytest.mark.parametrize(
        "data", [b"\xff", b"hello, world", b"%PDF-1.7", b"RIFF\0\0\0\0WAVE", b"\0" * 100, b"<svg/>"]
    )
    def test_no_image(self, data: bytes) -> None:
        assert error_of(data) == "not an image: no known signature of JPEG, PNG, WebP, BMP, TIFF or GIF"

    @pytest.mark.parametrize("file_format", ["PPM", "TGA", "ICO", "PCX"])
    def test_formats_that_are_not_on_the_list(self, file_format: str) -> None:
        assert error_of(encoded(picture(16, 16), file_format)).startswith("not an image")

    @pytest.mark.parametrize("name", ["jpeg", "jpeg-grey", "png", "bmp", "tiff"])
    def test_truncation_is_called_so(self, name: str) -> None:
        whole = WHOLE[name]
        assert error_of(whole[: len(whole) * 3 // 4]).startswith(
            f"truncated {name.split('-', maxsplit=1)[0].upper()}: "
        )


def png_of_size(width: int, height: int) -> bytes:
    whole = encoded(Image.new("1", (1, 1)), "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


def jpeg_of_size(width: int, height: int) -> bytes:
    whole = encoded(Image.new("RGB", (8, 8)), "JPEG")
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


def gif_of_size(width: int, height: int) -> bytes:
    whole = encoded(Image.new("L", (8, 8)), "GIF")
    return whole[:6] + struct.pack("<HH", width, height) + whole[10:]


def bmp_of_size(width: int, height: int) -> bytes:
    whole = encoded(Image.new("RGB", (8, 8)), "BMP")
    return whole[:18] + struct.pack("<ii", width, height) + whole[26:]


def webp_of_size(width: int, height: int) -> bytes:
    whole = encoded(Image.new("RGBA", (8, 8)), "WEBP", exif=exif(1))
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    assert whole[12:16] == b"VP8X"
    return whole[:24] + size + whole[30:]


class TestSize:
    @pytest.mark.parametrize("make", [png_of_size, jpeg_of_size, gif_of_size, bmp_of_size, webp_of_size])
    def test_too_many_pixels_are_refused_before_memory_is_taken(self, make: Callable[[int, int], bytes]) -> None:
        resource = pytest.importorskip("resource")
        data = make(16_000, 16_000)
        error_of(data)  # what is imported at the first error is not counted
        tracemalloc.start()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            message = error_of(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert "256000000 pixels" in message
        assert str(MAX_PIXELS) in message
        assert peak < 2**20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15  # KiB

    def test_the_message_names_both_numbers(self) -> None:
        assert error_of(jpeg_of_size(20_000, 10_000)) == (
            "image has 200000000 pixels, more than the limit of 178956970"
        )

    def test_the_largest_image_allowed(self) -> None:
        width = 13_370
        assert width * (MAX_PIXELS // width) <= MAX_PIXELS
        message = error_of(png_of_size(width, MAX_PIXELS // width))
        assert message.startswith(("truncated PNG", "broken PNG"))
        assert "limit" in error_of(png_of_size(width, MAX_PIXELS // width + 1))


def test_pillow_warns_of_nothing(tmp_path: Path) -> None:
    """In a process of its own: the filter is one for the process, and pytest replaces it."""
    path = tmp_path / "odd.jpg"
    path.write_bytes(encoded(picture(13, 22), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage"))
    script = "import sys; from trt_vit.images.decode import *; print(decode(read_image(sys.argv[1])).shape)"
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", script, str(path)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("(13, 22, 3)\n", "")


class TestReadImage:
    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"\0\xff" * 5000)
        (tmp_path / "link").symlink_to("a")
        assert read_image(str(tmp_path / "link")) == b"\0\xff" * 5000

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"^cannot read the file: No such file or directory$"):
            read_image(str(tmp_path / "missing"))

    @pytest.mark.skipif(os.geteuid() == 0, reason="needs a user to whom permissions apply")
    def test_a_closed_file(self, tmp_path: Path) -> None:
        (tmp_path / "closed").touch(mode=0)
        with pytest.raises(ImageError, match=r"^cannot read the file: Permission denied$"):
            read_image(str(tmp_path / "closed"))

    def test_what_is_not_a_file_never_blocks(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
            with pytest.raises(ImageError, match=r"^not a regular file$"):
                read_image(str(path))

    def test_a_name_that_cannot_be_one(self) -> None:
        with pytest.raises(ImageError, match=r"^not a file name: embedded null byte$"):
            read_image("a\0b")

    def test_no_descriptor_is_left_open(self, tmp_path: Path) -> None:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for path in (tmp_path, tmp_path / "missing"):
            with pytest.raises(ImageError):
                read_image(str(path))
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_decoding_in_threads_gives_the_same_pixels() -> None:
    expected = {name: decode(data) for name, data in WHOLE.items()}
    names = sorted(WHOLE) * 8
    with ThreadPoolExecutor(4) as pool:
        for name, decoded in zip(names, pool.map(lambda name: decode(WHOLE[name]), names), strict=True):
            np.testing.assert_array_equal(decoded, expected[name])


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: it takes no room on the disk
    with pytest.raises(ImageError, match=f"file has {MAX_BYTES + 1} bytes, more than the limit of {MAX_BYTES}"):
        read_image(str(path))
