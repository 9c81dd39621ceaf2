from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from trt_vit.quantize.codes import DTYPES, LARGEST, Code, activation_scale, encode, round_up, rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUMBERS: tuple[Code, ...] = ("int8", "int7", "fp8")
ENDS: dict[Code, tuple[float, float]] = {"int8": (-128, 127), "int7": (-64, 64), "fp8": (-448, 448)}
ONNX_TYPES: dict[Code, int] = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


def values(seed: int = 0) -> NDArray[np.float32]:
    """Numbers of very different sizes, exact halves and zeros of both signs among them."""
    rng = np.random.default_rng(seed)
    wide = rng.standard_normal(4000) * 10.0 ** rng.uniform(-4, 3, 4000)
    halves = np.arange(-200, 200) / 2
    return np.concatenate([wide, halves, [0.0, -0.0]]).astype(np.float32)


def next_below(scale: NDArray[Any] | np.float32) -> NDArray[np.float64]:
    """The fp16 numbers before some positive ones."""
    return np.nextafter(np.asarray(scale).astype(np.float16), np.float16(0)).astype(np.float64)


@settings(max_examples=200)
@given(st.floats(1e-9, 6e4))
def test_a_scale_is_the_smallest_fp16_number_that_is_not_less(exact: float) -> None:
    scale = round_up(np.array(exact))
    assert scale.dtype == np.float32
    assert scale == scale.astype(np.float16)
    assert float(scale) >= exact
    assert next_below(scale) < exact


def test_fp16_numbers_are_scales_as_they_are_and_zeros_get_one() -> None:
    numbers = np.array([0.25, 1.5, 0.0, 2.0**-24, float(np.float16(0.1))])
    assert round_up(numbers).tolist() == [0.25, 1.5, 1.0, 2.0**-24, float(np.float16(0.1))]


@settings(max_examples=200)
@given(st.floats(0, 1e6), st.sampled_from(NUMBERS))
def test_an_activations_scale_clips_nothing_and_has_a_reciprocal_in_fp16(amax: float, number: Code) -> None:
    scale = activation_scale(amax, number)
    assert float(scale) * {"int8": 127, "int7": 64, "fp8": 448}[number] >= amax
    assert np.float16(scale) == scale
    assert np.isfinite(np.float16(1) / np.float16(scale))
    exact = max(amax / LARGEST[number], 2.0**-14)
    assert next_below(scale) < exact
    # The range itself comes back with half a step's error at most; steps of FP8 are an eighth, or 2^-9 of the scale.
    end = np.array([amax, -amax], np.float32)
    half = float(scale) / 2 if number != "fp8" else max(amax / 16, float(scale) * 2**-10)
    assert np.all(np.abs(rounded(end, scale, number) - end) <= half * 1.000001)


@pytest.mark.parametrize("number", ["int8", "int7"])
def test_integers_are_rounded_half_to_even_and_saturate(number: Code) -> None:
    scaled = values()
    low, high = ENDS[number]
    expected = [int(min(max(round(float(value)), low), high)) for value in scaled]  # round() is half to even
    codes = encode(scaled, number)
    assert codes.dtype == np.int8
    assert codes.tolist() == expected


def test_fp8_is_what_ml_dtypes_makes_of_it_and_saturates() -> None:
    scaled = values()
    codes = encode(scaled, "fp8")
    assert codes.dtype == ml_dtypes.float8_e4m3fn
    inside = np.abs(scaled) <= 448
    np.testing.assert_array_equal(codes[inside], scaled[inside].astype(ml_dtypes.float8_e4m3fn))
    np.testing.assert_array_equal(codes[~inside].astype(np.float32), np.sign(scaled[~inside]) * 448)
    assert 0 < np.count_nonzero(~inside) < len(scaled)


@pytest.mark.parametrize("number", NUMBERS)
def test_every_code_stands_for_itself(number: Code) -> None:
    codes = np.arange(256, dtype=np.uint8).view(DTYPES[number]).astype(np.float32)
    low, high = ENDS[number]
    codes = codes[(codes >= low) & (codes <= high)]
    assert len(codes) == {"int8": 256, "int7": 129, "fp8": 254}[number]
    np.testing.assert_array_equal(encode(codes, number).astype(np.float32), codes)
    np.testing.assert_array_equal(rounded(codes * np.float32(0.125), np.float32(0.125), number), codes / 8)


@pytest.mark.parametrize("number", NUMBERS)
def test_rounded_is_the_nearest_number_that_codes_can_say(number: Code) -> None:
    codes = np.arange(256, dtype=np.uint8).view(DTYPES[number]).astype(np.float64)
    low, high = ENDS[number]
    scale = np.float32(0.015625)
    grid = np.sort(codes[(codes >= low) & (codes <= high)]) * float(scale)
    x = np.random.default_rng(1).uniform(-3, 3, 500).astype(np.float32)
    nearest = np.abs(x[:, None].astype(np.float64) - grid).min(axis=1)
    result = rounded(x, scale, number)
    assert result.dtype == np.float32
    assert np.all(np.isin(result.astype(np.float64), grid))
    np.testing.assert_allclose(np.abs(x - result.astype(np.float64)), nearest, atol=1e-7)


@pytest.mark.parametrize("number", NUMBERS)
def test_columns_have_scales_of_their_own_and_the_input_stays_as_it_is(number: Code) -> None:
    x = values()[:4000].reshape(-1, 4)
    before = x.copy()
    scales = round_up(np.array([0.5, 0.01, 3, 0.1]))
    columns = [rounded(np.ascontiguousarray(x[:, i]), scales[i], number) for i in range(4)]
    np.testing.assert_array_equal(rounded(x, scales, number), np.stack(columns, axis=1))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("number", ["int8", "fp8"])
@pytest.mark.parametrize("scale", [2.0**-14, 0.0123, 0.75])
def test_onnx_runtime_quantizes_and_dequantizes_the_same(number: Code, scale: float) -> None:
    step = round_up(np.array(scale))
    x = np.concatenate([values() * step, values(1)]).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale"], ["codes"], output_dtype=ONNX_TYPES[number]),
            helper.make_node("DequantizeLinear", ["codes", "scale"], ["y"]),
        ],
        "qdq",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x, "scale": step})
    np.testing.assert_array_equal(rounded(x, step, number), expected)
    np.testing.assert_array_equal(encode(x / step, number).astype(np.float32) * step, expected)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1000))
def test_pairs_of_seven_bit_products_fit_sixteen_bits(seed: int, size: float) -> None:
    """Unsigned 8-bit codes times signed codes, added up in pairs: what a CPU without VNNI does."""
    matrix = (np.random.default_rng(seed).standard_normal((16, 8)) * size).astype(np.float32)
    scale = round_up(np.abs(matrix).max(axis=0).astype(np.float64) / LARGEST["int7"])
    # At half the scale every code saturates that can.
    for codes in (encode(matrix / scale, "int7"), encode(matrix / scale * 2, "int7")):
        pairs = codes.astype(np.int64).reshape(8, 2, 8)
        largest = np.maximum(pairs, 0).sum(axis=1) * 255
        smallest = np.minimum(pairs, 0).sum(axis=1) * 255
        assert largest.max() <= np.iinfo(np.int16).max
        assert smallest.min() >= np.iinfo(np.int16).min
    assert np.abs(codes.astype(np.int64)).max() == 64
