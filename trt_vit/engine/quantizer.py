"""What quantizes a graph on the way to its engine: calibration, kept for the next time, and the plan made from it."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

import trt_vit
from trt_vit.caches import FileCache, digest_of
from trt_vit.engine.progress import Steps
from trt_vit.quantize.calibrate import calibrate, holds_back
from trt_vit.quantize.calibration import read_batches
from trt_vit.quantize.plan import quantize

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx_ir as ir

    from trt_vit.checkpoint.export import Export
    from trt_vit.engine.progress import BuildProgress
    from trt_vit.quantize.calibration import CalibrationSet
    from trt_vit.quantize.plan import Quantization, Wish

_CALIBRATIONS = "calibrations"
_LIMIT_BYTES = 4 * 2**30
"""Calibrations above this, the longest unused first, are removed when another is stored."""


def quantizer(
    export: Export, chosen: CalibrationSet, wish: Wish, *, cache: Path, progress: BuildProgress
) -> Callable[[ir.Model], Quantization]:
    """Return a function that calibrates a rewritten graph and quantizes it, in place.

    Args:
        export: Where the graph comes from.
        chosen: The calibration images.
        wish: What the graph is to be.
        cache: Directory of what was measured before.
        progress: Who to tell.
    """
    facts = {
        "trt_vit": trt_vit.__version__,
        "graph": digest_of(export.path),
        "images": chosen.sha256,
        "preprocessing": export.preprocessing.model_dump(mode="json"),
        "onnxruntime": importlib.metadata.version("onnxruntime"),
    }

    def run(model: ir.Model) -> Quantization:
        steps = Steps(progress)
        if not holds_back(len(chosen.paths)):
            few = f"{len(chosen.paths)} calibration images are too few to hold any back"
            progress.phase(f"warning: {few}: agreement is measured on the images that ranges come from")
        calibration = calibrate(
            model,
            chosen.paths,
            lambda paths: read_batches(paths, export.preprocessing, export.image_size, batch=export.batch),
            cache=FileCache(cache / _CALIBRATIONS, _LIMIT_BYTES),
            facts=facts,
            tell=steps,
        )
        result = quantize(model, calibration, wish, steps)
        steps.finish()
        _report(result, wish.least_agreement, progress)
        return result

    return run


def _report(result: Quantization, least: float, progress: BuildProgress) -> None:
    kept = [placement for placement in result.placements if placement.left_out is None]
    share = sum(p.macs for p in kept) / sum(p.macs for p in result.placements)
    progress.phase(f"quantized {len(kept)} of {len(result.placements)} linear layers, {share:.1%} of their arithmetic")
    if result.score is None:
        return
    images = f"{result.score.agreement:.1%} of {result.score.images} held-back images"
    progress.phase(f"the top-1 is that of fp32 on {images} (expected: {result.score.expected:.1%})")
    if not result.reached:
        progress.phase(f"warning: that is short of --min-agreement {least:g}, and no plan that was tried comes closer")
