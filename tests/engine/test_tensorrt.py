"""The build flow with TensorRT, end to end: TensorRT for RTX builds real engines where there is no GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from tests.engine.conftest import BATCH, Listener
from tests.quantize.graphs import PLAIN, quantized
from trt_vit.cli import run
from trt_vit.cuda import driver
from trt_vit.cuda.driver import Gpu
from trt_vit.engine import tensorrt, verify
from trt_vit.engine.compare import Comparison
from trt_vit.engine.describe import describe
from trt_vit.engine.layers import EngineLayer
from trt_vit.engine.manifest import BatchProfile, TargetRecord
from trt_vit.engine.plan import Plan
from trt_vit.engine.plan_cache import PlanCache
from trt_vit.engine.prepare import Prepared
from trt_vit.engine.progress import Quiet
from trt_vit.engine.verify import Verdict
from trt_vit.errors import EngineError, OutputError, TrtVitError, UsageError
from trt_vit.quantize.equalize import Numbers
from trt_vit.quantize.linear import groups, linear_layers
from trt_vit.quantize.qdq import place
from trt_vit.quantize.solve import solve
from trt_vit.quantize.statistics import measure
from trt_vit.runtime.tensorrt import ENGINE, TensorRtRuntime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.engine.conftest import Workshop
    from trt_vit.engine.bundle import Bundle
    from trt_vit.engine.manifest import EngineRecord
    from trt_vit.runtime.tensorrt_family import Family

PRECISIONS = ["fp32", "fp16", "bf16", "int8", "fp8"]
MOST_LAYERS = {"fp32": 35, "fp16": 24, "bf16": 24, "int8": 25, "fp8": 25}
"""Measured with TensorRT for RTX 1.7.1; the two layers, the patches and the head."""
MOST_WEIGHTS = {"fp16": 0.53, "bf16": 0.53, "int8": 0.32, "fp8": 0.34}
"""Bytes of weights as a share of those in fp32.

Of 81,035 numbers 78,272 are in linear layers (FP8: all but 12,288; INT8: all but 8,192)."""
LINEAR_LAYERS = 10
PROJECTIONS = [17 * 64 * 64, 64 * 64]
"""Multiply-accumulates of the layers behind the attentions, the second for the class token alone."""
INT8_SHARE = 1 - sum(PROJECTIONS) / 983488
"""What else there is, as a share of all multiply-accumulates."""


class Built(Protocol):
    def __call__(self, precision: str) -> Bundle: ...


@pytest.fixture(scope="module")
def built(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Engines by precision, each built once."""

    @cache
    def build(precision: str) -> Bundle:
        return workshop.build(tmp_path_factory.mktemp("built") / precision, precision=precision)

    return build


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_bundle_is_whole_and_says_what_it_is(built: Built, precision: str) -> None:
    bundle = built(precision)
    bundle.verify()
    manifest = bundle.manifest
    assert (manifest.runtime, manifest.precision, str(manifest.batch)) == ("tensorrt-rtx", precision, "1,4,8")
    assert manifest.target == TargetRecord(lanes=1, compute_capability="8.9")
    assert set(manifest.files) == {ENGINE, "labels.json", "preprocessing.json"}
    assert manifest.versions["tensorrt-rtx"].startswith("1.")
    comparison = manifest.engine.against_fp32
    assert comparison is not None
    assert (comparison.measured_on, comparison.measured_in) == ("graph", "fp32")
    assert comparison.cosine > 0.999
    assert len(bundle.labels()) == manifest.model.classes == 7


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_engine_has_no_more_layers_than_it_needs(built: Built, precision: str) -> None:
    engine = built(precision).manifest.engine
    assert 15 < engine.layers <= MOST_LAYERS[precision]
    assert sum(engine.kinds.values()) == sum(engine.precisions.values()) == engine.layers
    assert engine.reformats == 0


def computing(engine: EngineRecord) -> set[str]:
    """Number formats of layers that compute: of the first and the last, which read or write fp32, there may be two."""
    return {number for number, layers in engine.precisions.items() if number != "none" and layers > 2}


@pytest.mark.parametrize(
    ("precision", "numbers"),
    [("fp32", {"fp32"}), ("fp16", {"fp16"}), ("bf16", {"bf16"}), ("int8", {"int8", "fp16"}), ("fp8", {"fp8", "fp16"})],
)
def test_layers_compute_in_what_was_asked_for(built: Built, precision: str, numbers: set[str]) -> None:
    assert computing(built(precision).manifest.engine) == numbers


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_every_attention_is_one_kernel(built: Built, precision: str) -> None:
    engine = built(precision).manifest.engine
    assert engine.fused_attention == engine.attentions == 2


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_weights_shrink_as_their_numbers_do(built: Built, precision: str) -> None:
    share = built(precision).manifest.engine.weights_bytes / built("fp32").manifest.engine.weights_bytes
    assert MOST_WEIGHTS[precision] - 0.05 < share <= MOST_WEIGHTS[precision]


def test_int8_covers_every_linear_layer_but_those_behind_attentions(built: Built, workshop: Workshop) -> None:
    manifest = built("int8").manifest
    record = manifest.quantization
    assert record is not None
    assert (record.calibration, record.images) == (str(workshop.images), 8)
    assert record.images_sha256 is not None
    assert len(record.plan) == LINEAR_LAYERS
    left_out = [row for row in record.plan if row.reason is not None]
    assert [row.macs for row in left_out] == PROJECTIONS
    assert all(row.precision == "fp16" and "an attention's output" in str(row.reason) for row in left_out)
    kept = [row for row in record.plan if row.reason is None]
    assert all(row.precision == "int8" and row.amax is not None and row.amax > 0 for row in kept)
    assert manifest.engine.int8_coverage == pytest.approx(INT8_SHARE, abs=1e-9)
    assert sum(row.macs for row in record.plan) == 983488


def test_attention_in_int8_covers_the_projections_too(workshop: Workshop, tmp_path: Path) -> None:
    manifest = workshop.build(tmp_path / "b", precision="int8", quantize_attention=True).manifest
    assert manifest.engine.int8_coverage == 1.0
    assert manifest.engine.fused_attention == manifest.engine.attentions == 2
    assert manifest.engine.layers <= MOST_LAYERS["int8"]
    assert manifest.quantization is not None
    plan = manifest.quantization.plan
    assert {row.reason for row in plan} == {None}
    assert [row.macs for row in plan if row.attention] == PROJECTIONS
    assert manifest.engine.against_fp32 is not None
    assert manifest.engine.against_fp32.cosine > 0.99


def test_agreement_is_not_looked_for_where_none_is_asked_for(built: Built) -> None:
    record = built("int8").manifest.quantization
    assert record is not None
    assert (record.min_agreement, record.reached) == (0.0, True)
    assert (record.held_back, record.agreement, record.expected_agreement) == (None, None, None)
    assert {row.cost for row in record.plan} == {None}


def test_fp8_leaves_the_patches_out(built: Built) -> None:
    manifest = built("fp8").manifest
    assert manifest.engine.int8_coverage == 0.0
    record = manifest.quantization
    assert record is not None
    assert [row.reason for row in record.plan if row.reason is not None] == ["FP8 is for matrix products"]
    assert [row.precision for row in record.plan] == ["fp16", *["fp8"] * (LINEAR_LAYERS - 1)]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_what_is_not_quantized_has_no_record_of_it(built: Built, precision: str) -> None:
    manifest = built(precision).manifest
    assert (manifest.quantization, manifest.engine.int8_coverage) == (None, 0.0)


def test_lanes_change_no_layer(built: Built, workshop: Workshop, tmp_path: Path) -> None:
    one, two = built("int8").manifest, workshop.build(tmp_path / "b", precision="int8", lanes=2).manifest
    assert (two.engine.kinds, two.engine.precisions) == (one.engine.kinds, one.engine.precisions)
    assert two.engine.int8_coverage == one.engine.int8_coverage
    assert two.target == TargetRecord(lanes=2, compute_capability="8.9", aux_streams=0)


def test_the_description_names_what_was_built(built: Built) -> None:
    document = describe(built("int8"))
    assert (document["runtime"], document["precision"]) == ("tensorrt-rtx", "int8")
    assert document["int8_coverage"] == pytest.approx(INT8_SHARE, abs=1e-9)
    assert len(document["plan"]) == LINEAR_LAYERS
    assert list(document["left_out"]) == [row["layer"] for row in document["plan"] if row["precision"] == "fp16"]
    assert document["engine_bytes"] == (built("int8").path / ENGINE).stat().st_size
    assert document["batch"] == [1, 4, 8]


def engine_digest(bundle: Bundle) -> str:
    return bundle.manifest.files[ENGINE].sha256


def test_the_same_plan_is_not_built_twice(built: Built, workshop: Workshop, tmp_path: Path) -> None:
    first, listener = built("fp16"), Listener()
    second = workshop.build(tmp_path / "again", listener, precision="fp16")
    assert engine_digest(second) == engine_digest(first)
    assert second.manifest.engine == first.manifest.engine
    assert any(f"was built before: taken from {workshop.cache / 'plans'}" in said for said in listener.said)
    assert not any(said.startswith("building the TensorRT") for said in listener.said)


class CountingBuilder:
    """Stands in for TensorRT: plans with the layers of a real one, each with bytes of its own."""

    def __init__(self, plan: Plan) -> None:
        self.built = 0
        self.plan = plan

    def __call__(self, *_: object, **__: object) -> Plan:
        self.built += 1
        return replace(self.plan, data=f"plan {self.built}".encode())


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> CountingBuilder:
    layers = [EngineLayer("fc1", "gemm", ("fc1",), ("fp16", "fp16"))]
    counting = CountingBuilder(Plan(b"", layers, 12))
    monkeypatch.setattr(tensorrt, "build_plan", counting)
    return counting


def take(rtx: Family, root: Path, *, batch: BatchProfile = BATCH, **target: Any) -> Plan:
    """Build the plan of a graph, or take it from the cache."""
    (root / "g.onnx").write_bytes(b"graph")
    prepared = Prepared(root / "g.onnx", 0, {"fc1": 1}, 1.0, None)
    record = TargetRecord(**({"compute_capability": "8.9"} | target))
    return tensorrt._plan(batch, prepared, family=rtx, target=record, cache=root, progress=Quiet())


@pytest.mark.parametrize(
    "change",
    [
        {"lanes": 2},
        {"compute_capability": "8.6"},
        {"compute_capability": None},
        {"workspace_gib": 1.0},
        {"optimization_level": 2},
        {"aux_streams": 0},
        {"version_compatible": True},
        {"hardware_compatible": True},
        {"batch": BatchProfile(min=1, opt=4, max=9)},
    ],
)
def test_other_settings_build_anew(
    rtx: Family, builder: CountingBuilder, tmp_path: Path, change: dict[str, Any]
) -> None:
    first = take(rtx, tmp_path)
    assert take(rtx, tmp_path) == first
    assert builder.built == 1
    changed = take(rtx, tmp_path, **change)
    assert builder.built == 2
    assert take(rtx, tmp_path, **change) == changed
    assert take(rtx, tmp_path) == first
    assert builder.built == 2


def test_another_version_builds_anew(rtx: Family, builder: CountingBuilder, tmp_path: Path) -> None:
    take(rtx, tmp_path)
    take(replace(rtx, version="9.9"), tmp_path)
    assert builder.built == 2


def test_a_damaged_plan_is_built_anew(rtx: Family, builder: CountingBuilder, tmp_path: Path) -> None:
    take(rtx, tmp_path)
    (stored,) = (tmp_path / "plans").glob("*/engine.plan")
    stored.write_bytes(b"plan x")
    assert take(rtx, tmp_path).data == b"plan 2"
    assert take(rtx, tmp_path).data == b"plan 2"


def test_a_cache_that_cannot_be_written_is_no_error(rtx: Family, builder: CountingBuilder, tmp_path: Path) -> None:
    (tmp_path / "plans").touch()
    assert take(rtx, tmp_path).data == b"plan 1"
    assert take(rtx, tmp_path).data == b"plan 2"


def left_nothing(output: Path, error: type[TrtVitError], build: Callable[[], object], message: str) -> str:
    """Run a build that has to fail; nothing may be left at its place. Return the hint."""
    with pytest.raises(error, match=message) as caught:
        build()
    assert not list(output.parent.glob(f".{output.name}.*"))
    assert not output.exists()
    assert "\n" not in str(caught.value)
    return caught.value.hint


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def own_qdq(vit_onnx: Path, pixels: np.ndarray) -> Path:
    """The ViT with our Q/DQ nodes in an otherwise fp32 graph."""
    model = ir.load(vit_onnx)
    quantized(model, [pixels])
    ir.save(model, vit_onnx.with_name("own.onnx"))
    return vit_onnx.with_name("own.onnx")


@pytest.fixture(scope="module")
def others_qdq(vit_onnx: Path, pixels: np.ndarray) -> Path:
    """The ViT as ONNX Runtime quantizes it, symmetrically, as TensorRT wants; its biases are quantized too."""
    name = onnx.load(vit_onnx).graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self._batches: Iterator[dict[str, np.ndarray]] = iter([{name: pixels}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    output = vit_onnx.with_name("others.onnx")
    quantize_static(
        vit_onnx,
        output,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    return output


@pytest.mark.parametrize("quantizer", ["own_qdq", "others_qdq"])
def test_a_graph_that_came_quantized_is_built_as_it_is(
    request: pytest.FixtureRequest, workshop: Workshop, tmp_path: Path, quantizer: str
) -> None:
    source, listener = request.getfixturevalue(quantizer), Listener()
    bundle = workshop.build(tmp_path / "b", listener, source=str(source), precision="int8", calibration=None)
    assert "taking the graph as it is" in listener.said
    assert bundle.manifest.engine.int8_coverage == 1.0
    record = bundle.manifest.quantization
    assert record is not None
    assert (record.calibration, record.images, record.images_sha256, record.plan) == (None, 0, None, ())
    assert (record.reached, record.agreement) == (True, None)


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"precision": "fp16"}, "holds Q/DQ nodes: it is no fp16 graph", "--precision int8"),
        ({"precision": "fp32"}, "holds Q/DQ nodes: it is no fp32 graph", "--precision int8"),
        (
            {"precision": "fp32", "runtime": "openvino", "compute_capability": None},
            "holds Q/DQ nodes: it is no fp32 graph",
            "--precision int8",
        ),
    ],
)
def test_a_graph_that_came_quantized_is_nothing_else(
    workshop: Workshop, own_qdq: Path, tmp_path: Path, *, changes: dict[str, Any], message: str, hint: str
) -> None:
    output = tmp_path / "b"
    settings = {"source": str(own_qdq), **changes}
    assert hint in left_nothing(output, UsageError, lambda: workshop.build(output, **settings), message)


def test_int8_ranges_have_to_come_from_somewhere(workshop: Workshop, tmp_path: Path) -> None:
    output = tmp_path / "b"
    hint = left_nothing(
        output,
        UsageError,
        lambda: workshop.build(output, precision="int8", calibration=None),
        "int8 needs images to measure ranges on",
    )
    assert "--calibration DIR" in hint


def test_an_int8_engine_that_hardly_computes_in_int8_is_refused(
    workshop: Workshop, builder: CountingBuilder, tmp_path: Path
) -> None:
    """The compiler, a stand-in, has left nearly all of it in fp16."""
    output = tmp_path / "b"
    left_nothing(
        output,
        EngineError,
        lambda: workshop.build(output, precision="int8", cache=tmp_path / "cache"),
        r"\d\d% of the linear layers' arithmetic is in int8 in the graph and only 0% in the engine that was built",
    )
    assert builder.built == 1


@pytest.mark.parametrize(("share", "refused"), [(1.0, True), (0.61, True), (0.6, False), (0.3, False), (0.0, False)])
def test_an_engine_has_half_of_what_its_graph_has(tmp_path: Path, share: float, *, refused: bool) -> None:
    """Three parts of ten run in INT8."""
    layers = [EngineLayer("a", "gemm", ("fc1",), ("int8", "int8")), EngineLayer("b", "gemm", ("fc2",), ("fp16",))]
    prepared = Prepared(tmp_path / "g.onnx", 0, {"fc1": 3, "fc2": 7}, share, None)
    if not refused:
        tensorrt.refuse_other_precision(layers, prepared, "int8")
        return
    message = f"{share:.0%} of the linear layers' arithmetic is in int8 in the graph and only 30% in the engine"
    with pytest.raises(EngineError, match=message) as caught:
        tensorrt.refuse_other_precision(layers, prepared, "int8")
    assert "another --precision" in caught.value.hint


def test_a_graph_that_came_quantized_in_its_head_alone_is_built(
    workshop: Workshop, vit_onnx: Path, pixels: np.ndarray, tmp_path: Path
) -> None:
    model = ir.load(vit_onnx)
    statistics = measure(model, [pixels], images=len(pixels))
    *_, head = groups(linear_layers(model))
    place(model, [solve(head, statistics, Numbers("int8", "int8"), PLAIN)])
    ir.save(model, tmp_path / "head.onnx")
    source = str(tmp_path / "head.onnx")
    engine = workshop.build(tmp_path / "b", source=source, precision="int8", calibration=None).manifest.engine
    assert 0 < engine.int8_coverage < 0.01


def test_an_operator_that_tensorrt_lacks_leaves_nothing(workshop: Workshop, vit_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(vit_onnx)
    name = model.graph.output[0].name
    next(node for node in model.graph.node if node.output[0] == name).output[0] = "before"
    nodes = [
        onnx.helper.make_node("Cast", ["before"], ["whole"], name="cast_1", to=onnx.TensorProto.UINT32),
        onnx.helper.make_node("BitShift", ["whole", "whole"], ["shifted"], name="shift_1", direction="LEFT"),
        onnx.helper.make_node("Cast", ["shifted"], [name], name="cast_2", to=onnx.TensorProto.FLOAT),
    ]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "odd.onnx")
    output, before = tmp_path / "b", sorted((workshop.cache / "plans").iterdir())
    left_nothing(
        output,
        EngineError,
        lambda: workshop.build(output, source=str(tmp_path / "odd.onnx"), precision="fp16"),
        "TensorRT for RTX .* cannot read the graph: Cast node cast_1: .*Unsupported data type",
    )
    assert sorted((workshop.cache / "plans").iterdir()) == before


def test_a_full_disk_leaves_nothing(
    built: Built, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built("fp16")
    output = tmp_path / "b"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    hint = left_nothing(
        output, OutputError, lambda: workshop.build(output, precision="fp16"), "cannot write a bundle to .*No space"
    )
    assert "-o" in hint


def test_an_engine_whose_graph_disagrees_leaves_nothing(
    built: Built, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built("fp16")
    output = tmp_path / "b"
    monkeypatch.setattr(verify, "compare_logits", lambda *_: Comparison(8, 0.5, 0.9, 0.8, 1.0))
    message = r"the fp16 graph disagrees with fp32: cosine 0\.90000, not 0\.999"
    left_nothing(output, EngineError, lambda: workshop.build(output, precision="fp16"), message)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_fixed_batch_is_built_as_it_is(workshop: Workshop, vit_onnx: Path, tmp_path: Path, precision: str) -> None:
    model = onnx.load(vit_onnx)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 12  # more than the 8 calibration images
    onnx.save(model, tmp_path / "m.onnx")
    settings: dict[str, Any] = {"source": str(tmp_path / "m.onnx"), "precision": precision, "batch": None}
    bundle = workshop.build(tmp_path / "b", **settings)
    assert str(bundle.manifest.batch) == "12,12,12"
    assert bundle.manifest.engine.fused_attention == 2
    assert bundle.manifest.engine.against_fp32 is not None
    assert bundle.manifest.engine.against_fp32.cosine > 0.999


class LoadedEngine(TensorRtRuntime):
    """An engine on a GPU, as far as a build asks it anything."""

    def __init__(self) -> None:
        pass

    def layer_information(self) -> str:
        gemm = {"Name": "fc1", "LayerType": "CaskGemm", "Inputs": [{"Dimensions": [4, 64], "Format/Datatype": "Half"}]}
        return json.dumps({"Layers": [gemm, gemm]})


@pytest.mark.parametrize(("capability", "runs"), [("8.9", True), ("9.0", False)])
def test_with_such_a_gpu_the_engine_itself_is_run(
    built: Built,
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    capability: str,
    runs: bool,
) -> None:
    built("fp16")
    monkeypatch.setattr(driver, "gpus", lambda: [Gpu("NVIDIA L4", capability, 1)])
    verdict = Verdict("engine", "fp16", Comparison(8, 1.0, 1.0, 1.0, 0.0))
    monkeypatch.setattr(tensorrt, "verify_engine", lambda *_: (verdict, LoadedEngine()))
    engine = workshop.build(tmp_path / "b", precision="fp16").manifest.engine
    assert engine.against_fp32 is not None
    assert engine.against_fp32.measured_on == ("engine" if runs else "graph")
    assert ("CaskGemm" in engine.kinds) == runs


def environment(workshop: Workshop) -> dict[str, str]:
    return {"TRT_VIT_CACHE": str(workshop.cache), "TRT_VIT_LANES": "1"}


def arguments(workshop: Workshop, output: Path) -> list[str]:
    settings = ["--runtime", "tensorrt-rtx", "--compute-capability", "8.9", "--precision", "fp16", "--batch", "1,4,8"]
    return ["build-engine", str(workshop.onnx), "-o", str(output), *settings]


def test_the_command_line_builds_and_describes(
    built: Built,
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = built("fp16")
    for name, value in environment(workshop).items():
        monkeypatch.setenv(name, value)
    assert run([*arguments(workshop, tmp_path / "b"), "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["engine_layers"], document["fused_attention"]) == (first.manifest.engine.layers, 2)
    assert "was built before" in captured.err


_SLOW_STEPS = """
import sys, time
from trt_vit.cli import main
from trt_vit.engine.progress import Lines

def step(self, name, number):
    print("step", file=sys.stderr, flush=True)
    time.sleep(0.1)

Lines.step = step
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_build_and_leaves_nothing(
    workshop: Workshop, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    variables = os.environ | environment(workshop) | {"TRT_VIT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", _SLOW_STEPS, *arguments(workshop, tmp_path / "out" / "b")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line.strip())
            if said[-1] == "step":
                process.send_signal(number)
                break
        said += process.stderr.read().splitlines()
    assert process.returncode == code
    assert "Traceback" not in "\n".join(said)
    assert [line for line in said if line.startswith("error: ")]
    assert said.count("step") < 20
    assert [path for path in tmp_path.rglob("*") if path.name not in {"out", "cache", "plans"}] == []


def test_plans_lie_where_only_their_owner_reads(built: Built, workshop: Workshop) -> None:
    built("fp16")
    plans = workshop.cache / "plans"
    assert plans.stat().st_mode & 0o077 == 0
    assert all(PlanCache(plans).get(entry.name) is not None for entry in plans.iterdir())
