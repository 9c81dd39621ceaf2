from __future__ import annotations

from typing import TYPE_CHECKING

from trt_vit.doctor import ACCELERATORS, CORE, EXPORT, examine, findings
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
