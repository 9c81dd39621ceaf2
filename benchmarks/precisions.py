"""Accuracy beside speed, by precision: the bundled checkpoint's engines evaluated and profiled on this machine.

    python benchmarks/precisions.py --data cifar10/test --calibration cifar10/train --output FILE.json
    python benchmarks/precisions.py --table FILE.json

The first builds an engine in each precision that OpenVINO has on a CPU, evaluates all of them over one pass, and
profiles each twice: the engine alone, and from files to rows. Beside them it runs the checkpoint in a few lines of
transformers and numpy, and says how many images each has right. The second prints the README's table of what the first
has written.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers import ViTForImageClassification, ViTImageProcessorPil

from trt_vit.engine.build import build
from trt_vit.engine.progress import Quiet
from trt_vit.evaluate.evaluate import evaluate_bundles
from trt_vit.profile.machine import environment
from trt_vit.profile.sweep import Sweep, profile_bundle
from trt_vit.settings import BuildSettings

if TYPE_CHECKING:
    from trt_vit.engine.manifest import Precision

CHECKPOINT = Path(__file__).parents[1] / "examples" / "vit-cifar10"
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
SECONDS = 20.0
BATCH = 8


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="directory of test images, a folder for each class")
    parser.add_argument("--calibration", type=Path, help="directory of images to calibrate on")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--table", type=Path, metavar="FILE.json", help="print the table of a file that was written")
    arguments = parser.parse_args()
    if arguments.table is not None:
        print(table_of(json.loads(arguments.table.read_text(encoding="utf-8"))))
        return
    results = measure(arguments.data, arguments.calibration)
    print(table_of(results))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def measure(data: Path, calibration: Path) -> dict[str, Any]:
    """Build, evaluate and profile an engine in each precision."""
    with tempfile.TemporaryDirectory() as name:
        places = [Path(name, precision) for precision in PRECISIONS]
        for precision, place in zip(PRECISIONS, places, strict=True):
            images = calibration if precision == "int8" else None
            settings = BuildSettings(
                source=str(CHECKPOINT), output=place, precision=precision, runtime="openvino", calibration=images
            )
            build(settings, Quiet())
        scores = evaluate_bundles(places, data, None, None, lambda _done, _of: None)
        sweep = Sweep([BATCH], [], SECONDS)
        rows = []
        for place, score in zip(places, scores.engines, strict=True):
            alone = profile_bundle(place, None, sweep, lambda _done, _of: None).best
            whole = profile_bundle(place, str(data), sweep, lambda _done, _of: None).best
            kept = ("precision", "runs_in", "images", "failed", "top1", "top5", "top1_ci95", "agreement", "mean_cosine")
            row = {key: value for key, value in asdict(score).items() if key in kept}
            rows.append(row | {"engine": rates(alone), "pipeline": rates(whole)})
    peer = hugging_face(data)
    for key in ("top1", "top5"):
        ours, theirs = (round(found[key] * found["images"]) for found in (rows[0], peer))
        print(f"{key}: {ours} images of {peer['images']} in fp32, {theirs} by transformers", flush=True)
    found = {"environment": environment(), "checkpoint": "examples/vit-cifar10", "rows": rows}
    return found | {"transformers": peer}


def hugging_face(data: Path) -> dict[str, Any]:
    """Score the checkpoint in torch on the same images, in batches of the same size, and time it from files to classes.

    It takes a batch for warm-up, as torch compiles its kernels with the first.
    """
    processor = ViTImageProcessorPil.from_pretrained(CHECKPOINT)
    model = ViTForImageClassification.from_pretrained(CHECKPOINT).eval()
    files = sorted(data.rglob("*.jpg"))
    targets = np.array([model.config.label2id[file.parent.name] for file in files])

    def logits_of(batch: list[Path]) -> np.ndarray:
        images = [Image.open(file).convert("RGB") for file in batch]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            logits: np.ndarray = model(pixel_values=pixels).logits.numpy()
        return logits

    logits_of(files[:BATCH])
    started = time.perf_counter()
    logits = np.concatenate([logits_of(files[first : first + BATCH]) for first in range(0, len(files), BATCH)])
    seconds = time.perf_counter() - started
    right = np.argsort(-logits, axis=1, kind="stable") == targets[:, np.newaxis]
    top1, top5 = (float(right[:, :k].any(axis=1).mean()) for k in (1, 5))
    return {"images": len(files), "top1": top1, "top5": top5, "images_per_second": len(files) / seconds}


def rates(point: Any) -> dict[str, Any]:
    """Return what of a measured point goes into the table."""
    return {
        "batch_size": point.batch_size,
        "lanes": point.lanes,
        "throughput": asdict(point.throughput),
        "latency": asdict(point.latency),
    }


def table_of(results: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    machine = results["environment"]
    batch = results["rows"][0]["engine"]["batch_size"]
    images = f"{results['checkpoint']} on {results['rows'][0]['images']} test images"
    cores = f"{machine['cores']} cores of {machine['processor']}, OpenVINO {machine['packages']['openvino']}"
    names = ["precision", "top-1", "95 % interval", "top-5", "agreement"]
    names += ["engine, images/s", "p95, ms", "files to rows, images/s"]
    lines = [f"{images}; {cores}, batches of {batch}.", "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in results["rows"]:
        low, high = row["top1_ci95"]
        engine, whole = row["engine"], row["pipeline"]
        name = row["precision"] + (f" (in {row['runs_in']})" if row["runs_in"] != row["precision"] else "")
        cells = [
            name,
            f"{row['top1']:.2%}",
            f"{low:.2%} to {high:.2%}",
            f"{row['top5']:.2%}",
            f"{row['agreement']:.2%}",
            rate(engine["throughput"]),
            f"{engine['latency']['p95']:.1f}",
            rate(whole["throughput"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    peer = results["transformers"]
    cells = ["fp32, transformers and torch", f"{peer['top1']:.2%}", "", f"{peer['top5']:.2%}", "", "", ""]
    lines.append(f"| {' | '.join([*cells, format(peer['images_per_second'], '.0f')])} |")
    return "\n".join(lines)


def rate(throughput: dict[str, Any]) -> str:
    """Return images a second with their noise, and a mark where they are not stable."""
    mark = "" if throughput["stable"] else " (not stable)"
    return f"{throughput['mean']:.0f} ± {throughput['mean'] * throughput['noise']:.0f}{mark}"


if __name__ == "__main__":
    main()
