"""JPEG files to RGB pixels on the GPU, by nvImageCodec: its hardware engines and its CUDA decoder share the work.

The pixels are close to those of the exact decoder, not equal: the inverse cosine transform and the conversion from
YCbCr round differently. Files whose picture would be another one are not given to it: other colour models, turned
pictures, and whatever may be damaged are the exact decoder's.
"""

from __future__ import annotations

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

_HINT = "use --decode exact, or a smaller --batch-size or fewer --lanes"
_INSTALL = "pip install 'trt-vit[cuda]', or use --decode exact"
_START, _END = b"\xff\xd8", b"\xff\xd9"
_MARKER, _START_OF_SCAN, _ADOBE = 0xFF, 0xDA, 0xEE
_BASELINE, _PROGRESSIVE = 0xC0, 0xC2
_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
"""Markers of a frame's header, which tells the size and the components: all but those of tables and arithmetic."""
_ADOBE_RGB = 0
_BITS = 8
_GREY, _COLOUR = 1, 3
_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image in the memory of a GPU: uint8 [height, width, 3], RGB.

    Attributes:
        address: Where it begins.
        pitch: Bytes from row to row.
        height: Rows.
        width: Pixels of a row.
        owner: What the memory belongs to: it is given back with the last reference to this.
    """

    address: int
    pitch: int
    height: int
    width: int
    owner: Any


class GpuDecoder:
    """Decodes batches of JPEG files, one batch at a time: it belongs to one lane.

    What bounds its memory is the batch: the pixels live as long as somebody refers to them, and the decoder's own
    buffers are as large as the largest picture in flight.

    Args:
        codec: ``nvidia.nvimgcodec``.
        device: Number of the GPU.
    """

    def __init__(self, codec: ModuleType, device: int) -> None:
        kinds = codec.BackendKind
        backends = [
            codec.Backend(kinds.HW_GPU_ONLY, load_hint=HARDWARE_SHARE, load_hint_policy=codec.LoadHintPolicy.FIXED),
            codec.Backend(kinds.GPU_ONLY),
            codec.Backend(kinds.HYBRID_CPU_GPU),
        ]
        # Smooth upsampling of chroma is what libjpeg-turbo does, and so what the exact decoder does.
        self._decoder = codec.Decoder(device_id=device, backends=backends, options=":fancy_upsampling=1")
        self._parameters = codec.DecodeParams(
            apply_exif_orientation=False, allow_any_depth=False, sample_format=codec.SampleFormat.I_RGB
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
        try:
            images = self._decoder.decode(list(files), params=self._parameters, cuda_stream=stream)
        except MemoryError:
            return [None] * len(files)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            if "memory" in reason.lower():
                return [None] * len(files)
            raise EnvironmentFault(f"the GPU failed to decode {len(files)} files: {reason}", hint=_HINT) from error
        return [None if image is None else _described(image) for image in images]


def open_decoder(device: int) -> GpuDecoder:
    """Make a decoder for a GPU.

    Raises:
        EnvironmentFault: nvImageCodec is missing, does not load, or finds no decoder on the GPU.
    """
    try:
        codec = import_module("nvidia.nvimgcodec")
    except (ImportError, OSError) as error:
        raise EnvironmentFault(f"JPEGs cannot be decoded on the GPU: {error}", hint=_INSTALL) from error
    try:
        return GpuDecoder(codec, device)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise EnvironmentFault(f"nvImageCodec does not start: {reason}", hint=_INSTALL) from error


def _described(image: Any) -> DecodedImage | None:
    """Return where an image of the library's lies, or None if it is not what was asked for."""
    facts = image.__cuda_array_interface__
    height, width, channels = facts["shape"]
    pitch, *steps = facts.get("strides") or (width * channels, channels, 1)
    if facts["typestr"] != "|u1" or channels != _CHANNELS or steps != [_CHANNELS, 1]:
        return None
    return DecodedImage(facts["data"][0], pitch, height, width, image)


def gpu_can_decode(data: bytes) -> bool:
    """Tell whether the GPU makes the same picture of a file as the exact decoder, up to rounding.

    That is so for JPEG files that are baseline or progressive, of 8 bits, grey or YCbCr, upright, not larger than
    ``MAX_GPU_PIXELS``, and that end as they should. What else is wrong with them shows when they are decoded.

    Args:
        data: Any bytes.
    """
    if not (data.startswith(_START) and data.endswith(_END)):
        return False
    frame: bytes | None = None
    for marker, content in _segments(data):
        if marker in _FRAMES:
            if frame is not None or marker not in {_BASELINE, _PROGRESSIVE}:
                return False
            frame = content
        elif marker == _ADOBE and content.startswith(b"Adobe") and content[11:12] == bytes([_ADOBE_RGB]):
            return False
    return frame is not None and _is_plain(frame) and jpeg_orientation(data) == 1


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of each segment before the picture; nothing more once one is not where it should be."""
    position = len(_START)
    while True:
        header = data[position : position + 4]
        if len(header) < len(b"\xff\xc0\0\0") or header[0] != _MARKER or header[1] == _START_OF_SCAN:
            return
        length = int.from_bytes(header[2:])
        yield header[1], data[position + 4 : position + 2 + length]
        position += 2 + length


def _is_plain(frame: bytes) -> bool:
    """Tell whether a frame's header is of a picture that is grey or YCbCr, of 8 bits, and not too large."""
    bits, components = frame[:1], frame[5:6]
    height, width = int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5])
    names = frame[6::3]
    return (
        bits == bytes([_BITS])
        and components in {bytes([_GREY]), bytes([_COLOUR])}
        and 0 < height * width <= MAX_GPU_PIXELS
        and names != b"RGB"
    )
