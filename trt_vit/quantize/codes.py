"""Numbers of 8 bits: what floats become as codes at a scale, and what codes stand for.

INT8 codes are whole numbers from -127 to 127, rounded half to even, at a scale of ``amax / 127``: TensorRT's symmetric
quantization, https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html. FP8 is
E4M3FN, whose largest number is 448, at a scale of ``amax / 448``.

INT8 codes of weights for a CPU are from -64 to 64 only: without VNNI instructions, two neighbouring products with an
activation's codes, made unsigned, are added up in 16 bits, and 2 * 64 * 255 is the most that fits. So an engine runs
right on any CPU.

Every scale is the smallest fp16 number that does not clip the range, and not below 2^-14 for an activation, as its
reciprocal is an fp16 number in the engine. So casting the rest of the graph to fp16 changes no scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Code = Literal["int8", "int7", "fp8"]

LARGEST: dict[Code, float] = {"int8": 127.0, "int7": 64.0, "fp8": 448.0}
"""The largest code."""
DTYPES: dict[Code, np.dtype[np.generic]] = {
    "int8": np.dtype(np.int8),
    "int7": np.dtype(np.int8),
    "fp8": np.dtype(ml_dtypes.float8_e4m3fn),
}
_LEAST: dict[Code, float] = {"int8": -128.0, "int7": -64.0, "fp8": -448.0}
"""Where codes end downwards: QuantizeLinear uses all that eight bits have, where a range clips."""
_SMALLEST_SCALE = float(np.finfo(np.float16).smallest_normal)


def activation_scale(amax: float, number: Code) -> np.float32:
    """Return the scale of an activation whose largest absolute value is ``amax``."""
    return np.float32(round_up(np.array(max(amax / LARGEST[number], _SMALLEST_SCALE))))


def round_up(exact: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round scales up to fp16 numbers; that of zeros gets 1, which makes zeros of their codes."""
    nearest = exact.astype(np.float16)
    upwards = np.where(nearest < exact, np.nextafter(nearest, np.float16(np.inf)), nearest)
    return np.where(exact == 0, 1, upwards).astype(np.float32)


def encode(scaled: NDArray[np.floating], number: Code) -> NDArray[np.generic]:
    """Return the codes of numbers that are divided by their scale already, saturated as QuantizeLinear does."""
    whole = scaled if number == "fp8" else np.rint(scaled)
    codes: NDArray[np.generic] = np.clip(whole, _LEAST[number], LARGEST[number]).astype(DTYPES[number])
    return codes


def rounded(x: NDArray[np.float32], scale: NDArray[np.float32] | np.float32, number: Code) -> NDArray[np.float32]:
    """Return numbers as QuantizeLinear and DequantizeLinear at a scale leave them."""
    scaled = x / scale
    if number == "fp8":
        return encode(scaled, number).astype(np.float32) * scale
    np.rint(scaled, out=scaled)
    np.clip(scaled, _LEAST[number], LARGEST[number], out=scaled)
    scaled *= scale
    return scaled
