"""Which plans of TensorRT for RTX load and run on this machine's GPU, whatever NVIDIA lists.

    python benchmarks/rtx_plans_here.py [--output FILE.json]

The bundled checkpoint is built in fp16 for every GPU generation that TensorRT for RTX can build for, and for none in
particular; each plan is then loaded and run here, and its logits are held against ONNX Runtime's in fp32 on the sample
images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_vit.engine.build import build
from trt_vit.engine.compare import compare_logits
from trt_vit.engine.manifest import BatchProfile
from trt_vit.engine.progress import Quiet
from trt_vit.errors import TrtVitError
from trt_vit.images.source import list_images
from trt_vit.profile.machine import environment
from trt_vit.quantize.calibration import read_batches
from trt_vit.runtime.onnxruntime import OnnxRuntimeRuntime
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.runtime.tensorrt import TensorRtRuntime
from trt_vit.runtime.tensorrt_family import compute_capabilities, load_family
from trt_vit.settings import BuildSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trt_vit.engine.bundle import Bundle
    from trt_vit.engine.manifest import Precision

CHECKPOINT = Path(__file__).parents[1] / "examples" / "vit-cifar10"
BATCH = 8


def main() -> None:
    """Build, load and run each plan, and print what happened."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    family = load_family("tensorrt-rtx")
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        reference = build_bundle(work / "reference", "fp32", None)
        images = sample_images(reference)
        expected = logits(OnnxRuntimeRuntime(reference.engine_files(), RuntimeOptions(batch_size=BATCH)), images)
        for capability in (None, *compute_capabilities(family)):
            bundle = build_bundle(work / f"plan-{capability}", "fp16", capability)
            outcomes.append({"built_for": capability or "any", **outcome(bundle, images, expected)})
            print(json.dumps(outcomes[-1]), flush=True)
    if arguments.output is not None:
        result = {"environment": environment(), "tensorrt": family.title, "plans": outcomes}
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def build_bundle(path: Path, precision: Precision, capability: str | None) -> Bundle:
    """Build the bundled checkpoint: in fp32 for ONNX Runtime, else for TensorRT for RTX."""
    settings = BuildSettings(
        source=str(CHECKPOINT),
        output=path,
        precision=precision,
        runtime="onnxruntime" if precision == "fp32" else "tensorrt-rtx",
        compute_capability=capability,
        batch=BatchProfile(min=1, opt=BATCH, max=BATCH),
        lanes=1,
        cache=path.with_name("cache"),
    )
    return build(settings, Quiet())


def sample_images(bundle: Bundle) -> NDArray[np.float32]:
    """Return the sample images, preprocessed, as many as fill whole batches."""
    model = bundle.manifest.model
    paths = list_images([str(CHECKPOINT / "samples")])
    return np.concatenate(list(read_batches(paths, bundle.preprocessing(), (model.height, model.width))))


def outcome(bundle: Bundle, images: NDArray[np.float32], expected: NDArray[np.float32]) -> dict[str, Any]:
    """Load and run one plan, and tell what happened, in TensorRT's own words where it fails."""
    try:
        runtime = TensorRtRuntime(bundle.engine_files(), RuntimeOptions(batch_size=BATCH), "tensorrt-rtx")
        comparison = compare_logits(logits(runtime, images), expected)
    except TrtVitError as error:
        return {"runs": False, "error": str(error)}
    return {"runs": True, "cosine": comparison.cosine, "agreement": comparison.agreement}


def logits(runtime: OnnxRuntimeRuntime | TensorRtRuntime, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits of all images, a batch at a time."""
    starts = range(0, len(images), BATCH)
    return np.concatenate([runtime.lanes[0].infer(images[start : start + BATCH]) for start in starts])


if __name__ == "__main__":
    main()
