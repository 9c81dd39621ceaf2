"""JPEG files to RGB pixels on the GPU, by nvImageCodec: its hardware engines and its CUDA decoder share the work.

The pixels are close to those of the exact decoder, not equal: the inverse cosine transform and the conversion from
YCbCr round differently. Files whose picture would be another one are not given to it: other colour models, turned
pictures, and whatever may be damaged are the exact decoder's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from trt_vit.errors import EnvironmentFault
from trt_vit.images.decode import jpeg_orientation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

MAX_GPU_PIXELS = 1 << 26
"""Pixels above which the CPU decodes: a picture of 200 MB on the GPU would be alone in its batch."""

HARDWARE_SHARE = 0.8
"""Share of a batch for the hardware engines; the CUDA decoder takes the rest, and all of it where there are none."""

CPU_THREADS = 4
"""Threads of a decoder, which do the CUDA decoder's part on the CPU. Each has buffers for its largest picture."""

_HINT = "use --decode exact, or a smaller --batch-size or fewer --lanes"
_INSTALL = "pip install 'trt-vit[cuda]', or use --decode exact"
_VERBOSITY = "PYNVIMGCODEC_VERBOSITY"
_START, _END = b"\xff\xd8", b"\xff\xd9"
_MARKER, _START_OF_SCAN, _ADOBE = 0xFF, 0xDA, 0xEE
_BASELINE, _PROGRESSIVE = 0xC0, 0xC2
_FRAMES = frozenset((_BASELINE, _PROGRESSIVE))
_OTHERS = frozenset((0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE))
"""Markers of Huffman and quantization tables, restart intervals, applications and comments."""
_ADOBE_YCBCR = 1
_BITS = 8
_CHANNELS = 3
_GREY = b"\x01\x11"
_COMPONENTS = (_GREY, *(b"\x01%c\x02\x11\x03\x11" % luma for luma in (0x11, 0x21, 0x12, 0x22)))
"""Name and sampling of the components: grey, and YCbCr with chroma 4:4:4, 4:2:2, 4:4:0 and 4:2:0."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image in the memory of a GPU: uint8 [height, width, 3], RGB.

    Attributes:
        address: Where it begins.
        pitch: Bytes from row to row.
        height: Rows.
        width: Pixels of a row.
        owner: What the memory belongs to: it is given back with the last reference to this, which must neither outlive
            the stream nor be dropped before all that reads the pixels is done.
    """

    address: int
    pitch: int
    height: int
    width: int
    owner: Any


class GpuDecoder:
    """Decodes batches of JPEG files, one batch at a time: it belongs to one lane.

    What bounds its memory is the batch: the pixels, which CUDA's pool for the stream holds, live as long as somebody
    refers to them, and the decoder's own buffers are as large as the largest picture, one for each of its threads.

    Args:
        codec: ``nvidia.nvimgcodec``.
        device: Number of the GPU.
        hardware_share: Share of a batch for the hardware engines, 0 to 1.
        cpu_threads: Threads, of which there are fewer than cores in any case.
    """

    def __init__(
        self,
        codec: ModuleType,
        device: int = 0,
        *,
        hardware_share: float = HARDWARE_SHARE,
        cpu_threads: int = CPU_THREADS,
    ) -> None:
        kinds = codec.BackendKind
        # The CUDA decoder is of the hybrid kind, for it also decodes Huffman codes on the CPU; GPU_ONLY would only add
        # the decoder of lossless JPEG. Any policy makes of the share a number of images, once, from the first batch.
        backends = [
            codec.Backend(kinds.HW_GPU_ONLY, load_hint=hardware_share, load_hint_policy=codec.LoadHintPolicy.FIXED),
            codec.Backend(kinds.HYBRID_CPU_GPU),
        ]
        # Smooth upsampling of chroma is what libjpeg-turbo does, and so what the exact decoder does.
        self._decoder = codec.Decoder(
            device_id=device, max_num_cpu_threads=cpu_threads, backends=backends, options=":fancy_upsampling=1"
        )
        # Not turned: turned pictures are the exact decoder's, which also reads an orientation from XMP.
        self._parameters = codec.DecodeParams(
            apply_exif_orientation=False,
            color_spec=codec.ColorSpec.SRGB,
            allow_any_depth=False,
            sample_format=codec.SampleFormat.I_RGB,
        )

    def decode(self, files: Sequence[bytes], stream: int) -> list[DecodedImage | None]:
        """Decode a batch, and return when the decoder has been through it: on the GPU it may still be at work.

        Args:
            files: JPEG files that ``gpu_can_decode``.
            stream: The CUstream behind which the pixels are there: an event recorded on it afterwards guards them.

        Returns:
            The images; None for one that could not be decoded, which does not touch the others, and for all of them
            where there is not enough memory for the batch.

        Raises:
            EnvironmentFault: The decoder fails as a whole.
        """
        # The library works on streams of its own. Events make them wait for what is on this one, and this one for them;
        # the memory is allocated, and later freed, in this one's order. The host waits for nothing on the GPU but the
        # decoder's own buffers, and not to read where an image lies either.
        try:
            images = self._decoder.decode(list(files), params=self._parameters, cuda_stream=stream)
        except MemoryError:
            return [None] * len(files)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            if "memory" in reason.lower():
                return [None] * len(files)
            raise _failed(files, reason) from error
        if len(images) != len(files):
            raise _failed(files, f"it gave {len(images)} images")
        return [None if image is None else _described(image) for image in images]


def open_decoder(device: int = 0) -> GpuDecoder:
    """Make a decoder for a GPU.

    Raises:
        EnvironmentFault: nvImageCodec is missing, does not load, or finds no decoder on the GPU.
    """
    # Read once, when it is loaded: otherwise each file that it cannot decode, and that the CPU then does or says what
    # is wrong with, is two lines on standard error. It logs to nothing else.
    os.environ.setdefault(_VERBOSITY, "0")
    try:
        codec = import_module("nvidia.nvimgcodec")
    except (ImportError, OSError) as error:
        raise EnvironmentFault(f"JPEGs cannot be decoded on the GPU: {error}", hint=_INSTALL) from error
    try:
        return GpuDecoder(codec, device)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise EnvironmentFault(f"nvImageCodec does not start: {reason}", hint=_INSTALL) from error


def _failed(files: Sequence[bytes], reason: str) -> EnvironmentFault:
    return EnvironmentFault(f"GPU decoding failed on a batch of {len(files)}: {reason}", hint=_HINT)


def _described(image: Any) -> DecodedImage | None:
    """Return where an image of the library's lies, or None if it is not what was asked for."""
    try:
        facts = image.__cuda_array_interface__
    except RuntimeError:  # it is not in the memory of a GPU
        return None
    shape, address = tuple(facts["shape"]), facts["data"][0]
    if facts["typestr"] != "|u1" or len(shape) != _CHANNELS or shape[-1] != _CHANNELS or not address:
        return None
    height, width, channels = shape
    pitch, *steps = facts.get("strides") or (width * channels, channels, 1)
    if not 0 < height * width <= MAX_GPU_PIXELS or steps != [channels, 1] or pitch < width * channels:
        return None
    return DecodedImage(address, pitch, height, width, image)


def gpu_can_decode(data: bytes) -> bool:
    """Tell whether the GPU makes the same picture of a file as the exact decoder, up to rounding.

    That is so for JPEG files that are baseline or progressive, of 8 bits, grey or YCbCr, upright, not larger than
    ``MAX_GPU_PIXELS``, and that end as they should. Of anything unusual, such as other names of the components, the
    decoders may make different pictures: it is the exact one's. Damage within the picture is not looked for, since the
    search would hold up other threads.

    Args:
        data: Any bytes.
    """
    if not (data.startswith(_START) and data.endswith(_END)):
        return False
    frames: list[tuple[int, bytes]] = []
    is_ycbcr = True
    for marker, content in _segments(data):
        if marker in _FRAMES:
            frames.append((marker, content))
        elif marker == _ADOBE:
            is_ycbcr = is_ycbcr and _says_ycbcr(content)
        elif marker == _START_OF_SCAN:
            plain = len(frames) == 1 and _is_plain(*frames[0], content, is_ycbcr=is_ycbcr)
            return plain and jpeg_orientation(data) == 1
        elif marker not in _OTHERS:
            return False
    return False


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of each segment; nothing more once one is not where it should be, or not whole."""
    position = len(_START)
    while True:
        header = data[position : position + 4]
        end = position + 2 + int.from_bytes(header[2:])
        if len(header) < len(b"\xff\xc0\0\2") or header[0] != _MARKER or not position + 4 <= end <= len(data):
            return
        yield header[1], data[position + 4 : end]
        position = end


def _says_ycbcr(content: bytes) -> bool:
    """Tell whether an APP14 says so of three components, or nothing about colour (Adobe's Technical Note 5116)."""
    return not content.startswith(b"Adobe") or content[11:12] == bytes([_ADOBE_YCBCR])


def _is_plain(marker: int, frame: bytes, scan: bytes, *, is_ycbcr: bool) -> bool:
    """Tell whether headers are of a picture that is grey or YCbCr, of 8 bits, not too large, and as usual otherwise.

    The headers of the frame and of its first scan are those of ITU-T T.81, B.2.2 and B.2.3. A baseline picture is to be
    one scan; nvImageCodec takes any three components for YCbCr, so that it must not be given others.
    """
    height, width, count = int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5]), frame[5:6]
    components = b"".join(frame[place : place + 2] for place in range(6, len(frame), 3))
    return (
        frame[:1] == bytes([_BITS])
        and components in _COMPONENTS
        and (is_ycbcr or components == _GREY)
        and len(frame) == 6 + 3 * count[0]
        and 0 < height * width <= MAX_GPU_PIXELS
        and (marker == _PROGRESSIVE or scan[:1] == count)
    )
