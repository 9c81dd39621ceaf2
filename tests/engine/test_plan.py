from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from tests.engine.conftest import BATCH
from trt_vit.cuda import driver
from trt_vit.cuda.driver import Gpu
from trt_vit.engine import plan as plans
from trt_vit.engine.manifest import BatchProfile, TargetRecord
from trt_vit.engine.plan import build_plan, refuse_unbuildable
from trt_vit.engine.progress import Quiet
from trt_vit.errors import EngineError, EnvironmentFault, UsageError
from trt_vit.runtime.tensorrt_family import Family

if TYPE_CHECKING:
    from pathlib import Path

    from trt_vit.engine.plan import Plan


class Recorder(Quiet):
    def __init__(self) -> None:
        self.phases: dict[str, str | None] = {}
        self.steps = 0
        self.under_way: list[str] = []

    def start(self, name: str, parent: str | None, steps: int) -> None:
        assert steps >= 0
        self.phases[name] = parent
        self.under_way.append(name)

    def step(self, name: str, step: int) -> None:
        assert name in self.under_way
        self.steps += 1

    def finish(self, name: str) -> None:
        self.under_way.remove(name)


class TimingCacheSpy:
    """What a build does with its timing cache, and when."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def give(self, config: Any) -> None:
        assert config.num_optimization_profiles == 1  # all else is set by then
        self.calls.append("give")

    def take(self, _config: Any) -> None:
        self.calls.append("take")


def build(family: Family, onnx_file: Path, progress: Quiet | None = None, spy: Any = None, **target: Any) -> Plan:
    record = TargetRecord(**({"compute_capability": "8.9"} | target))
    return build_plan(family, onnx_file, batch=BATCH, target=record, progress=progress or Quiet(), timing_cache=spy)


@pytest.fixture(scope="module")
def plan(rtx: Family, vit_onnx: Path) -> Plan:
    return build(rtx, vit_onnx)


def test_the_progress_is_passed_on(rtx: Family, vit_onnx: Path) -> None:
    recorder, spy = Recorder(), TimingCacheSpy()
    built = build(rtx, vit_onnx, recorder, spy)
    assert len(built.data) > built.weights_bytes
    assert recorder.phases["Building engine"] is None
    assert "Building engine" in recorder.phases.values()
    assert recorder.steps > 20
    assert recorder.under_way == []
    assert spy.calls == ["give", "take"]


def test_lanes_cost_no_layers_but_a_profile_each(rtx: Family, vit_onnx: Path, plan: Plan) -> None:
    two = build(rtx, vit_onnx, lanes=2)
    assert [layer.kind for layer in two.layers] == [layer.kind for layer in plan.layers]
    assert two.weights_bytes == plan.weights_bytes
    assert len(two.data) > len(plan.data)


def test_an_engine_is_for_every_gpu_from_ampere_on_where_none_is_named(rtx: Family, vit_onnx: Path, plan: Plan) -> None:
    every = build(rtx, vit_onnx, compute_capability=None)
    assert len(every.layers) == len(plan.layers)


def test_all_settings_are_taken(rtx: Family, vit_onnx: Path, plan: Plan) -> None:
    settings: dict[str, Any] = {"workspace_gib": 0.5, "optimization_level": 1, "aux_streams": 0}
    built = build(rtx, vit_onnx, version_compatible=True, hardware_compatible=True, **settings)
    assert built.weights_bytes == plan.weights_bytes
    assert not {"signal", "wait"} & {layer.kind for layer in built.layers}  # of one stream for another


def test_what_cannot_be_built_is_said_in_tensorrts_words(rtx: Family, vit_onnx: Path) -> None:
    spy = TimingCacheSpy()
    with pytest.raises(EngineError, match=r"TensorRT for RTX .* cannot build the engine: .*workspace") as caught:
        build(rtx, vit_onnx, spy=spy, workspace_gib=1e-5)
    assert "workspace_gib" in caught.value.hint
    assert "\n" not in caught.value.message
    assert spy.calls == ["give"]


def test_an_unknown_capability_is_refused(rtx: Family, vit_onnx: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot build for compute capability 9\.0"):
        build(rtx, vit_onnx, compute_capability="9.0")


def test_an_operator_that_tensorrt_lacks_is_named_with_its_node(rtx: Family, vit_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(vit_onnx)
    name = model.graph.output[0].name
    next(node for node in model.graph.node if node.output[0] == name).output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Frobnicate", ["before"], [name], name="frob_1", domain="my.ops"))
    model.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(
        EngineError, match=r"cannot read the graph: Frobnicate node frob_1: .*Plugin not found"
    ) as caught:
        build(rtx, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"no graph", None])
def test_what_is_no_graph_is_refused(rtx: Family, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(EngineError, match="cannot read the graph"):
        build(rtx, tmp_path / "m.onnx")


def test_a_profile_that_a_fixed_batch_does_not_fit_is_refused(rtx: Family, vit_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(vit_onnx)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(
        EngineError, match=r"static dimensions .*\[3,3,32,32\] but profile dimensions are \[1,3,32,32\]"
    ):
        build(rtx, tmp_path / "m.onnx")
    batch = BatchProfile(min=3, opt=3, max=3)
    target = TargetRecord(compute_capability="8.9")
    plan = build_plan(rtx, tmp_path / "m.onnx", batch=batch, target=target, progress=Quiet(), timing_cache=None)
    assert "shape_call" not in {layer.kind for layer in plan.layers}


class Sleeper(Quiet):
    """Counts the steps, and sleeps in the first: time for the main thread to say that the build is to stop."""

    def __init__(self) -> None:
        self.steps = 0
        self.begun = threading.Event()

    def step(self, name: str, step: int) -> None:
        self.steps += 1
        if not self.begun.is_set():
            self.begun.set()
            threading.Event().wait(1.0)


def test_an_interrupt_stops_the_build_at_its_next_step(
    rtx: Family, vit_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper, spy = Sleeper(), TimingCacheSpy()

    def interrupted(_future: object) -> None:  # a signal would hit the test runner if it came late
        sleeper.begun.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(rtx, vit_onnx, sleeper, spy)
    assert sleeper.steps <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tensorrt-build")]
    assert spy.calls == ["give"]


def test_more_interrupts_do_not_end_the_wait(
    rtx: Family, vit_onnx: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper, waits = Sleeper(), list[bool]()

    def interrupted(futures: list[Future[object]]) -> None:
        waits.append(futures[0].done())
        if len(waits) < 3:
            raise KeyboardInterrupt
        Future.exception(futures[0])

    def once(_future: object) -> None:
        sleeper.begun.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", once)
    monkeypatch.setattr(plans, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(rtx, vit_onnx, sleeper)
    assert waits == [False, False, False]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tensorrt-build")]


def test_an_interrupt_as_the_build_begins_stops_it_too(
    rtx: Family, vit_onnx: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, sleeper = ThreadPoolExecutor.submit, Sleeper()

    def interrupted(*arguments: Any) -> Any:
        submit(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(rtx, vit_onnx, sleeper)
    assert sleeper.steps <= 3


def test_only_tensorrt_itself_wants_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt = Family("tensorrt", ModuleType("tensorrt"), "11.4")
    monkeypatch.setattr(driver, "gpus", list)
    with pytest.raises(EnvironmentFault, match=r"TensorRT 11\.4 builds only on the GPU") as caught:
        refuse_unbuildable(tensorrt)
    assert "--runtime tensorrt-rtx" in caught.value.hint
    refuse_unbuildable(Family("tensorrt-rtx", ModuleType("tensorrt_rtx"), "1.7"))
    monkeypatch.setattr(driver, "gpus", lambda: [Gpu("NVIDIA L4", "8.9", 1)])
    refuse_unbuildable(tensorrt)
