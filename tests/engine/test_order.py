from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from tests.runtime.test_tensorrt_family import ComputeCapability
from trt_vit.cli import run
from trt_vit.cuda import driver
from trt_vit.cuda.driver import Gpu
from trt_vit.engine import order as orders
from trt_vit.engine.order import take_order
from trt_vit.errors import EnvironmentFault, TrtVitError, UsageError
from trt_vit.runtime import registry
from trt_vit.runtime.tensorrt_family import Family, FamilyName
from trt_vit.settings import BuildSettings

if TYPE_CHECKING:
    from pathlib import Path

ADA = Gpu("NVIDIA L4", "8.9", 2**34)
AMPERE = Gpu("NVIDIA A10", "8.6", 2**34)
TURING = Gpu("Tesla T4", "7.5", 2**34)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, None)


@pytest.fixture(autouse=True)
def both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT 11.4 and TensorRT for RTX, as far as an order asks them anything."""

    def load(name: FamilyName) -> Family:
        module = ModuleType(name)
        module.__dict__.update(ComputeCapability=ComputeCapability)
        return Family(name, module, "11.4" if name == "tensorrt" else "1.7")

    monkeypatch.setattr(orders, "load_family", load)


def with_gpu(monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None) -> None:
    monkeypatch.setattr(driver, "gpus", lambda: [] if gpu is None else [gpu])


def order(**settings: Any) -> orders.Order:
    return take_order(BuildSettings(**({"source": "google/vit"} | settings)))


def test_rtx_needs_neither_a_gpu_nor_to_be_told_of_one() -> None:
    taken = order(runtime="tensorrt-rtx", precision="fp16")
    assert taken.tensorrt is not None
    assert (taken.runtime, taken.precision) == ("tensorrt-rtx", "fp16")
    assert (taken.tensorrt.target.compute_capability, taken.tensorrt.target.gpu) == (None, None)
    assert taken.path.as_posix() == "engines/built/google--vit-fp16-tensorrt-rtx"


def test_the_target_is_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, ADA)
    taken = order(
        runtime="tensorrt",
        lanes=3,
        workspace_gib=1.5,
        optimization_level=4,
        version_compatible=True,
        hardware_compatible=True,
    )
    assert taken.tensorrt is not None
    target = taken.tensorrt.target
    assert (target.lanes, target.workspace_gib, target.optimization_level) == (3, 1.5, 4)
    assert (target.version_compatible, target.hardware_compatible) == (True, True)
    assert (target.gpu, target.compute_capability) == ("NVIDIA L4", None)


@pytest.mark.parametrize(("lanes", "asked", "given"), [(1, None, None), (2, None, 0), (1, 2, 2), (2, 1, 1), (1, 0, 0)])
def test_lanes_side_by_side_get_no_further_streams(lanes: int, asked: int | None, given: int | None) -> None:
    taken = order(runtime="tensorrt-rtx", lanes=lanes, aux_streams=asked)
    assert taken.tensorrt is not None
    assert taken.tensorrt.target.aux_streams == given


def refused(kind: type[TrtVitError], message: str, **settings: Any) -> str:
    """Take an order that has to be refused; return the hint."""
    with pytest.raises(kind, match=message) as caught:
        order(**settings)
    assert "\n" not in str(caught.value)
    return caught.value.hint


def test_tensorrt_without_a_gpu_names_the_way_out() -> None:
    hint = refused(
        EnvironmentFault, r"TensorRT 11\.4 builds only on the GPU that the engine is for", runtime="tensorrt"
    )
    assert "--runtime tensorrt-rtx" in hint


def test_tensorrt_builds_for_no_other_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, ADA)
    message = r"TensorRT 11\.4 builds only for the GPU of the machine it runs on"
    hint = refused(UsageError, message, runtime="tensorrt", compute_capability="8.9")
    assert "leave out --compute-capability" in hint


def test_an_unknown_capability_is_refused_with_those_known() -> None:
    message = r"TensorRT for RTX 1\.7 cannot build for compute capability 9\.0"
    hint = refused(UsageError, message, runtime="tensorrt-rtx", compute_capability="9.0")
    assert hint == "choose one of 7.5, 8.9, 12.0"


@pytest.mark.parametrize(
    ("gpu", "precision", "first"),
    [(AMPERE, "fp8", "Ada (8.9)"), (TURING, "fp8", "Ada (8.9)"), (TURING, "bf16", "Ampere (8.0)")],
)
def test_a_gpu_without_such_numbers_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu: Gpu, precision: str, first: str
) -> None:
    with_gpu(monkeypatch, gpu)
    message = f"{precision} is not for GPUs of compute capability {gpu.compute_capability}"
    hint = refused(UsageError, message, runtime="tensorrt", precision=precision, calibration=tmp_path)
    assert first in hint


@pytest.mark.parametrize(("capability", "precision"), [("7.5", "fp8"), ("7.5", "bf16")])
def test_a_named_capability_without_such_numbers_is_refused(tmp_path: Path, capability: str, precision: str) -> None:
    message = f"{precision} is not for GPUs of compute capability {capability}"
    settings = {"precision": precision, "compute_capability": capability, "calibration": tmp_path}
    refused(UsageError, message, runtime="tensorrt-rtx", **settings)


@pytest.mark.parametrize(
    ("capability", "precision"), [("8.9", "fp8"), ("12.0", "fp8"), ("8.9", "bf16"), ("7.5", "int8"), ("7.5", "fp16")]
)
def test_what_a_gpu_multiplies_is_built(tmp_path: Path, capability: str, precision: str) -> None:
    taken = order(runtime="tensorrt-rtx", precision=precision, compute_capability=capability, calibration=tmp_path)
    assert taken.precision == precision


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_cpu_runtime_has_no_compute_capability(runtime: str) -> None:
    message = f"--compute-capability means nothing for {runtime}"
    assert "tensorrt-rtx" in refused(UsageError, message, runtime=runtime, compute_capability="8.9")


@pytest.mark.parametrize(
    ("runtime", "precision", "known"),
    [
        ("openvino", "fp16", "fp32 or bf16 or int8"),
        ("openvino", "fp8", "fp32 or bf16 or int8"),
        ("onnxruntime", "bf16", "fp32 or int8"),
        ("onnxruntime", "fp8", "fp32 or int8"),
    ],
)
def test_a_precision_that_a_runtime_lacks_is_refused(runtime: str, precision: str, known: str) -> None:
    message = f"{runtime} engines are built in {known}, not in {precision}"
    assert "--runtime tensorrt-rtx" in refused(UsageError, message, runtime=runtime, precision=precision)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_cpu_runtime_is_built_in_int8(tmp_path: Path, runtime: str) -> None:
    taken = order(runtime=runtime, precision="int8", calibration=tmp_path)
    assert (taken.runtime, taken.precision, taken.tensorrt) == (runtime, "int8", None)
    assert taken.path.name == f"google--vit-int8-{runtime}"


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_cpu_runtime_has_no_attention_in_int8(tmp_path: Path, runtime: str) -> None:
    settings = {"runtime": runtime, "precision": "int8", "calibration": tmp_path, "quantize_attention": True}
    assert "tensorrt-rtx" in refused(UsageError, f"--quantize-attention means nothing for {runtime}", **settings)


@pytest.mark.parametrize(
    ("runtime", "precision"),
    [("tensorrt-rtx", "int8"), ("tensorrt-rtx", "fp8"), ("openvino", "int8"), ("onnxruntime", "int8")],
)
def test_ranges_have_to_be_measured_on_something(tmp_path: Path, runtime: str, precision: str) -> None:
    settings = {"runtime": runtime, "precision": precision}
    message = f"{precision} needs images to measure ranges on, and --calibration names none"
    assert "give --calibration DIR" in refused(UsageError, message, **settings)
    hint = "name a directory of images like those to classify"
    missing = tmp_path / "nowhere"
    assert refused(UsageError, "nowhere is not a directory", calibration=missing, **settings) == hint
    missing.touch()
    assert refused(UsageError, "nowhere is not a directory", calibration=missing, **settings) == hint


def test_an_onnx_file_may_bring_its_own_ranges() -> None:
    assert order(source="quantized.ONNX", runtime="tensorrt-rtx", precision="int8").precision == "int8"


def test_auto_is_the_best_that_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "installed", lambda: ["tensorrt", "tensorrt-rtx", "openvino"])
    monkeypatch.setattr(registry, "failure", lambda _name: None)
    assert order().runtime == "openvino"
    with_gpu(monkeypatch, ADA)
    assert order().runtime == "tensorrt"
    monkeypatch.setattr(registry, "failure", lambda name: "it does not load" if name == "tensorrt" else None)
    assert order().runtime == "tensorrt-rtx"


RTX = ["--runtime", "tensorrt-rtx"]


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--runtime", "tensorrt"], 4, "--runtime tensorrt-rtx builds without a GPU"),
        ([*RTX, "--compute-capability", "9.0"], 2, "choose one of 7.5, 8.9, 12.0"),
        ([*RTX, "--compute-capability", "89"], 2, "--compute-capability"),
        ([*RTX, "--compute-capability", "7.5", "--precision", "bf16"], 2, "needs Ampere (8.0) or later"),
        ([*RTX, "--precision", "fp8", "--calibration", "."], 2, "needs Ada (8.9) or later"),
        (["--runtime", "openvino", "--compute-capability", "8.9"], 2, "means nothing for openvino"),
        (["--runtime", "openvino", "--precision", "fp16"], 2, "--runtime tensorrt-rtx"),
        (["--runtime", "openvino", "--precision", "int8"], 2, "give --calibration DIR"),
        (["--runtime", "onnxruntime", "--quantize-attention"], 2, "means nothing for onnxruntime"),
        ([*RTX, "--precision", "int8"], 2, "give --calibration DIR"),
        ([*RTX, "--precision", "int4"], 2, "--precision"),
        ([*RTX, "--precision", "fp8", "--calibration", "/nowhere"], 2, "/nowhere is not a directory"),
    ],
)
def test_the_command_line_refuses_on_one_line(
    arguments: list[str], code: int, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bundle"
    assert run(["build-engine", "google/vit", "-o", str(output), *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert part in line
    assert not output.exists()


@pytest.mark.usefixtures("rtx")
def test_auto_builds_for_tensorrt_what_nothing_here_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(driver, "gpus", list)
    assert order(precision="fp16").runtime == "tensorrt-rtx"
    assert order(precision="fp32").runtime == "openvino"
    assert order(precision="int8", calibration=tmp_path).runtime == "openvino"
