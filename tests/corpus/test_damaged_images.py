"""Damaged files of every format: decoding gives an image or an ImageError, never anything else."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.corpus.bombs import chunk
from tests.images.samples import one_of_each
from trt_vit.errors import ImageError
from trt_vit.images.decode import decode
from trt_vit.images.limits import DecodeLimits

# What Pillow warns of is silenced for the process when trt_vit.images.decode is imported; pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

WHOLE = one_of_each()
SMALL = DecodeLimits(pixels=10**7)  # damage may make a small image a large one


def assert_decoded_or_refused(data: bytes) -> None:
    try:
        decoded = decode(data, SMALL)
    except ImageError as error:
        message = str(error)
    else:
        message = f"{decoded.dtype} image of {decoded.shape[2]} channels"
        assert message == "uint8 image of 3 channels"
    assert message.strip()
    assert "\n" not in message
    assert "object at" not in message


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_a_truncated_file_is_refused_unless_every_pixel_is_there(name: str) -> None:
    whole = WHOLE[name]
    expected = decode(whole)
    for length in {*range(0, len(whole), max(1, len(whole) // 60)), *range(len(whole) - 30, len(whole))}:
        try:
            decoded = decode(whole[:length])
        except ImageError:
            continue
        np.testing.assert_array_equal(decoded, expected, err_msg=f"the first {length} of {len(whole)} bytes")
    with pytest.raises(ImageError):  # in an animation, the first frame ends before the middle of the file
        decode(whole[: len(whole) // 5])


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_random_damage(name: str) -> None:
    rng = random.Random(name)  # noqa: S311 - damage must be the same on every run
    for _ in range(150):
        data = bytearray(WHOLE[name])
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        assert_decoded_or_refused(bytes(data))


@given(name=st.sampled_from(sorted(WHOLE)), at=st.floats(0, 1), cut=st.integers(0, 40), new=st.binary(max_size=40))
@settings(max_examples=300, deadline=None)
def test_cut_and_inserted_bytes(name: str, at: float, cut: int, new: bytes) -> None:
    whole = WHOLE[name]
    position = int(at * len(whole))
    assert_decoded_or_refused(whole[:position] + new + whole[position + cut :])


@given(st.sampled_from([data[:16] for data in WHOLE.values()]), st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_a_signature_with_anything_behind_it(signature: bytes, rest: bytes) -> None:
    assert_decoded_or_refused(signature + rest)


@given(name=st.sampled_from(sorted(WHOLE)), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), max_size=12))
@settings(max_examples=300, deadline=None)
def test_flipped_bits(name: str, flips: list[tuple[float, int]]) -> None:
    data = bytearray(WHOLE[name])
    for at, bit in flips:
        data[int(at * (len(data) - 1))] ^= 1 << bit
    assert_decoded_or_refused(bytes(data))


@given(
    names=st.tuples(st.sampled_from(sorted(WHOLE)), st.sampled_from(sorted(WHOLE))),
    cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
@settings(max_examples=300, deadline=None)
def test_the_beginning_of_one_file_and_the_end_of_another(names: tuple[str, str], cuts: tuple[float, float]) -> None:
    first, second = (WHOLE[name] for name in names)
    assert_decoded_or_refused(first[: int(cuts[0] * len(first))] + second[int(cuts[1] * len(second)) :])


@given(
    chunks=st.lists(
        st.tuples(
            st.sampled_from([b"IDAT", b"PLTE", b"tRNS", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT"]),
            st.binary(max_size=40),
        ),
        max_size=6,
    ),
    header=st.binary(min_size=5, max_size=5),
    at_end=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_png_chunks_whose_checksums_are_right(
    chunks: list[tuple[bytes, bytes]], header: bytes, *, at_end: bool
) -> None:
    """What lies behind the checksums, which hold off nearly all other damage."""
    whole = WHOLE["png-palette"]
    end = whole.index(b"IDAT") - 4 if not at_end else whole.index(b"IEND") - 4
    more = b"".join(chunk(*one) for one in chunks)
    assert_decoded_or_refused(whole[:end] + more + whole[end:])
    assert_decoded_or_refused(whole[:8] + chunk(b"IHDR", whole[16:24] + header) + more + whole[33:])


@given(
    name=st.sampled_from(("tiff", "tiff-lzw")),
    entry=st.integers(0, 13),
    kind=st.integers(0, 18),
    count=st.sampled_from((0, 1, 2, 255, 2**16, 2**31, 2**32 - 1)),
    value=st.integers(0, 2**32 - 1) | st.integers(0, 70_000),
)
@settings(max_examples=300, deadline=None)
def test_tiff_entries_of_any_type_count_and_value(name: str, entry: int, kind: int, count: int, value: int) -> None:
    whole = WHOLE[name]
    directory = struct.unpack_from("<I", whole, 4)[0]
    at = directory + 2 + 12 * (entry % struct.unpack_from("<H", whole, directory)[0]) + 2
    assert_decoded_or_refused(whole[:at] + struct.pack("<HII", kind, count, value) + whole[at + 10 :])
