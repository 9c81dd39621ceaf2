"""ONNX to a TensorRT engine, which then shows that it is what was asked for."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import trt_vit
from trt_vit.cuda import driver
from trt_vit.engine.layers import coverage, first_profile, layers_from_inspector, summarize
from trt_vit.engine.plan import build_plan
from trt_vit.engine.plan_cache import PlanCache, key_of
from trt_vit.engine.timing_cache import TimingCache
from trt_vit.engine.verify import Built, verify_engine, verify_graph
from trt_vit.errors import EngineError
from trt_vit.runtime.tensorrt import ENGINE, TensorRtRuntime
from trt_vit.runtime.tensorrt_family import OLDEST_PORTABLE, compute_capabilities

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from trt_vit.checkpoint.export import Export
    from trt_vit.cuda.driver import Gpu
    from trt_vit.engine.layers import EngineLayer
    from trt_vit.engine.manifest import BatchProfile, Precision, TargetRecord
    from trt_vit.engine.plan import Plan
    from trt_vit.engine.prepare import Prepared
    from trt_vit.engine.progress import BuildProgress
    from trt_vit.runtime.protocol import EngineFiles
    from trt_vit.runtime.tensorrt_family import Family

_PLANS = "plans"
_TIMINGS = "timings"
_LEAST_SHARE = 0.5
"""Part of what the graph has in the numbers an engine is named for that has to run in them. Less is a failure of the
compiler, not an engine of that precision."""


def write_engine(
    engine: EngineFiles,
    prepared: Prepared,
    export: Export,
    images: NDArray[np.float32],
    *,
    family: Family,
    target: TargetRecord,
    cache: Path,
    progress: BuildProgress,
) -> Built:
    """Build a plan, or take the one that was built before, write it, and check it.

    Args:
        engine: Where the engine goes and what it is to be.
        prepared: The graph to build from.
        export: The graph to compare with.
        images: What to compare on: preprocessed, float32 [n, 3, height, width].
        family: Who builds.
        target: What for, and how.
        cache: Directory of built plans and of TensorRT's measurements.
        progress: Who to tell.

    Raises:
        EngineError: TensorRT cannot build it, or what it built is not what was asked for.
        UsageError: This TensorRT cannot build for the target.
    """
    plan = _plan(engine.batch, prepared, family=family, target=target, cache=cache, progress=progress)
    refuse_other_precision(plan.layers, prepared, engine.precision)
    (engine.path / ENGINE).write_bytes(plan.data)
    layers = plan.layers
    verdict = None
    if any(_runs_on(gpu, family, target) for gpu in driver.gpus()[:1]):  # the one that a run takes
        progress.phase("comparing with the fp32 reference")
        verdict, loaded = verify_engine(family.name, engine, export, images)
        if isinstance(loaded, TensorRtRuntime):
            layers = first_profile(layers_from_inspector(loaded.layer_information()), target.lanes)
    elif export.quantized:
        progress.phase("warning: not compared with fp32: the graph came quantized, and there is no GPU for the engine")
    else:
        progress.phase("no GPU to run the engine on: comparing the graph it was built from with the fp32 reference")
        verdict = verify_graph(prepared.path, engine.precision, export, images)
    statistics = summarize(layers, plan.weights_bytes)
    if engine.precision != "fp32" and statistics.fused_attention < prepared.attentions:
        fused = f"{statistics.fused_attention} of {prepared.attentions} attentions"
        progress.phase(f"note: TensorRT has fused {fused}: the others are several kernels each")
    return Built(
        statistics=statistics,
        attentions=prepared.attentions,
        int8_coverage=coverage(layers, prepared.macs, "int8"),
        verdict=verdict,
    )


def _runs_on(gpu: Gpu, family: Family, target: TargetRecord) -> bool:
    """Tell whether a GPU is one that the engine is for."""
    if family.name == "tensorrt":
        return True
    if target.compute_capability is not None:
        return gpu.compute_capability == target.compute_capability
    return gpu.compute_capability in compute_capabilities(family) and float(gpu.compute_capability) >= OLDEST_PORTABLE


def refuse_other_precision(layers: list[EngineLayer], prepared: Prepared, precision: Precision) -> None:
    """Refuse an engine whose linear layers do not run in the numbers that were asked for.

    Raises:
        EngineError: They do not, by the engine's own list of layers.
    """
    share = coverage(layers, prepared.macs, precision)
    if share < _LEAST_SHARE * prepared.share:
        wanted = f"{prepared.share:.0%} of the linear layers' arithmetic is in {precision}"
        message = f"{wanted} in the graph and only {share:.0%} in the engine that was built"
        raise EngineError(message, hint="choose another --precision, or another version of TensorRT")


def _plan(
    batch: BatchProfile,
    prepared: Prepared,
    *,
    family: Family,
    target: TargetRecord,
    cache: Path,
    progress: BuildProgress,
) -> Plan:
    gpu = next(iter(driver.gpus()), None) if family.name == "tensorrt" else None
    facts = {
        "trt_vit": trt_vit.__version__,
        "family": family.name,
        "version": family.version,
        "batch": str(batch),
        "target": target.model_dump(),
        "gpu": None if gpu is None else asdict(gpu),
    }
    plans = PlanCache(cache / _PLANS)
    key = key_of(prepared.path, facts)
    if (plan := plans.get(key)) is not None:
        progress.phase(f"the {family.title} engine was built before: taken from {plans.directory}")
        return plan
    progress.phase(f"building the {family.title} engine")
    timings = None if gpu is None else TimingCache(cache / _TIMINGS, family, gpu)
    plan = build_plan(family, prepared.path, batch=batch, target=target, progress=progress, timing_cache=timings)
    plans.put(key, plan)
    return plan
