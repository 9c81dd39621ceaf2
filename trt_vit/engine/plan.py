"""ONNX to a TensorRT plan, in TensorRT 10 and 11 and TensorRT for RTX alike.

Precision lives in the graph (networks are strongly typed), so a build here only chooses kernels. For each of the lanes
that will run side by side the plan gets an optimization profile of its own, as every version allows. Since TensorRT 10
contexts may share one, which a run with more lanes than that relies on.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_vit.cuda import driver
from trt_vit.engine.layers import first_profile, layers_from_log, weights_bytes_from_log
from trt_vit.errors import EngineError, EnvironmentFault
from trt_vit.runtime.tensorrt_family import create_log, last_error, target_capability

if TYPE_CHECKING:
    from pathlib import Path

    import tensorrt as trt

    from trt_vit.engine.layers import EngineLayer
    from trt_vit.engine.manifest import BatchProfile, TargetRecord
    from trt_vit.engine.progress import BuildProgress
    from trt_vit.engine.timing_cache import TimingCache
    from trt_vit.runtime.tensorrt_family import Family, Log

_ELSEWHERE = "--runtime tensorrt-rtx builds without a GPU"
_EXPORT_LIKE_THIS = "export the model with standard operators"
_QUANTIZE_LIKE_THIS = "quantize to signed 8 bits with zero points of 0, and nothing but MatMul, Gemm and Conv"
_GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """A built engine.

    Attributes:
        data: The serialized engine.
        layers: Its layers for one lane, as the builder lists them.
        weights_bytes: Bytes of weights in it.
    """

    data: bytes
    layers: list[EngineLayer]
    weights_bytes: int


def refuse_unbuildable(family: Family) -> None:
    """Refuse a build that the machine cannot do, before anything slow is begun.

    Raises:
        EnvironmentFault: TensorRT needs a GPU and there is none.
    """
    if family.name == "tensorrt" and not driver.gpus():
        message = f"{family.title} builds only on the GPU that the engine is for, and this machine has none"
        raise EnvironmentFault(message, hint=f"build on such a machine; {_ELSEWHERE}")


def build_plan(
    family: Family,
    onnx: Path,
    *,
    batch: BatchProfile,
    target: TargetRecord,
    progress: BuildProgress,
    timing_cache: TimingCache | None,
) -> Plan:
    """Build a plan from an ONNX file whose only dynamic size is the batch.

    An interrupt (KeyboardInterrupt in the calling thread) stops the build at its next step.

    Args:
        family: Who builds.
        onnx: The graph, with the precisions that the engine is to have. External weights lie beside it.
        batch: Batch sizes of every profile.
        target: What to build for, and how.
        progress: Who to tell about the build's phases.
        timing_cache: What earlier builds on this GPU measured; None for TensorRT for RTX, which measures nothing and
            with a timing cache would want a GPU.

    Raises:
        EngineError: TensorRT cannot parse or build it; the message is TensorRT's own.
        UsageError: The target is unknown to this TensorRT.
    """
    log = create_log(family)
    job = _parse(family, log, onnx)
    _configure(family, job, batch=batch, target=target)
    if timing_cache is not None:
        timing_cache.give(job.config)
    data = _build(job, _Monitor(family, progress))
    if data is None:
        raise EngineError(
            f"{family.title} cannot build the engine: {last_error(log, 'it gives no reason')}",
            hint=_build_hint(log),
        )
    if timing_cache is not None:
        timing_cache.take(job.config)
    return Plan(data, first_profile(layers_from_log(log.notes), target.lanes), weights_bytes_from_log(log.notes))


def _build_hint(log: Log) -> str:
    said = " ".join(log.errors).lower()
    if "memory" in said or "workspace" in said:
        return "try a smaller --batch, or a larger workspace_gib"
    if "quantiz" in said or "zero point" in said:
        return _QUANTIZE_LIKE_THIS
    return "try fp16, another --compute-capability or another version of TensorRT"


@dataclass(frozen=True)
class _Job:
    """What a build works on. The parser owns the network's weights, so it has to live as long."""

    builder: trt.Builder
    network: trt.INetworkDefinition
    parser: trt.OnnxParser
    config: trt.IBuilderConfig


def _parse(family: Family, log: Log, onnx: Path) -> _Job:
    """Read the ONNX file into a strongly typed network."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = family.bindings
    builder = trt.Builder(log.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(onnx)):
        raise EngineError(
            f"{family.title} cannot read the graph: {_parser_error(parser, log)}",
            hint=_QUANTIZE_LIKE_THIS if "zero point" in " ".join(log.errors).lower() else _EXPORT_LIKE_THIS,
        )
    return _Job(builder, network, parser, builder.create_builder_config())


def _parser_error(parser: trt.OnnxParser, log: Log) -> str:
    """Return the parser's first error on one line: what is wrong and at which node."""
    if parser.num_errors == 0:
        return last_error(log, "the parser gives no reason")
    error = parser.get_error(0)
    reason = " ".join(str(error.desc()).split())
    return f"{error.node_operator()} node {error.node_name()}: {reason}" if error.node_operator() else reason


def _configure(family: Family, job: _Job, *, batch: BatchProfile, target: TargetRecord) -> None:
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = family.bindings
    config = job.config
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is fp32: TF32 keeps 10 bits of a mantissa's 23
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the list of layers is what the checks are made on
    if target.workspace_gib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, round(target.workspace_gib * _GIB))
    if target.optimization_level is not None:
        config.builder_optimization_level = target.optimization_level
    if target.aux_streams is not None:
        config.max_aux_streams = target.aux_streams
    if target.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)  # host code, which is never loaded from a plan
    if target.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if target.compute_capability is not None:
        target_capability(family, config, target.compute_capability)
    image = job.network.get_input(0)
    sizes = tuple(image.shape)[1:]
    for _ in range(target.lanes):
        profile = job.builder.create_optimization_profile()
        profile.set_shape(image.name, (batch.min, *sizes), (batch.opt, *sizes), (batch.max, *sizes))
        if config.add_optimization_profile(profile) < 0:
            message = f"{family.title} refuses the batch profile {batch} for images of shape {sizes}"
            raise EngineError(message, hint="choose another --batch MIN,OPT,MAX")


def _build(job: _Job, monitor: _Monitor) -> bytes | None:
    """Build in a thread of its own, so that an interrupt reaches this one at once; it stops the build and waits.

    The wait is for as long as the step under way takes, and no further interrupt ends it: TensorRT would go on working
    on objects that are gone.
    """
    job.config.progress_monitor = monitor.watcher
    may_begin = threading.Event()

    def build() -> trt.IHostMemory | None:
        may_begin.wait()
        if monitor.cancelled.is_set():
            return None
        return job.builder.build_serialized_network(job.network, job.config)

    with ThreadPoolExecutor(1, thread_name_prefix="tensorrt-build") as thread:
        building = None
        try:
            building = thread.submit(build)
            may_begin.set()  # not before: a thread that is interrupted while it is started is not waited for
            plan = building.result()
        finally:
            monitor.cancelled.set()  # nothing is left to stop, unless waiting was interrupted
            may_begin.set()
            while building is not None and not building.done():
                with suppress(KeyboardInterrupt):
                    wait([building])
    return None if plan is None else bytes(plan)


class _Monitor:
    """Passes TensorRT's progress on, and stops the build when it is told to.

    Attributes:
        watcher: What TensorRT calls.
        cancelled: Set it to stop the build at its next step.
    """

    def __init__(self, family: Family, progress: BuildProgress) -> None:
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = family.bindings
        cancelled = threading.Event()

        class Watcher(trt.IProgressMonitor):  # type: ignore[misc]  # Any where the bindings are not installed
            def __init__(self) -> None:
                super().__init__()

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                progress.start(phase_name, parent_phase, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                progress.step(phase_name, step)
                return not cancelled.is_set()

            def phase_finish(self, phase_name: str) -> None:
                progress.finish(phase_name)

        self.cancelled = cancelled
        self.watcher: trt.IProgressMonitor = Watcher()
