"""What INT8 and FP8 cost a checkpoint's answers: each method of ours by itself, and NVIDIA ModelOpt beside them.

    python benchmarks/int8_accuracy.py --calibration DIR --test DIR [--checkpoint SOURCE] [--hard]
        [--images 128] [--test-images N] [--modelopt PYTHON] [--output FILE.json]

Every row is a graph that was quantized with the same calibration images and is run on the same test images in ONNX
Runtime, every Q/DQ node as it stands, against the fp32 graph. Where the test images lie in folders that are named as
the labels are, top-1 is measured too. Rows:

    none             ranges are the largest values, weights are rounded to the nearest code, every linear layer is INT8
    error, ...       the same with another end of the ranges
    + equalized      channels shifted and scaled
    + biases         the mean error of each output channel taken from its bias
    + rounded        weights rounded together (GPTQ)
    all              all of it, ranges by error
    all, 7 bits      the same with the weights that engines for a CPU have
    searched X       all of it, and layers left out until agreement is X on calibration images that are held back
    attention        all of it for TensorRT, attention in INT8 too
    fp8              all of it in FP8
    modelopt M       ModelOpt's defaults, calibration method M: attention's products are quantized too
    modelopt-linear  the same without the products of attention: what we quantize, and nothing else

ModelOpt needs an environment of its own: --modelopt names its Python (nvidia-modelopt[onnx]). --hard multiplies some
channels of LayerNorms and of the inputs of fc2 by 50 and divides the weights behind them, as training does to large
models: the checkpoint still says the same in fp32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from outliers import add_outliers

from trt_vit.caches import FileCache
from trt_vit.checkpoint.load import to_onnx
from trt_vit.engine.compare import compare_logits
from trt_vit.graph.rewrite import rewrite
from trt_vit.images.source import list_images
from trt_vit.profile.machine import environment
from trt_vit.quantize.calibrate import calibrate
from trt_vit.quantize.calibration import choose_images, read_batches
from trt_vit.quantize.equalize import Methods, Numbers
from trt_vit.quantize.linear import int8_coverage, linear_layers
from trt_vit.quantize.plan import Wish, quantize
from trt_vit.quantize.session import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from trt_vit.checkpoint.export import Export
    from trt_vit.quantize.calibrate import Calibration

PLAIN = Methods(equalize=False, ranges="max", round_together=False, correct_biases=False)
INT8 = Numbers("int8", "int8")
OURS = {
    "none": Wish(INT8, 0, tensorrt=False, methods=PLAIN),
    "error": Wish(INT8, 0, tensorrt=False, methods=replace(PLAIN, ranges="error")),
    "mse": Wish(INT8, 0, tensorrt=False, methods=replace(PLAIN, ranges="mse")),
    "percentile": Wish(INT8, 0, tensorrt=False, methods=replace(PLAIN, ranges="percentile")),
    "entropy": Wish(INT8, 0, tensorrt=False, methods=replace(PLAIN, ranges="entropy")),
    "+ equalized": Wish(INT8, 0, tensorrt=False, methods=replace(PLAIN, equalize=True)),
    "+ biases": Wish(INT8, 0, tensorrt=False, methods=replace(PLAIN, correct_biases=True)),
    "+ rounded": Wish(INT8, 0, tensorrt=False, methods=replace(PLAIN, round_together=True)),
    "all": Wish(INT8, 0, tensorrt=False),
    "all, 7 bits": Wish(Numbers("int8", "int7"), 0, tensorrt=False),
    "searched 0.98": Wish(INT8, 0.98, tensorrt=False),
    "searched 0.99": Wish(INT8, 0.99, tensorrt=False),
    "attention": Wish(INT8, 0, tensorrt=True, attention=True),
    "fp8": Wish(Numbers("fp8", "fp8"), 0, tensorrt=False),
}

_MODELOPT = """
import sys
import numpy as np
from modelopt.onnx.quantization import quantize
source, output, images, method, name, *excluded = sys.argv[1:]
quantize(
    source, quantize_mode="int8", calibration_data={name: np.load(images)}, calibration_method=method,
    output_path=output, high_precision_dtype="fp16", calibration_eps=["cpu"],
    **({"nodes_to_exclude": excluded} if excluded else {}),
)
"""


@dataclass(frozen=True)
class Row:
    """One quantized graph.

    Attributes:
        name: How it was quantized.
        agreement: Share of the test images with the same top-1 as in fp32.
        cosine: Mean cosine of the logits with those of fp32.
        min_cosine: The least of them.
        top1: Top-1 against the folders' names, or None.
        coverage: Share of the linear layers' multiply-accumulates in 8 bits.
        seconds: Time to quantize, calibration left out, as it is done once for all rows of ours; ModelOpt's with it.
    """

    name: str
    agreement: float
    cosine: float
    min_cosine: float
    top1: float | None
    coverage: float
    seconds: float


@dataclass(frozen=True)
class Test:
    """What a quantized graph is judged by: test images, the fp32 logits for them, and the classes they are of."""

    batches: list[NDArray[np.float32]]
    reference: NDArray[np.float32]
    classes: NDArray[np.int64] | None

    def row(self, name: str, model: ir.Model, coverage: float, seconds: float) -> Row:
        """Run a graph and compare."""
        logits = run(model, self.batches)
        found = compare_logits(logits, self.reference)
        return Row(name, found.agreement, found.cosine, found.min_cosine, self.top1(logits), coverage, seconds)

    def top1(self, logits: NDArray[np.float32]) -> float | None:
        """Return the share of images whose top-1 is the class of their folder."""
        return None if self.classes is None else float(np.mean(logits.argmax(axis=1) == self.classes))


def main() -> None:
    """Quantize every way and print the table."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        export = to_onnx(arguments.checkpoint, work / "export.onnx")
        model, _ = rewrite(ir.load(export.path))
        if arguments.hard:
            add_outliers(model)
        test = read_test(export, model, arguments.test, arguments.test_images)
        calibration, seconds = measure(export, model, arguments, work)
        print(f"{arguments.checkpoint}{', made hard' if arguments.hard else ''}: calibrated in {seconds:.0f} s")
        print(f"fp32 top-1 on {len(test.reference)} test images: {test.top1(test.reference)}\n\n{HEADER}")
        rows = []
        for row in (*ours(model, calibration, test), *modelopt(export, model, arguments, work, test)):
            rows.append(row)
            print(line(row), flush=True)
    if arguments.output is not None:
        result = {
            "environment": environment(),
            "checkpoint": Path(arguments.checkpoint).name,
            "made_hard": arguments.hard,
            "calibration_images": arguments.images,
            "calibration_seconds": round(seconds, 1),
            "test_images": len(test.reference),
            "fp32_top1": test.top1(test.reference),
            "rows": [asdict(row) for row in rows],
        }
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkpoint", default="examples/vit-cifar10", help="what build-engine takes for a SOURCE")
    parser.add_argument("--calibration", type=Path, required=True, help="directory of images to calibrate on")
    parser.add_argument("--test", type=Path, required=True, help="directory of images to compare on")
    parser.add_argument("--images", type=int, default=128, help="calibration images")
    parser.add_argument("--test-images", type=int, default=1000, help="test images, the same share of each folder")
    parser.add_argument("--hard", action="store_true", help="add outlier channels first")
    parser.add_argument("--modelopt", type=Path, help="a Python that has nvidia-modelopt[onnx]")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


def read_test(export: Export, model: ir.Model, directory: Path, count: int) -> Test:
    """Choose and read the test images, and run the fp32 graph on them."""
    paths = choose_images(directory, min(count, len(list_images([str(directory)])))).paths
    batches = list(read_batches(paths, export.preprocessing, export.image_size))
    folders = [Path(path).parent.name for path in paths]
    classes = (
        np.array([export.labels.index(folder) for folder in folders]) if set(folders) <= set(export.labels) else None
    )
    return Test(batches, run(model, batches), classes)


def measure(export: Export, model: ir.Model, arguments: argparse.Namespace, work: Path) -> tuple[Calibration, float]:
    """Calibrate once, for all rows of ours."""
    paths = choose_images(arguments.calibration, arguments.images).paths
    started = time.perf_counter()
    calibration = calibrate(
        model,
        paths,
        lambda some: read_batches(some, export.preprocessing, export.image_size),
        cache=FileCache(work / "calibrations", 2**40),
        facts={},
        tell=lambda *_: None,
    )
    return calibration, time.perf_counter() - started


def ours(model: ir.Model, calibration: Calibration, test: Test) -> Iterator[Row]:
    """Quantize our way, with each method."""
    for name, wish in OURS.items():
        started = time.perf_counter()
        copy = model.clone()
        done = quantize(copy, calibration, wish, lambda *_: None)
        seconds = time.perf_counter() - started
        kept = sum(placement.macs for placement in done.placements if placement.left_out is None)
        yield test.row(name, copy, kept / sum(placement.macs for placement in done.placements), seconds)


def modelopt(export: Export, model: ir.Model, arguments: argparse.Namespace, work: Path, test: Test) -> Iterator[Row]:
    """Quantize ModelOpt's way: the graph as it was exported, or made hard."""
    if arguments.modelopt is None:
        return
    source = export.path
    if arguments.hard:
        source = work / "hard.onnx"
        ir.save(model, source)
    paths = choose_images(arguments.calibration, arguments.images).paths
    np.save(work / "images.npy", np.concatenate(list(read_batches(paths, export.preprocessing, export.image_size))))
    weighted = {layer.name for layer in linear_layers(ir.load(source))}
    products = [node.name for node in ir.load(source).graph if node.op_type == "MatMul" and node.name not in weighted]
    for name, method, excluded in (
        ("modelopt max", "max", []),
        ("modelopt entropy", "entropy", []),
        ("modelopt-linear", "max", products),
        ("modelopt-linear entropy", "entropy", products),
    ):
        output = work / "modelopt.onnx"
        started = time.perf_counter()
        command: list[Any] = [arguments.modelopt, "-c", _MODELOPT, source, output, work / "images.npy", method]
        subprocess.run(
            [*map(str, command), export.input_name, *map(str, excluded)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - started
        quantized = ir.load(output)
        yield test.row(name, quantized, int8_coverage(quantized), seconds)


HEADER = f"{'':24}{'agreement':>11}{'cosine':>10}{'least':>9}{'top-1':>9}{'coverage':>10}{'seconds':>9}"


def line(row: Row) -> str:
    """Return one line of the table."""
    top1 = "" if row.top1 is None else f"{row.top1:.2%}"
    return (
        f"{row.name:24}{row.agreement:>11.2%}{row.cosine:>10.5f}{row.min_cosine:>9.4f}{top1:>9}{row.coverage:>10.1%}"
        f"{row.seconds:>9.1f}"
    )


if __name__ == "__main__":
    main()
