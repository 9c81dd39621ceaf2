"""ViT-B/16 with random weights on a CPU: the pipeline against bare OpenVINO and against the Hugging Face way.

    python benchmarks/cpu_pipeline.py [--images DIR] [--rounds 3] [--output FILE.json]

Every round runs each contender once on the same images, one after the other, so that a machine whose speed drifts
slows them alike; what is reported is the median over the rounds of the ratio within a round. Loading a model is not
timed, the first batch of each contender is a warm-up. Contenders:

    pipeline       trt-vit classify: read, decode, preprocess, infer, top-k, write
    bare           OpenVINO alone on the same images, already preprocessed; same precision, requests and batch
    hugging face   Pillow, ViTImageProcessorPil and the torch model in fp32, a batch after the other

Beside them stands the fp32 ceiling of the machine: what its cores reach in a large matrix product, by numpy or torch,
measured in the same rounds, over the operations of one image. An fp32 contender does not get far above it.

bf16 is measured where the CPU has it. INT8 is calibrated on the same images, with every linear layer quantized: weights
are random, so that there are no answers to keep. Without --images, photos of 500 x 375 are made of noise.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
import torch
from photos import photos
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from vit_base import write_checkpoint

from trt_vit.engine.build import build
from trt_vit.engine.progress import Lines, Quiet
from trt_vit.images.source import list_images
from trt_vit.pipeline.classify import load_classifier
from trt_vit.pipeline.run import classify
from trt_vit.pipeline.sinks import open_sink
from trt_vit.pipeline.stages import IN_THIS_PROCESS, load_image
from trt_vit.profile.machine import environment
from trt_vit.runtime.openvino import ENGINE_GRAPH, ENGINE_WEIGHTS, HINTS, supports_bf16
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.settings import BuildSettings
from trt_vit.sources.item import FileItem, file_items

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from trt_vit.engine.bundle import Bundle
    from trt_vit.engine.manifest import Precision
    from trt_vit.pipeline.classifier import Classifier

BATCH = 8
OPERATIONS = 2 * 17.58e9
"""Floating-point operations of ViT-B/16 for one image of 224 x 224: two for each multiply-accumulate."""
IMAGES = 64
SMALL_IMAGES = (1_000, 10_000)


@dataclass(frozen=True)
class Engine:
    """A built engine, loaded twice: in the pipeline and bare."""

    bundle: Bundle
    classifier: Classifier
    bare: Any


def main() -> None:
    """Measure everything and print the table."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        paths = photos(arguments.images, work, IMAGES)
        checkpoint = write_checkpoint(work / "vit-base")
        precisions: list[Precision] = ["fp32", "bf16", "int8"] if supports_bf16() else ["fp32", "int8"]
        engines = {precision: load_engine(checkpoint, work, precision, paths) for precision in precisions}
        results: dict[str, Any] = {
            "environment": environment(),
            "model": "ViT-B/16, 224 x 224, random weights",
            "batch": BATCH,
            "images": len(paths),
            "throughput": measure_throughput(engines, checkpoint, paths, work, arguments.rounds),
        }
        if "bf16" not in precisions:
            print("bf16 was not measured: this CPU has no bf16 instructions")
        results["memory"] = measure_memory(work)
        results["start"] = measure_start()
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, help="directory of photos")
    parser.add_argument("--rounds", type=int, default=3, help="times each contender runs")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


def load_engine(checkpoint: Path, work: Path, precision: Precision, paths: Sequence[str]) -> Engine:
    """Build the engine and load it for both of its contenders."""
    calibration = work / "calibration"
    if not calibration.exists():
        calibration.mkdir()
        for number, path in enumerate(paths):
            (calibration / f"{number}{Path(path).suffix}").symlink_to(Path(path).resolve())
    settings = BuildSettings(
        source=str(checkpoint),
        output=work / f"bundle-{precision}",
        precision=precision,
        runtime="openvino",
        calibration=calibration if precision == "int8" else None,
        min_agreement=0,
        cache=work / "cache",
    )
    bundle = build(settings, Lines())
    classifier = load_classifier(bundle, RuntimeOptions(batch_size=BATCH), k=5, decode_threads=None)
    core = openvino.Core()
    weights = openvino.Tensor(np.frombuffer(bundle.read(ENGINE_WEIGHTS), dtype=np.uint8))
    model = core.read_model(bundle.read(ENGINE_GRAPH), weights)
    model.reshape({0: [BATCH, 3, 224, 224]})
    options = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": len(classifier.runtimes[0].lanes),
        "INFERENCE_PRECISION_HINT": HINTS[precision],
    }
    return Engine(bundle, classifier, core.compile_model(model, "CPU", options))


def measure_throughput(
    engines: dict[Precision, Engine], checkpoint: Path, paths: Sequence[str], work: Path, rounds: int
) -> dict[str, Any]:
    """Run every contender once a round, and print images per second and the ratios."""
    tensors = preprocess(next(iter(engines.values())).classifier, paths)
    contenders: dict[str, Callable[[int], float]] = {}
    for precision, engine in engines.items():
        contenders[f"pipeline {precision}"] = pipeline_contender(engine.classifier, paths, work)
        contenders[f"bare {precision}"] = bare_contender(engine, tensors)
    contenders["hugging face fp32"] = hugging_face_contender(checkpoint, paths)
    for run in contenders.values():
        run(BATCH)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    ceilings = []
    for number in range(rounds):
        ceilings.append(matrix_product_rate() / OPERATIONS)
        for name, run in contenders.items():
            rates[name].append(len(paths) / run(len(paths)))
        print(f"round {number + 1}: " + ", ".join(f"{name} {rate[-1]:.2f}" for name, rate in rates.items()), flush=True)
    rates["fp32 ceiling"] = ceilings
    return summarize(rates, list(engines))


def matrix_product_rate() -> float:
    """Return the operations a second of an fp32 product of the size it has in the MLP, the best of numpy and torch."""
    a, b = torch.randn(BATCH * 197, 768), torch.randn(768, 3072)
    seconds = []
    for product in (lambda: torch.mm(a, b), lambda: np.matmul(a.numpy(), b.numpy())):
        for _ in range(20):
            started = time.perf_counter()
            product()
            seconds.append(time.perf_counter() - started)
    return 2 * BATCH * 197 * 768 * 3072 / min(seconds)


def summarize(rates: dict[str, list[float]], precisions: Sequence[Precision]) -> dict[str, Any]:
    """Print and return the rates and the medians of the ratios within a round."""
    print(f"\n{'':<32}{'images/s':>10}")
    for name, values in rates.items():
        print(f"{name:<32}{statistics.median(values):>10.2f}")
    pairs = [(f"pipeline {precision}", f"bare {precision}") for precision in precisions]
    pairs += [(f"pipeline {precision}", "hugging face fp32") for precision in precisions]
    pairs += [(f"pipeline {precision}", "pipeline fp32") for precision in precisions if precision != "fp32"]
    pairs += [("fp32 ceiling", "hugging face fp32")]
    print(f"\n{'':<44}{'ratio':>7}{'lowest':>9}{'highest':>9}")
    ratios = {}
    for ours, peer in pairs:
        values = [a / b for a, b in zip(rates[ours], rates[peer], strict=True)]
        ratios[f"{ours} / {peer}"] = values
        print(f"{ours + ' / ' + peer:<44}{statistics.median(values):>7.3f}{min(values):>9.3f}{max(values):>9.3f}")
    return {"images_per_second": rates, "ratios": ratios}


def preprocess(classifier: Classifier, paths: Sequence[str]) -> NDArray[np.float32]:
    """Return the images as the engine takes them."""
    tensors = np.empty((len(paths), *classifier.image_shape), dtype=np.float32)
    for path, out in zip(paths, tensors, strict=True):
        error = load_image(FileItem(path), IN_THIS_PROCESS, classifier.preprocessor, out).error
        assert error is None, f"{path}: {error}"
    return tensors


def pipeline_contender(classifier: Classifier, paths: Sequence[str], work: Path) -> Callable[[int], float]:
    """Return a function that classifies the first n images and returns the seconds it took."""

    def run(count: int) -> float:
        with open_sink(work / "out.jsonl", classifier.k) as sink:
            return classify(file_items(paths[:count]), classifier, sink, lambda _rows: None).seconds

    return run


def bare_contender(engine: Engine, tensors: NDArray[np.float32]) -> Callable[[int], float]:
    """Return a function that infers the first n tensors with OpenVINO's own queue of requests."""
    queue = openvino.AsyncInferQueue(engine.bare, len(engine.classifier.runtimes[0].lanes))

    def run(count: int) -> float:
        started = time.perf_counter()
        for first in range(0, count, BATCH):
            queue.start_async(openvino.Tensor(tensors[first : first + BATCH], shared_memory=True))
        queue.wait_all()
        return time.perf_counter() - started

    return run


def hugging_face_contender(checkpoint: Path, paths: Sequence[str]) -> Callable[[int], float]:
    """Return a function that classifies the first n images the way transformers' documentation does."""
    torch.set_num_threads(environment()["cores"])
    processor = ViTImageProcessorPil.from_pretrained(checkpoint)
    model = ViTForImageClassification.from_pretrained(checkpoint).eval()

    def run(count: int) -> float:
        started = time.perf_counter()
        for first in range(0, count, BATCH):
            images = [Image.open(path).convert("RGB") for path in paths[first : min(count, first + BATCH)]]
            with torch.inference_mode():
                logits = model(**processor(images, return_tensors="pt")).logits
            logits.softmax(-1).topk(5)
        return time.perf_counter() - started

    return run


def measure_memory(work: Path) -> dict[str, Any]:
    """Print the peak memory of classifying 1,000 and 10,000 small images with a small ViT."""
    small = work / "vit-small"
    config = ViTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=32)
    ViTForImageClassification(config).save_pretrained(small)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(small)
    bundle = build(BuildSettings(source=str(small), output=work / "small"), Quiet())
    generator = np.random.default_rng(0)
    (work / "small-images").mkdir()
    for number in range(max(SMALL_IMAGES)):
        pixels = generator.integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(work / "small-images" / f"{number:05}.jpg")
    paths = list_images([str(work / "small-images")])
    peaks = {}
    for count in SMALL_IMAGES:
        (work / "list.txt").write_text("\n".join(paths[:count]), encoding="utf-8")
        peaks[count] = peak_memory(["classify", str(bundle.path), str(work / "list.txt"), "-o", str(work / "out.csv")])
        print(f"peak memory of {count:>6} small images: {peaks[count] / 2**20:.0f} MiB")
    ratio = peaks[max(SMALL_IMAGES)] / peaks[min(SMALL_IMAGES)]
    print(f"ratio: {ratio:.3f}")
    return {"peak_bytes": peaks, "ratio": ratio}


def peak_memory(arguments: Sequence[str]) -> int:
    """Return the peak resident bytes of one trt-vit command in a process of its own.

    The kernel's VmHWM begins with the program; ru_maxrss would begin with the memory of the process that forked it.
    """
    code = (
        "import sys; from trt_vit.cli import run; assert run(sys.argv[1:]) == 0; "
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout) * 1024


def measure_start() -> dict[str, float]:
    """Print the median time of ``trt-vit --help`` over nine runs."""
    seconds = []
    for _ in range(9):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "trt_vit", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"trt-vit --help: {statistics.median(seconds):.2f} s ({cpu:.2f} s of CPU in the last run)")
    return {"help_seconds": statistics.median(seconds)}


if __name__ == "__main__":
    main()
