"""The GPU's decoder: which files it is given, and what is made of its answers."""

from __future__ import annotations

import io
from importlib.util import find_spec
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


SOF = b"\xff\xc0\x00\x11"


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
        patched(jpeg(), SOF, 4, b"\x0c"),  # 12 bits
        patched(jpeg(), SOF, 5, b"\xff\xff\xff\xff"),  # 65,535 x 65,535 pixels
        patched(jpeg(), SOF, 5, b"\0\0"),  # no rows
        patched(jpeg(), SOF, 1, b"\xc3"),  # lossless
        patched(jpeg(), SOF, 1, b"\xc9"),  # arithmetic coding
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
        self.Backend = lambda kind, **options: (kind, options)
        self.DecodeParams = lambda **options: options

    def Decoder(self, **options: Any) -> FakeCodec:  # noqa: N802
        self.made = options
        return self

    def decode(self, files: list[bytes], *, params: Any, cuda_stream: int) -> Any:
        assert params == {"apply_exif_orientation": False, "allow_any_depth": False, "sample_format": "rgb"}
        self.calls.append((files, cuda_stream))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_how_the_decoder_is_made() -> None:
    codec = FakeCodec()
    GpuDecoder(codec, 3)
    hardware, *others = codec.made["backends"]
    assert hardware == ("hardware", {"load_hint": 0.8, "load_hint_policy": "fixed"})
    assert [kind for kind, _ in others] == ["gpu", "hybrid"]  # nothing is decoded on the CPU alone
    assert codec.made["device_id"] == 3
    assert codec.made["options"] == ":fancy_upsampling=1"


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
    ]
    found = GpuDecoder(codec, 0).decode([b"a", b"b"], 77)
    assert codec.calls == [([b"a", b"b"], 77)]
    described = [None if one is None else (one.address, one.pitch, one.height, one.width) for one in found]
    assert described == [(0x1000, 15, 4, 5), None, (0x2000, 64, 4, 5), None, None, None]
    assert found[2] is not None
    assert found[2].owner is padded


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA Runtime failure: out of memory")])
def test_too_little_memory_leaves_the_batch_to_the_cpu(error: Exception) -> None:
    codec = FakeCodec()
    codec.answer = error
    assert GpuDecoder(codec, 0).decode([b"a", b"b"], 77) == [None, None]


def test_a_failure_as_a_whole() -> None:
    codec = FakeCodec()
    codec.answer = RuntimeError("nvImageCodec failure:\n internal")
    with pytest.raises(EnvironmentFault, match="failed to decode 2 files: nvImageCodec failure: internal") as caught:
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


def test_the_library_itself_has_all_that_is_used() -> None:
    """Without a GPU it decodes on the CPU: the same calls, but for the decoder's own making."""
    if find_spec("nvidia") is None or find_spec("nvidia.nvimgcodec") is None:
        pytest.skip("needs nvidia-nvimgcodec-cu13")
    from nvidia import nvimgcodec

    kinds = nvimgcodec.BackendKind
    for kind in (kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU):
        nvimgcodec.Backend(kind, load_hint=0.8, load_hint_policy=nvimgcodec.LoadHintPolicy.FIXED)
    parameters = nvimgcodec.DecodeParams(
        apply_exif_orientation=False, allow_any_depth=False, sample_format=nvimgcodec.SampleFormat.I_RGB
    )
    backends = [nvimgcodec.Backend(kinds.CPU_ONLY)]
    decoder = nvimgcodec.Decoder(
        device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=backends, options=":fancy_upsampling=1"
    )
    good, none, other = decoder.decode([jpeg(), b"not an image", jpeg("L")], params=parameters, cuda_stream=0)
    assert none is None
    assert np.array_equal(np.asarray(good.cpu()), np.asarray(Image.open(io.BytesIO(jpeg()))))
    assert np.asarray(other.cpu()).shape == PIXELS.shape
