from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from trt_vit.cuda import driver
from trt_vit.cuda.driver import Gpu
from trt_vit.doctor import ACCELERATORS, CORE, EXPORT, examine, findings, gpu_findings
from trt_vit.runtime import registry

if TYPE_CHECKING:
    import pytest

COMPLETE: dict[str, str | None] = dict.fromkeys((*CORE, *EXPORT), "1.0") | dict.fromkeys(ACCELERATORS)


def test_nothing_to_say_about_a_complete_installation() -> None:
    assert findings(COMPLETE) == []


def test_a_missing_core_package_is_fatal() -> None:
    (finding,) = findings(COMPLETE | {"openvino": None})
    assert finding.fatal
    assert "openvino" in finding.problem


def test_the_gpu_build_of_onnx_runtime_serves_as_well() -> None:
    assert findings(COMPLETE | {"onnxruntime": None, "onnxruntime-gpu": "1.0"}) == []


def test_a_missing_export_package_is_not_fatal() -> None:
    (finding,) = findings(COMPLETE | {"torch": None, "onnx": None})
    assert not finding.fatal
    assert finding.problem.startswith("onnx, torch not installed")
    assert finding.fix == "pip install 'trt-vit[export]'"


def test_a_runtime_that_does_not_load_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        if name == "openvino":
            raise OSError("libopenvino.so: no such file")

    monkeypatch.setattr(registry, "import_module", fail)
    report = examine()
    assert report["runtimes"] == ["onnxruntime"]
    (finding,) = report["findings"]
    assert finding["fatal"]
    assert finding["problem"] == "openvino is installed but does not load: libopenvino.so: no such file"


def test_an_old_tensorrt_is_a_risk() -> None:
    (finding,) = findings(COMPLETE | {"tensorrt": "10.16.1"})
    assert "10.16.1" in finding.problem
    assert findings(COMPLETE | {"tensorrt": "11.4.0"}) == []


def test_without_a_gpu_nothing_is_missing_for_one() -> None:
    assert gpu_findings(COMPLETE) == []


def test_what_a_gpu_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "gpus", lambda: [Gpu("NVIDIA L4", "8.9", 1)])
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert [finding.problem for finding in gpu_findings(COMPLETE)] == [
        "cuda-bindings, pycuda not installed: the GPU is not used",
        "nvidia-nvimgcodec-cu13 is not installed: --decode fast does not work",
        "neither nvcc nor NVRTC is there: kernels cannot be compiled",
    ]
    assert gpu_findings(COMPLETE | dict.fromkeys(ACCELERATORS, "1.0")) == []
