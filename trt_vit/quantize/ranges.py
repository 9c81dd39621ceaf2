"""Where the range of a tensor ends: the ways that every quantizer knows, which look at its values alone.

The default, the error of the layers that read the tensor, is found in ``trt_vit.quantize.equalize``.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.quantize.codes import Code, activation_scale, rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trt_vit.engine.manifest import RangeMethod

_PERCENTILE = 99.99
_BINS = 2048
_LEVELS = 128
"""What a histogram is compared in: NVIDIA's numbers, of 8-bit inference with TensorRT (Migacz 2017)."""
_SHARES = np.linspace(0.3, 1.0, 36)


def largest_kept(values: NDArray[np.float32], amax: float, method: RangeMethod, number: Code) -> float:
    """Return the largest absolute value that is not clipped.

    Args:
        values: A sample of the tensor's values, float32 of any shape.
        amax: The largest absolute value of all.
        method: ``max`` clips nothing; ``percentile`` one value in 10,000; ``entropy`` where the histogram of the codes
            loses least information (Kullback-Leibler); ``mse`` where the values' mean squared error is least.
        number: The numbers that they are quantized to.
    """
    if method == "percentile":
        return float(np.percentile(np.abs(values), _PERCENTILE))
    if method == "entropy":
        return min(amax, _entropy(values))
    if method == "mse":
        errors = [_squared_error(values, share * amax, number) for share in _SHARES]
        return float(_SHARES[int(np.argmin(errors))] * amax)
    return amax


def _entropy(values: NDArray[np.float32]) -> float:
    from onnxruntime.quantization.calibrate import HistogramCollector  # noqa: PLC0415 - onnx, which only a build needs

    collector = HistogramCollector(
        method="entropy", symmetric=True, num_bins=_BINS, num_quantized_bins=_LEVELS, percentile=100, scenario="same"
    )
    with redirect_stdout(StringIO()):  # it tells what it does, of each tensor in four lines
        collector.collect({"values": [values]})
        (low, high, *_), *_ = collector.compute_collection_result().values()
    return float(max(abs(low), abs(high)))


def _squared_error(values: NDArray[np.float32], amax: float, number: Code) -> float:
    return float(np.mean(np.square(rounded(values, activation_scale(amax, number), number) - values)))
