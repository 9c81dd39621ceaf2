"""Damaged files of every format: decoding gives an image or an ImageError, never anything else."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.images.samples import one_of_each
from trt_vit.errors import ImageError
from trt_vit.images.decode import decode

# What Pillow warns of is silenced for the process when trt_vit.images.decode is imported; pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

WHOLE = one_of_each()


def assert_decoded_or_refused(data: bytes) -> None:
    try:
        decoded = decode(data)
    except ImageError as error:
        message = str(error)
    else:
        message = f"{decoded.dtype} image of {decoded.shape[2]} channels"
        assert message == "uint8 image of 3 channels"
    assert message.strip()
    assert "\n" not in message


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
