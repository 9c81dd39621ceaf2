"""A Ray cluster of one machine against the same run without it, on the same cores.

    python benchmarks/ray_data.py [--images DIR] [--rounds 3] [--output FILE.json]

Each contender is ``trt-vit classify`` as a process of its own, once on few images and once on many: what it takes
longer for the many is what the images cost, and the rest is the start (of Python, the engine, and Ray's workers; the
cluster itself is started before). Contenders run in turn within a round, so that a machine whose speed drifts slows
them alike; what is reported is the median over the rounds of the ratio within a round. Two models:

    vit-base       ViT-B/16 with random weights: the engine is what takes the time
    vit-shallow    two narrow layers, also at 224 x 224: decoding is, and pixels travel that are as large

This is not benchmarks/ray.py: Python would take that for Ray itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from photos import photos
from vit_base import write_checkpoint

from trt_vit.engine.build import build
from trt_vit.engine.progress import Quiet
from trt_vit.profile.machine import environment
from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.openvino import supports_bf16
from trt_vit.settings import BuildSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trt_vit.engine.bundle import Bundle
    from trt_vit.engine.manifest import Precision

PHOTOS = 250
SIZES = {"vit-base": (128, 384), "vit-shallow": (2048, 16384)}
"""Images of the short and of the long run."""
SHARDS = {"vit-base": 64, "vit-shallow": 1024}
"""Images a shard: 1,024 is what it is where nothing is said, 64 so few that the slow model's short run has two."""
TARGET = 0.85
SHALLOW = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 768}


def main() -> None:
    """Measure both models and print the table."""
    arguments = parse_arguments()
    ray.init("local", num_cpus=usable_cores(), include_dashboard=False, log_to_driver=False)
    address = ray.get_runtime_context().gcs_address
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        paths = photos(arguments.images, work, PHOTOS)
        models = {
            model: measure(bundle, inputs_of(bundle, paths, SIZES[model], work), address, arguments.rounds)
            for model, bundle in bundles(work).items()
        }
    table(models)
    results = {"environment": environment(), "ray": ray.__version__, "shard_images": SHARDS, "models": models}
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def table(models: Mapping[str, Any]) -> None:
    """Print the medians."""
    print(f"\n{'':<14}{'local, images/s':>17}{'Ray, images/s':>15}{'Ray / local':>13}{'lowest':>8}{'highest':>9}")
    for model, found in models.items():
        local, spread = (statistics.median(found["images_per_second"][name]) for name in ("local", "ray"))
        ratios = found["ratios"]
        middle = statistics.median(ratios)
        print(f"{model:<14}{local:>17.1f}{spread:>15.1f}{middle:>13.3f}{min(ratios):>8.3f}{max(ratios):>9.3f}")
    print(f"target: {TARGET}; load average over the last minutes: {os.getloadavg()[1]:.1f} on {usable_cores()} cores")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, help="directory of photos")
    parser.add_argument("--rounds", type=int, default=3, help="times each contender runs")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


def bundles(work: Path) -> dict[str, Bundle]:
    """Build the models for OpenVINO, in bf16 where the CPU has it."""
    precision: Precision = "bf16" if supports_bf16() else "fp32"
    found = {}
    for name, others in (("vit-base", {}), ("vit-shallow", SHALLOW)):
        source = write_checkpoint(work / name, **others)
        output = work / f"{name}.bundle"
        settings = BuildSettings(source=str(source), output=output, precision=precision, runtime="openvino")
        found[name] = build(settings, Quiet())
    return found


def inputs_of(bundle: Bundle, paths: Sequence[str], sizes: tuple[int, int], work: Path) -> dict[int, Path]:
    """Return the directories that a model's runs are on, by their number of images."""
    return {size: many(paths, size, work / f"{bundle.path.stem}-{size}") for size in sizes}


def measure(bundle: Bundle, inputs: Mapping[int, Path], address: str, rounds: int) -> dict[str, Any]:
    """Run both contenders once a round, and return images per second, the ratios, and seconds to start."""
    few, all_ = sorted(inputs)
    contenders = {"local": [], "ray": ["--distributed", "ray", "--ray-address", address]}
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    starts: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, flags in contenders.items():
            short, long = (run(bundle, inputs[size], flags) for size in (few, all_))
            each = (long - short) / (all_ - few)
            rates[name].append(1 / each)
            starts[name].append(short - few * each)
        print(
            f"{bundle.path.stem}, round {number + 1}: "
            + ", ".join(
                f"{name} {rate[-1]:.1f} images/s after {starts[name][-1]:.1f} s" for name, rate in rates.items()
            ),
            flush=True,
        )
    ratios = [spread / local for spread, local in zip(rates["ray"], rates["local"], strict=True)]
    return {"images": [few, all_], "images_per_second": rates, "start_seconds": starts, "ratios": ratios}


def many(paths: Sequence[str], count: int, directory: Path) -> Path:
    """Return a directory that has the photos so often that there are ``count``."""
    directory.mkdir()
    for number in range(count):
        source = Path(paths[number % len(paths)]).resolve()
        (directory / f"{number:06}{source.suffix}").symlink_to(source)
    return directory


def run(bundle: Bundle, images: Path, flags: Sequence[str]) -> float:
    """Classify a directory in a process of its own, and return the seconds it took.

    Its session is its own, as those of Ray's workers are: Linux divides a busy machine by sessions.
    """
    command = [sys.executable, "-m", "trt_vit", "classify", str(bundle.path), str(images), "-o", f"{images}.jsonl"]
    variables = {**os.environ, "TRT_VIT_SHARD_SIZE": str(SHARDS[bundle.path.stem])}
    started = time.perf_counter()
    subprocess.run(
        [*command, "--no-resume", *flags], check=True, capture_output=True, start_new_session=True, env=variables
    )
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
