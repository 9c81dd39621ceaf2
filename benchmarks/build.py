"""ViT-B/16 built ahead of time with TensorRT for RTX, without a GPU: what the compiler makes of which graph.

    python benchmarks/build.py [--images DIR] [--capability 8.9] [--modelopt PYTHON] [--output FILE.json]

Ours are the graphs that `trt-vit build-engine` gives the builder, one for each precision. Beside them stand the graphs
that others give it, built by the same code with the same settings:

    dynamo           torch's dynamo exporter on the transformers model as it is, cast to fp16 by ONNX Runtime's tool
    torchscript      torch's TorchScript exporter on the same, cast likewise
    onnxruntime      ONNX Runtime's static quantization (Q/DQ) of every product in the TorchScript export, the rest fp32
    modelopt         NVIDIA ModelOpt's INT8 defaults on the TorchScript export, the rest fp16
    modelopt-linear  the same without the products of attention

The last two need ModelOpt in an environment of its own: --modelopt names its Python. Weights are random, so this says
nothing about accuracy; kernels, memory and time do not depend on them. The number of kernels is that of one batch.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import TopologicalSortPass
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from photos import photos
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from trt_vit.checkpoint.load import to_onnx
from trt_vit.engine.layers import coverage, summarize
from trt_vit.engine.manifest import BatchProfile, TargetRecord
from trt_vit.engine.plan import build_plan
from trt_vit.engine.prepare import prepare
from trt_vit.engine.progress import Quiet
from trt_vit.engine.quantizer import quantizer
from trt_vit.graph.fold import fold
from trt_vit.profile.machine import environment
from trt_vit.quantize.calibration import CalibrationSet, read_batches
from trt_vit.quantize.equalize import Numbers
from trt_vit.quantize.linear import linear_layers
from trt_vit.quantize.plan import Wish
from trt_vit.runtime.tensorrt_family import load_family

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trt_vit.checkpoint.export import Export
    from trt_vit.engine.manifest import Precision
    from trt_vit.runtime.tensorrt_family import Family

BATCH = BatchProfile(min=1, opt=8, max=128)
OURS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "fp8")
CALIBRATION_IMAGES = 32

_MODELOPT = """
import sys
import numpy as np
from modelopt.onnx.quantization import quantize
source, output, images, *excluded = sys.argv[1:]
quantize(
    source, quantize_mode="int8", calibration_data={"pixel_values": np.load(images)}, calibration_method="max",
    output_path=output, high_precision_dtype="fp16", calibration_eps=["cpu"],
    **({"nodes_to_exclude": excluded} if excluded else {}),
)
"""


@dataclass(frozen=True)
class Row:
    """One engine.

    Attributes:
        graph: Whose graph it was built from.
        precision: What the linear layers were meant to run in.
        prepare_seconds: Time from the exported graph to the one that is built, calibration included; None for a peer's.
        build_seconds: Time that TensorRT took.
        engine_mb: Size of the plan, in 10^6 bytes.
        weights_mb: Size of the weights in it, in 10^6 bytes.
        kernels: Layers for one batch.
        fused_attention: How many of them are whole attentions.
        narrow_share: Share of the linear layers' multiply-accumulates in INT8 or FP8.
    """

    graph: str
    precision: str
    prepare_seconds: float | None
    build_seconds: float
    engine_mb: float
    weights_mb: float
    kernels: int
    fused_attention: int
    narrow_share: float


def main() -> None:
    """Build everything and print the table."""
    arguments = parse_arguments()
    family = load_family("tensorrt-rtx")
    target = TargetRecord(compute_capability=arguments.capability)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model, checkpoint = write_checkpoint(work / "vit-base")
        export = to_onnx(str(checkpoint), work / "export.onnx")
        images = photos(arguments.images, work, CALIBRATION_IMAGES)
        rows = []
        print(HEADER)
        for precision in OURS:
            rows.append(our_row(family, target, export, precision, images))
            print(line(rows[-1]), flush=True)
        for graph, number, path in peers(model, export, images, work, arguments.modelopt):
            rows.append(build_row(family, target, graph, number, path))
            print(line(rows[-1]), flush=True)
    ratio = weights_of(rows, "int8") / weights_of(rows, "fp32")
    print(f"INT8 weights / fp32 weights: {ratio:.3f}")
    if arguments.output is not None:
        result = {
            "environment": environment(),
            "model": "ViT-B/16, 224 x 224, random weights",
            "tensorrt": family.title,
            "compute_capability": arguments.capability,
            "batch": str(BATCH),
            "int8_weights_ratio": round(ratio, 4),
            "engines": [asdict(row) for row in rows],
        }
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, help="directory of photos to calibrate on")
    parser.add_argument("--capability", default="8.9", help="GPU generation to build for")
    parser.add_argument("--modelopt", type=Path, help="a Python that has nvidia-modelopt[onnx]")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


def write_checkpoint(directory: Path) -> tuple[torch.nn.Module, Path]:
    """Write ViT-B/16 with random weights; its biases are not zero, or exporters would leave some out."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(id2label={index: f"class {index}" for index in range(1000)}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(directory)
    ViTImageProcessorPil().save_pretrained(directory)
    return model.eval(), directory


def our_row(family: Family, target: TargetRecord, export: Export, precision: Precision, images: list[str]) -> Row:
    """Prepare the graph for one precision as a build does, and build it."""
    started = time.perf_counter()
    output = export.path.with_name(f"{precision}.onnx")
    quantize = None
    if precision in {"int8", "fp8"}:
        code: Literal["int8", "fp8"] = "fp8" if precision == "fp8" else "int8"
        wish = Wish(Numbers(code, code), 0, tensorrt=True)
        chosen = CalibrationSet(output.parent, tuple(images), "", len(images), {})
        quantize = quantizer(export, chosen, wish, cache=output.parent / "cache", progress=Quiet())
    prepare(export, precision, output, quantize=quantize)
    return build_row(family, target, "trt-vit", precision, output, prepared=time.perf_counter() - started)


def build_row(
    family: Family, target: TargetRecord, graph: str, precision: str, path: Path, *, prepared: float | None = None
) -> Row:
    """Build one graph and tell what came of it."""
    started = time.perf_counter()
    plan = build_plan(family, path, batch=BATCH, target=target, progress=Quiet(), timing_cache=None)
    seconds = time.perf_counter() - started
    statistics = summarize(plan.layers, plan.weights_bytes)
    model = ir.load(path)
    TopologicalSortPass()(model)
    macs = {layer.name: layer.macs for layer in linear_layers(model)}
    return Row(
        graph=graph,
        precision=precision,
        prepare_seconds=None if prepared is None else round(prepared, 1),
        build_seconds=round(seconds, 1),
        engine_mb=round(len(plan.data) / 1e6, 1),
        weights_mb=round(plan.weights_bytes / 1e6, 1),
        kernels=statistics.layers,
        fused_attention=statistics.fused_attention,
        narrow_share=round(max(coverage(plan.layers, macs, number) for number in ("int8", "fp8")), 3),
    )


def peers(
    model: torch.nn.Module, export: Export, images: list[str], work: Path, modelopt: Path | None
) -> Iterator[tuple[str, str, Path]]:
    """Write the graphs that others give the builder: name, precision, path."""
    plain = {graph: torch_export(model, work / f"{graph}.onnx") for graph in ("dynamo", "torchscript")}
    for graph, path in plain.items():
        yield graph, "fp16", in_fp16(path)
    batches = list(read_batches(images, export.preprocessing, export.image_size))
    yield "onnxruntime", "int8", quantized_by_onnxruntime(plain["torchscript"], batches)
    if modelopt is not None:
        np.save(work / "images.npy", np.concatenate(batches))
        products = [node.name or "" for node in ir.load(plain["torchscript"]).graph if is_attention_product(node)]
        for graph, excluded in (("modelopt", []), ("modelopt-linear", products)):
            output = work / f"{graph}.onnx"
            paths = [str(path) for path in (plain["torchscript"], output, work / "images.npy")]
            command = [str(modelopt), "-c", _MODELOPT, *paths, *excluded]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            yield graph, "int8", output


def torch_export(model: torch.nn.Module, path: Path) -> Path:
    """Export the model as torch does by default, by the exporter that the file is named for."""
    image, dynamo = torch.zeros(2, 3, 224, 224), path.stem == "dynamo"
    names: dict[str, Any] = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    free = {"dynamic_shapes": ({0: "batch"},)} if dynamo else {"dynamic_axes": {"pixel_values": {0: "batch"}}}
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            Logits(model), (image,), path, dynamo=dynamo, opset_version=18 if dynamo else 17, **names, **free
        )
    return path


class Logits(torch.nn.Module):
    """The model with one output."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the logits [batch, classes]."""
        logits: torch.Tensor = self.model(pixel_values).logits
        return logits


def in_fp16(path: Path) -> Path:
    """Cast a graph by ONNX Runtime's converter, logits in float32."""
    output = path.with_name(f"{path.stem}-fp16.onnx")
    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), output)
    return output


def quantized_by_onnxruntime(path: Path, batches: list[Any]) -> Path:
    """Quantize by ONNX Runtime's static quantization, with its defaults but for symmetric numbers, as TensorRT has."""

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            self._left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._left, None)
            return None if batch is None else {"pixel_values": batch}

    model = ir.load(path)
    fold(model)
    folded, output = path.with_name("folded.onnx"), path.with_name("onnxruntime.onnx")
    ir.save(model, folded)
    quantize_static(
        folded,
        output,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
    return output


def is_attention_product(node: ir.Node) -> bool:
    """Tell whether a node multiplies two computed tensors."""
    return node.op_type == "MatMul" and all(
        value is not None and ir.convenience.get_const_tensor(value) is None for value in node.inputs
    )


def weights_of(rows: list[Row], precision: str) -> float:
    """Return the megabytes of weights in our engine of one precision."""
    return next(row.weights_mb for row in rows if (row.graph, row.precision) == ("trt-vit", precision))


HEADER = (
    f"{'graph':16}{'precision':>10}{'prepare s':>11}{'build s':>9}{'engine MB':>11}{'weights MB':>12}"
    f"{'kernels':>9}{'attention':>11}{'int8/fp8':>10}"
)


def line(row: Row) -> str:
    """Return one line of the table."""
    prepared = "" if row.prepare_seconds is None else f"{row.prepare_seconds:.1f}"
    return (
        f"{row.graph:16}{row.precision:>10}{prepared:>11}{row.build_seconds:>9.1f}{row.engine_mb:>11.1f}"
        f"{row.weights_mb:>12.1f}{row.kernels:>9}{row.fused_attention:>11}{row.narrow_share:>10.0%}"
    )


if __name__ == "__main__":
    main()
