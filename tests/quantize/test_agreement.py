from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_vit.quantize.agreement import agreement, expected_agreement, squared_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The classes are 2, 0, 1; the second image is the least sure of its class.
REFERENCE = np.array([[0, 1, 5], [2, 1.5, 0], [0, 4, 1]], np.float32)


def pair(seed: int, images: int = 7) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((images, 4), dtype=np.float32)
    error = rng.standard_normal((images, 4), dtype=np.float32)
    return reference + error * np.float32(0.5), reference


def test_agreement_is_the_share_of_images_with_the_same_top_1() -> None:
    logits = np.array([[0, 1, 1.1], [1, 1.5, 0], [9, 10, 1]], np.float32)
    assert agreement(logits, REFERENCE) == pytest.approx(2 / 3)
    assert agreement(REFERENCE, REFERENCE) == 1
    assert agreement(-REFERENCE, REFERENCE) == 0


def test_every_image_is_tried_with_the_error_of_every_image() -> None:
    """The second image's error moves its own top-1 and no other; the others have none."""
    logits = REFERENCE.copy()
    logits[1] = [1, 1.5, 0]
    assert agreement(logits, REFERENCE) == pytest.approx(2 / 3)
    assert expected_agreement(logits, REFERENCE) == pytest.approx(8 / 9)
    # An error that moves the least sure image, made on one that is sure: no image shows it, a ninth of the trials does.
    logits = REFERENCE.copy()
    logits[0] += [-1, 0, 0]
    assert agreement(logits, REFERENCE) == 1
    assert expected_agreement(logits, REFERENCE) == pytest.approx(8 / 9)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_expected_agreement_is_that_of_all_pairs_of_image_and_error(seed: int, images: int) -> None:
    logits, reference = pair(seed, images)
    errors = logits - reference
    same = [
        int(np.argmax(image + error)) == int(np.argmax(image)) for image in list(reference) for error in list(errors)
    ]
    assert expected_agreement(logits, reference) == pytest.approx(sum(same) / images**2)


def test_logits_without_an_error_are_expected_to_agree() -> None:
    assert expected_agreement(REFERENCE, REFERENCE) == 1
    assert expected_agreement(REFERENCE + np.float32(8), REFERENCE) == 1


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_squared_error_is_what_no_common_number_can_take_away(seed: int) -> None:
    logits, reference = pair(seed)
    errors = (logits - reference).astype(np.float64)
    least = []
    for error in errors:  # the best common number by least squares
        common, *_ = np.linalg.lstsq(np.ones((4, 1)), error, rcond=None)
        least.append(np.sum((error - common) ** 2))
    assert squared_error(logits, reference) == pytest.approx(np.mean(least))


def test_squared_error_by_hand() -> None:
    logits = REFERENCE + np.array([[3, 0, 0], [5, 5, 5], [0, 0, 0]], np.float32)
    assert squared_error(logits, REFERENCE) == pytest.approx((4 + 1 + 1) / 3)
