from __future__ import annotations

import importlib.util
import sys
from enum import IntEnum
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.fake_tensorrt import FakeLogger
from trt_vit.errors import EnvironmentFault, UsageError
from trt_vit.runtime import tensorrt_family
from trt_vit.runtime.tensorrt_family import (
    Family,
    FamilyName,
    compute_capabilities,
    create_log,
    last_error,
    load_family,
    module_name,
    refuse_unknown_capability,
    target_capability,
)

if TYPE_CHECKING:
    from pathlib import Path

NAMES: list[FamilyName] = ["tensorrt", "tensorrt-rtx"]


class ComputeCapability(IntEnum):
    NONE = 0
    CURRENT = 1
    SM75 = 75
    SM89 = 89
    SM120 = 120


class FakeConfig:
    num_compute_capabilities = 0

    def __init__(self) -> None:
        self.capabilities: dict[int, ComputeCapability] = {}

    def set_compute_capability(self, capability: ComputeCapability, index: int) -> None:
        assert index < self.num_compute_capabilities
        self.capabilities[index] = capability


def family(name: FamilyName = "tensorrt-rtx", version: str = "1.7.1") -> Family:
    module = ModuleType(name.replace("-", "_"))
    module.__dict__.update(ILogger=FakeLogger, ComputeCapability=ComputeCapability)
    return Family(name, module, version)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of packages in which no member of the family is but what a test puts there."""
    names = [name for names in tensorrt_family._MODULES.values() for name in names]
    names += tensorrt_family._LIBRARIES.values()
    for name in [known for known in sys.modules if known.split(".")[0] in names]:
        monkeypatch.delitem(sys.modules, name)

    def find_spec(name: str) -> Any:
        spec = importlib.util.find_spec(name)
        return spec if spec is not None and str(spec.origin).startswith(str(tmp_path)) else None

    monkeypatch.setattr("trt_vit.runtime.tensorrt_family.find_spec", find_spec)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "extra"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "rtx")])
def test_a_package_that_is_missing_is_named_with_the_fix(site: Path, name: FamilyName, extra: str) -> None:
    assert module_name(name) is None
    with pytest.raises(EnvironmentFault, match=f"{name} is not installed") as caught:
        load_family(name)
    assert caught.value.hint == f"pip install 'trt-vit[{extra}]'"


@pytest.mark.parametrize("module", ["tensorrt_rtx", "tensorrt_rtx_bindings"])
def test_either_name_of_the_bindings_will_do(site: Path, module: str) -> None:
    (site / f"{module}.py").write_text("__version__ = '1.7.1.116'", encoding="utf-8")
    loaded = load_family("tensorrt-rtx")
    assert (loaded.name, loaded.version, loaded.title) == (
        "tensorrt-rtx",
        "1.7.1.116",
        "TensorRT for RTX 1.7.1.116",
    )
    assert loaded.bindings.__name__ == module
    del sys.modules[module]


def test_the_libraries_are_found_first(site: Path) -> None:
    (site / "tensorrt_rtx_libs.py").write_text("", encoding="utf-8")
    program = "import sys\nassert 'tensorrt_rtx_libs' in sys.modules\n__version__ = '1.7'"
    (site / "tensorrt_rtx_bindings.py").write_text(program, encoding="utf-8")
    assert load_family("tensorrt-rtx").version == "1.7"
    del sys.modules["tensorrt_rtx_bindings"], sys.modules["tensorrt_rtx_libs"]


@pytest.mark.parametrize("version", ["10.11.0.33", "8.6.1", "9.3.0.post12"])
def test_an_old_tensorrt_is_refused(site: Path, version: str) -> None:
    (site / "tensorrt.py").write_text(f"__version__ = '{version}'", encoding="utf-8")
    with pytest.raises(EnvironmentFault, match=f"TensorRT {version} is older than 10.12") as caught:
        load_family("tensorrt")
    assert "pip install" in caught.value.hint
    del sys.modules["tensorrt"]


@pytest.mark.parametrize("version", ["10.12.0.36", "10.16.1.11", "11.4.0.106"])
def test_a_newer_tensorrt_is_taken(site: Path, version: str) -> None:
    (site / "tensorrt.py").write_text(f"__version__ = '{version}'", encoding="utf-8")
    assert load_family("tensorrt").title == f"TensorRT {version}"
    del sys.modules["tensorrt"]


@pytest.mark.parametrize(
    "program",
    ["raise ImportError('libnvinfer.so.11:\\n  no such file')", "raise OSError('libnvinfer.so.11:  no such file')"],
)
def test_a_library_that_does_not_load_says_why_on_one_line(site: Path, program: str) -> None:
    (site / "tensorrt.py").write_text(program, encoding="utf-8")
    with pytest.raises(EnvironmentFault, match=r"tensorrt does not load: libnvinfer\.so\.11: no such file"):
        load_family("tensorrt")


def test_the_log_keeps_errors_and_what_is_said_of_the_engine() -> None:
    log = create_log(family())
    severity = FakeLogger.Severity
    log.logger.log(severity.VERBOSE, "Parsing node")
    log.logger.log(severity.VERBOSE, "Layers:\nName: fc1, LayerType: gemm, Inputs: []")
    log.logger.log(severity.INFO, "Total Weights Memory: 12 bytes")
    log.logger.log(severity.WARNING, "half of it")
    assert last_error(log, "nothing") == "nothing"
    log.logger.log(severity.ERROR, "Error Code 1:\n  out of  memory")
    log.logger.log(severity.INTERNAL_ERROR, "Error Code 2")
    assert log.errors == ["Error Code 1: out of memory", "Error Code 2"]
    assert log.notes == ["Layers:\nName: fc1, LayerType: gemm, Inputs: []", "Total Weights Memory: 12 bytes"]
    assert last_error(log, "nothing") == "Error Code 2"


def test_compute_capabilities_are_spelled_as_cuda_does() -> None:
    assert compute_capabilities(family()) == ["7.5", "8.9", "12.0"]


def test_a_build_is_for_the_capability_that_was_named() -> None:
    config: Any = FakeConfig()
    target_capability(family(), config, "12.0")
    assert config.num_compute_capabilities == 1
    assert config.capabilities == {0: ComputeCapability.SM120}


@pytest.mark.parametrize("capability", ["9.0", "0.0", "1.0"])
def test_an_unknown_capability_is_refused_with_those_known(capability: str) -> None:
    with pytest.raises(UsageError, match=f"RTX 1.7.1 cannot build for compute capability {capability}") as caught:
        refuse_unknown_capability(family(), capability)
    assert caught.value.hint == "choose one of 7.5, 8.9, 12.0"
    config: Any = FakeConfig()
    with pytest.raises(UsageError):
        target_capability(family(), config, capability)
    assert config.capabilities == {}


def test_tensorrt_builds_for_no_other_gpu() -> None:
    with pytest.raises(UsageError, match=r"TensorRT 11\.4 builds only for the GPU of the machine") as caught:
        compute_capabilities(family("tensorrt", "11.4"))
    assert "--runtime tensorrt-rtx" in caught.value.hint


def test_the_installed_tensorrt_for_rtx_knows_what_it_builds_for() -> None:
    if module_name("tensorrt-rtx") is None:
        pytest.skip("needs TensorRT for RTX: pip install 'trt-vit[rtx]'")
    known = compute_capabilities(load_family("tensorrt-rtx"))
    assert {"7.5", "8.0", "8.6", "8.9", "12.0"} <= set(known)
    assert all(float(capability) >= 7.5 for capability in known)
