from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pytest

from trt_vit.cuda import driver
from trt_vit.runtime.onnxruntime import OnnxRuntimeRuntime, open_session, providers
from trt_vit.runtime.onnxruntime_cuda import OnnxRuntimeCudaRuntime
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.runtime.registry import open_runtime

if TYPE_CHECKING:
    from trt_vit.engine.bundle import Bundle

CUDA = "CUDAExecutionProvider"


pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _provider() -> None:
    if not driver.gpus():
        pytest.skip("needs an NVIDIA GPU and its driver")
    if CUDA not in dict(providers()):
        pytest.skip("needs onnxruntime-gpu")


def test_the_cuda_provider_answers_as_the_cpu_does(onnxruntime_bundle: Bundle) -> None:
    engine = onnxruntime_bundle.read("engine.onnx")
    session = open_session(engine, threads=1)
    assert session.get_providers()[0] == CUDA
    pixels = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    session.set_providers(["CPUExecutionProvider"])
    (expected,) = session.run(None, {"pixel_values": pixels})
    runtime = OnnxRuntimeRuntime(onnxruntime_bundle.engine_files(), RuntimeOptions(batch_size=4, lanes=2))
    for lane in runtime.lanes:
        assert np.abs(lane.infer(pixels) - expected).max() < 1e-3


def test_its_lanes_on_their_own_streams_answer_as_the_cpu_does(onnxruntime_bundle: Bundle) -> None:
    if find_spec("pycuda") is None or find_spec("cuda") is None:
        pytest.skip("needs pycuda and cuda-bindings: pip install 'trt-vit[cuda]'")
    runtime = open_runtime("onnxruntime", onnxruntime_bundle.engine_files(), RuntimeOptions(batch_size=4, lanes=2))
    assert isinstance(runtime, OnnxRuntimeCudaRuntime)
    session = open_session(onnxruntime_bundle.read("engine.onnx"), threads=1)
    session.set_providers(["CPUExecutionProvider"])
    for seed, count in enumerate([4, 1, 3, 4]):  # a smaller batch after a larger one, which must not show
        pixels = np.random.default_rng(seed).normal(size=(count, 3, 32, 32)).astype(np.float32)
        (expected,) = session.run(None, {"pixel_values": pixels})
        for lane in runtime.lanes:
            logits = lane.infer(pixels)
            assert logits.shape == expected.shape
            assert np.abs(logits - expected).max() < 1e-3
