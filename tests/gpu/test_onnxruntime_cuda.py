from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from trt_vit.cuda import driver
from trt_vit.runtime.onnxruntime import OnnxRuntimeRuntime, open_session, providers
from trt_vit.runtime.protocol import RuntimeOptions

if TYPE_CHECKING:
    from trt_vit.engine.bundle import Bundle

CUDA = "CUDAExecutionProvider"


@pytest.mark.gpu
def test_the_cuda_provider_answers_as_the_cpu_does(onnxruntime_bundle: Bundle) -> None:
    if driver.version() is None:
        pytest.skip("needs an NVIDIA GPU and its driver")
    if CUDA not in dict(providers()):
        pytest.skip("needs onnxruntime-gpu")
    engine = onnxruntime_bundle.read("engine.onnx")
    session = open_session(engine, threads=1)
    assert session.get_providers()[0] == CUDA
    pixels = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    session.set_providers(["CPUExecutionProvider"])
    (expected,) = session.run(None, {"pixel_values": pixels})
    runtime = OnnxRuntimeRuntime(onnxruntime_bundle.engine_files(), RuntimeOptions(batch_size=4, lanes=2))
    for lane in runtime.lanes:
        assert np.abs(lane.infer(pixels) - expected).max() < 1e-3
