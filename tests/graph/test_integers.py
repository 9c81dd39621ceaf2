from __future__ import annotations

import onnx_ir as ir
import pytest

from trt_vit.graph.integers import Dim, Size, UndecidableError, broadcast, divided, is_static, parse_size

BATCH = Dim("batch")


def test_arithmetic_keeps_what_is_a_multiple_of_one_dimension() -> None:
    assert BATCH * 64 == 64 * BATCH == Dim("batch", 64)
    assert Dim("batch", 4) == BATCH * 3 + BATCH
    assert BATCH + 0 == 0 + BATCH == BATCH
    assert BATCH - BATCH == 0
    assert BATCH * 0 == 0
    assert Dim("batch", -1) == 0 - BATCH


@pytest.mark.parametrize(
    "compute",
    [
        lambda: BATCH + 1,
        lambda: BATCH * BATCH,
        lambda: BATCH + Dim("other"),
        lambda: 1 - BATCH,
        lambda: divided(1, BATCH),
    ],
)
def test_anything_else_is_not_followed(compute: object) -> None:
    assert callable(compute)
    with pytest.raises(UndecidableError):
        compute()


@pytest.mark.parametrize(
    ("dividend", "divisor", "quotient"),
    [(7, 2, 3), (-7, 2, -3), (7, -2, -3), (BATCH * 64, 16, BATCH * 4), (BATCH * 64, BATCH, 64), (BATCH, 1, BATCH)],
)
def test_division_is_towards_zero_and_exact_with_a_name(dividend: Size, divisor: Size, quotient: Size) -> None:
    assert divided(dividend, divisor) == quotient


@pytest.mark.parametrize(
    ("dividend", "divisor"), [(BATCH * 3, 2), (BATCH * 3, BATCH * 2), (BATCH, Dim("other")), (1, 0)]
)
def test_a_division_with_a_rest_is_not_followed(dividend: Size, divisor: Size) -> None:
    with pytest.raises(UndecidableError):
        divided(dividend, divisor)


def test_broadcasting() -> None:
    assert broadcast(1, BATCH) == broadcast(BATCH, 1) == broadcast(BATCH, BATCH) == BATCH
    assert broadcast(1, 5) == broadcast(5, 5) == 5
    with pytest.raises(UndecidableError):
        broadcast(BATCH, 5)


def test_spelling_and_reading_a_dimension() -> None:
    assert str(BATCH * 64) == "64*batch"
    sizes: list[int | ir.SymbolicDim] = [7, *(ir.SymbolicDim(text) for text in ("batch", "64*batch", "batch + 1"))]
    assert [parse_size(size) for size in sizes] == [7, BATCH, BATCH * 64, Dim("batch + 1")]
    assert is_static([1, 2])
    assert not is_static([1, BATCH])
