"""The GPU's decoder: which files it is given, and what is made of its answers."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trt_vit.cuda import decode as module
from trt_vit.cuda.decode import GpuDecoder, gpu_can_decode, open_decoder
from trt_vit.errors import EnvironmentFault

if TYPE_CHECKING:
    from collections.abc import Callable

PIXELS = np.random.default_rng(0).integers(0, 256, size=(16, 24, 3), dtype=np.uint8)


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(exif=exif)


def patched(data: bytes, marker: bytes, offset: int, value: bytes) -> bytes:
    place = data.index(marker) + offset
    return data[:place] + value + data[place + len(value) :]


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG")
    return stream.getvalue()


def inserted(data: bytes, segment: bytes, before: bytes) -> bytes:
    place = data.index(before)
    return data[:place] + segment + data[place:]


def adobe(transform: int) -> bytes:
    return b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])


def turned_by_xmp(orientation: int) -> bytes:
    """A picture whose orientation is in XMP alone."""
    return jpeg(xmp=f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode())


SOF = b"\xff\xc0\x00\x11"
TABLES = b"\xff\xdb"
SCAN = b"\xff\xda"
NAME, SAMPLING = 10, 11
"""Where in a frame's header the first component's name and sampling are."""


@pytest.mark.parametrize(
    "data",
    [
        jpeg(),
        jpeg("L"),
        jpeg(subsampling="4:4:4"),
        jpeg(subsampling="4:2:2"),
        jpeg(progressive=True),
        jpeg(comment=b"\xff\xd9" * 30),
        turned(1),
        jpeg(icc_profile=b"p" * 90_000),
        turned_by_xmp(1),
        patched(jpeg(subsampling="4:4:4"), SOF, SAMPLING, b"\x12"),  # 4:4:0, were the picture made for it
        inserted(jpeg(), adobe(1), TABLES),
        inserted(jpeg("L"), adobe(0), TABLES),  # says nothing of one component
        inserted(jpeg(), b"\xff\xee\0\x06Ducky"[:8], TABLES),  # not Adobe's
    ],
)
def test_plain_files_are_for_the_gpu(data: bytes) -> None:
    assert gpu_can_decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff\xd9",
        png(),
        jpeg()[:-1],
        jpeg() + b"\0",
        jpeg("CMYK"),
        jpeg(keep_rgb=True),
        *(turned(orientation) for orientation in range(2, 9)),
        turned_by_xmp(6),
        patched(jpeg(), SOF, 4, b"\x0c"),  # 12 bits
        patched(jpeg(), SOF, 5, b"\xff\xff\xff\xff"),  # 65,535 x 65,535 pixels
        patched(jpeg(), SOF, 5, b"\0\0"),  # no rows
        patched(jpeg(), SOF, 1, b"\xc3"),  # lossless
        patched(jpeg(), SOF, 1, b"\xc9"),  # arithmetic coding
        patched(jpeg(), SOF, 1, b"\xc1"),  # extended, which nvJPEG does not document
        patched(jpeg(), SOF, 9, b"\1"),  # one component of three
        patched(jpeg(), SOF, NAME, b"\7"),
        patched(jpeg(), SOF, SAMPLING, b"\x41"),  # 4:1:1
        patched(jpeg(), SCAN, 4, b"\1"),  # a scan for each component
        inserted(jpeg(), b"\xff" + adobe(0), TABLES),  # behind a byte that fills
        inserted(jpeg(), adobe(0) + adobe(1), TABLES),
        inserted(jpeg(), adobe(2), TABLES),
        inserted(jpeg(), b"\xff\xde\0\2", TABLES),  # hierarchical
        inserted(jpeg(), jpeg()[jpeg().index(SOF) :][:19], SCAN),  # two frames
        jpeg()[: jpeg().index(SCAN)] + b"\xff\xd9",  # no picture
        jpeg()[: jpeg().index(SOF) + 12] + b"\xff\xd9",  # ends within the header
    ],
)
def test_others_are_for_the_cpu(data: bytes) -> None:
    assert not gpu_can_decode(data)


@given(st.binary(max_size=200), st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=3)), max_size=6))
@settings(deadline=None, max_examples=300)
def test_any_bytes_get_an_answer(junk: bytes, changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(jpeg())
    for place, value in changes:
        data[place : place + len(value)] = value
    for file in (junk, b"\xff\xd8" + junk + b"\xff\xd9", bytes(data), bytes(data[: len(junk)]) + junk):
        assert gpu_can_decode(file) in {True, False}


def image_at(address: int, **facts: Any) -> SimpleNamespace:
    interface = {"shape": (4, 5, 3), "strides": None, "typestr": "|u1", "data": (address, False)} | facts
    return SimpleNamespace(__cuda_array_interface__=interface)


class FakeCodec(ModuleType):
    """nvidia.nvimgcodec, as much of it as is used."""

    def __init__(self) -> None:
        super().__init__("nvimgcodec")
        self.made: dict[str, Any] = {}
        self.answer: Any = []
        self.calls: list[tuple[list[bytes], int]] = []
        self.BackendKind = SimpleNamespace(HW_GPU_ONLY="hardware", GPU_ONLY="gpu", HYBRID_CPU_GPU="hybrid")
        self.LoadHintPolicy = SimpleNamespace(FIXED="fixed")
        self.SampleFormat = SimpleNamespace(I_RGB="rgb")
        self.ColorSpec = SimpleNamespace(SRGB="srgb")
        self.Backend = lambda kind, **options: (kind, options)
        self.DecodeParams = lambda **options: options

    def Decoder(self, **options: Any) -> FakeCodec:  # noqa: N802
        self.made = options
        return self

    def decode(self, files: list[bytes], *, params: Any, cuda_stream: int) -> Any:
        assert params == {
            "apply_exif_orientation": False,
            "color_spec": "srgb",
            "allow_any_depth": False,
            "sample_format": "rgb",
        }
        self.calls.append((files, cuda_stream))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_how_the_decoder_is_made() -> None:
    codec = FakeCodec()
    GpuDecoder(codec, 3)
    hardware, *others = codec.made["backends"]
    assert hardware == ("hardware", {"load_hint": 0.8, "load_hint_policy": "fixed"})
    assert [kind for kind, _ in others] == ["hybrid"]  # nothing is decoded on the CPU alone
    assert (codec.made["device_id"], codec.made["max_num_cpu_threads"]) == (3, 4)
    assert codec.made["options"] == ":fancy_upsampling=1"
    GpuDecoder(codec, hardware_share=0.5, cpu_threads=1)
    assert codec.made["backends"][0][1]["load_hint"] == 0.5
    assert (codec.made["device_id"], codec.made["max_num_cpu_threads"]) == (0, 1)


class HostImage:
    @property
    def __cuda_array_interface__(self) -> Any:
        raise RuntimeError("Unable to initialize __cuda_array_interface__: Image buffer is not on device")


def test_images_are_described_and_failures_are_none() -> None:
    codec = FakeCodec()
    padded = image_at(0x2000, strides=(64, 3, 1))
    codec.answer = [
        image_at(0x1000),
        None,
        padded,
        image_at(1, typestr="<u2"),
        image_at(1, shape=(4, 5, 4)),
        image_at(1, strides=(1, 4, 20)),
        image_at(1, strides=(14, 3, 1)),
        image_at(1, shape=(5, 3)),
        image_at(1, shape=(0, 5, 3)),
        image_at(1, shape=(1 << 14, 1 << 13, 3)),
        image_at(0),
        HostImage(),
    ]
    files = [b"%d" % number for number in range(len(codec.answer))]
    found = GpuDecoder(codec, 0).decode(files, 77)
    assert codec.calls == [(files, 77)]
    described = [None if one is None else (one.address, one.pitch, one.height, one.width) for one in found]
    assert described == [(0x1000, 15, 4, 5), None, (0x2000, 64, 4, 5), *[None] * 9]
    assert found[2] is not None
    assert found[2].owner is padded


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA Runtime failure: out of memory")])
def test_too_little_memory_leaves_the_batch_to_the_cpu(error: Exception) -> None:
    codec = FakeCodec()
    codec.answer = error
    assert GpuDecoder(codec, 0).decode([b"a", b"b"], 77) == [None, None]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (RuntimeError("nvImageCodec failure:\n internal"), "nvImageCodec failure: internal"),
        (ValueError("sample_format is not compatible"), "sample_format is not compatible"),
        ([None], "it gave 1 images"),
    ],
)
def test_a_failure_as_a_whole(answer: Any, reason: str) -> None:
    codec = FakeCodec()
    codec.answer = answer
    with pytest.raises(EnvironmentFault, match=f"GPU decoding failed on a batch of 2: {reason}") as caught:
        GpuDecoder(codec, 0).decode([b"a", b"b"], 77)
    assert "--decode exact" in caught.value.hint


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'nvidia.nvimgcodec'"), OSError("libnvimgcodec.so")]
)
def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(module, "import_module", _raising(error))
    with pytest.raises(EnvironmentFault, match="cannot be decoded on the GPU") as caught:
        open_decoder(0)
    assert "trt-vit[cuda]" in caught.value.hint


def test_a_library_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = FakeCodec()
    monkeypatch.setattr(codec, "Decoder", _raising(RuntimeError("no device")))
    monkeypatch.setattr(module, "import_module", lambda _name: codec)
    with pytest.raises(EnvironmentFault, match="nvImageCodec does not start: no device"):
        open_decoder(0)


def _raising(error: Exception) -> Callable[..., Any]:
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize(("before", "after"), [(None, "0"), ("2", "2")])
def test_the_library_says_nothing_about_files_unless_asked_to(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    monkeypatch.delenv(module._VERBOSITY, raising=False)  # so that it is put back
    if before is not None:
        monkeypatch.setenv(module._VERBOSITY, before)
    seen: list[str | None] = []

    def load(_name: str) -> ModuleType:
        seen.append(os.environ.get(module._VERBOSITY))
        return FakeCodec()

    monkeypatch.setattr(module, "import_module", load)
    open_decoder()
    assert seen == [after]


class TestTheLibraryItself:
    """Without a GPU it decodes on the CPU: the same calls, but for the decoder's own making."""

    @pytest.fixture
    def codec(self) -> Any:
        return pytest.importorskip("nvidia.nvimgcodec", reason="needs nvidia-nvimgcodec-cu13")

    @pytest.fixture
    def decoder(self, codec: Any, monkeypatch: pytest.MonkeyPatch) -> GpuDecoder:
        """A decoder of ours, whose backends are replaced, having been made."""
        make, kinds = codec.Decoder, codec.BackendKind

        def make_on_cpu(**options: Any) -> Any:
            assert [backend.backend_kind for backend in options["backends"]] == [
                kinds.HW_GPU_ONLY,
                kinds.HYBRID_CPU_GPU,
            ]
            assert options["backends"][0].load_hint == pytest.approx(module.HARDWARE_SHARE)
            options |= {"device_id": codec.NVIMGCODEC_DEVICE_CPU_ONLY, "backends": [codec.Backend(kinds.CPU_ONLY)]}
            return make(**options)

        monkeypatch.setattr(codec, "Decoder", make_on_cpu)
        return GpuDecoder(codec)

    def test_what_it_cannot_decode_is_none_among_others(self, decoder: GpuDecoder) -> None:
        files = [jpeg(), b"not an image", jpeg("L"), b"", jpeg()[:100], jpeg(progressive=True)]
        images = decoder._decoder.decode(files, params=decoder._parameters, cuda_stream=0)
        assert [image is None for image in images] == [False, True, False, True, True, False]
        assert all(image.shape == PIXELS.shape for image in images if image is not None)
        assert np.array_equal(np.asarray(images[0].cpu()), np.asarray(Image.open(io.BytesIO(jpeg()))))

    def test_turned_pictures_are_left_as_they_are(self, decoder: GpuDecoder) -> None:
        (image,) = decoder._decoder.decode([turned(6)], params=decoder._parameters, cuda_stream=0)
        assert image.shape == PIXELS.shape

    def test_images_that_are_not_on_the_gpu_are_not_passed_on(self, decoder: GpuDecoder) -> None:
        assert decoder.decode([jpeg(), b"not an image"], 0) == [None, None]
        assert decoder.decode([], 0) == []

    def test_it_is_silent_about_what_it_cannot_decode(self, codec: Any) -> None:
        script = """if True:
            from unittest import mock
            from trt_vit.cuda import decode
            with mock.patch.object(decode, "GpuDecoder", lambda codec, device: codec):
                codec = decode.open_decoder()
            only = codec.Backend(codec.BackendKind.CPU_ONLY)
            codec.Decoder(device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=[only]).decode([b"not an image"])
        """
        environment = {name: value for name, value in os.environ.items() if name != module._VERBOSITY}
        run = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert "image #0" not in run.stderr
        assert "bitstream #0" not in run.stderr
