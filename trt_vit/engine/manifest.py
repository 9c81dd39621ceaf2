"""The manifest: what a bundle holds, and where each part of it came from."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from trt_vit.images.preprocessing import Edge
from trt_vit.reading import is_plain, quoted

FORMAT: Final = 3
"""Version of the bundle layout. A reader refuses a format it does not know."""

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
RuntimeName = Literal["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"]
RangeMethod = Literal["error", "max", "percentile", "entropy", "mse"]

MAX_BATCH: Final = 2**16
MAX_CLASSES: Final = 2**20
MAX_FILE_BYTES: Final = 2**36
"""Bytes of one file of a bundle: each is read into memory."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def _plain_name(name: str) -> str:
    if not _PLAIN_NAME.fullmatch(name):
        raise ValueError(f"{quoted(name)} is not a plain file name")
    return name


def _plain_text(text: str) -> str:
    if not is_plain(text):
        raise ValueError(f"{quoted(text)} holds a control character")
    return text


PlainName = Annotated[str, AfterValidator(_plain_name)]
Text = Annotated[str, AfterValidator(_plain_text)]
"""What a person may be shown, by a terminal for one."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


BatchSize = Annotated[int, Field(gt=0, le=MAX_BATCH)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BatchProfile(_Record):
    """Batch sizes an engine is built for: the smallest, the one it is tuned for, and the largest."""

    min: BatchSize
    opt: BatchSize
    max: BatchSize

    @model_validator(mode="after")
    def _ascending(self) -> BatchProfile:
        if not self.min <= self.opt <= self.max:
            raise ValueError("batch sizes must ascend")
        return self

    def __str__(self) -> str:
        return f"{self.min},{self.opt},{self.max}"


class FileRecord(_Record):
    """One file of the bundle."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]


class CheckpointRecord(_Record):
    """Where the weights came from.

    Attributes:
        source: SOURCE as it was given.
        kind: What SOURCE was.
        revision: Commit on the hub, or None elsewhere.
        architecture: Class name in the checkpoint's config.json, or None for an ONNX file of unknown origin.
        weights_sha256: Digest of the weights file or files (or of the ONNX file).
        parameters: Number of weights.
    """

    source: Text
    kind: Literal["hub", "directory", "onnx"]
    revision: Text | None
    architecture: Text | None
    weights_sha256: Sha256
    parameters: NonNegativeInt


class ModelRecord(_Record):
    """The engine's interface: one float32 image tensor [batch, 3, height, width] in, logits [batch, classes] out."""

    input_name: Text
    output_name: Text
    height: Edge
    width: Edge
    classes: Annotated[int, Field(gt=0, le=MAX_CLASSES)]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        return (3, self.height, self.width)


class ExportRecord(_Record):
    """The step from checkpoint to ONNX.

    Attributes:
        opset: ONNX operator set of the exported graph.
        max_abs_difference: Largest difference of a logit from torch's on random images, or None for an ONNX SOURCE.
    """

    opset: PositiveInt
    max_abs_difference: float | None


class TargetRecord(_Record):
    """What a TensorRT engine was built for, and how.

    Attributes:
        lanes: Batches that can be in flight at once: optimization profiles in the plan.
        compute_capability: GPU generation that TensorRT for RTX built for, as ``8.9``; None for every one from Ampere
            on, and for TensorRT, which builds for the GPU it runs on.
        gpu: Name of the GPU that TensorRT built on and for; None for TensorRT for RTX.
        workspace_gib: Most memory that a layer's kernels may use while they run, in GiB; None for all there is.
        optimization_level: How hard the builder searches, 0 to 5; None for TensorRT's default.
        aux_streams: Streams that one batch may be spread over; None for TensorRT's default.
        version_compatible: Whether later versions of TensorRT can load the plan. They need the lean runtime of this
            version installed: the plan does not carry it, as it is host code.
        hardware_compatible: Whether later GPU generations can load the plan.
    """

    lanes: Annotated[int, Field(gt=0, le=2**10)] = 1
    compute_capability: Annotated[str, Field(pattern=r"^[0-9]{1,3}\.[0-9]$")] | None = None
    gpu: Text | None = None
    workspace_gib: PositiveFloat | None = None
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    aux_streams: NonNegativeInt | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False


class LayerRecord(_Record):
    """What became of one linear layer.

    Attributes:
        layer: Its name.
        precision: What it multiplies.
        macs: Its multiply-accumulates for one image.
        amax: Largest absolute value of its input that is not clipped, after shift and scale; None where none was found.
        equalized: Whether channels of its input are shifted or scaled before they are quantized.
        attention: Whether the attention that it reads runs in INT8 too.
        cost: Squared error of the logits with nothing quantized but the layers that read its input; None where that was
            not measured.
        reason: Why it is not quantized; None where it is.
    """

    layer: Text
    precision: Precision
    macs: NonNegativeInt
    amax: float | None
    equalized: bool
    attention: bool
    cost: float | None
    reason: Text | None


class QuantizationRecord(_Record):
    """The step from floating point to INT8 or FP8.

    Attributes:
        calibration: Directory of the images, or None for a graph that came with its own Q/DQ nodes.
        images: How many of them were used.
        images_sha256: Digest of their names and bytes, in order.
        ranges: Where the range of a tensor ends.
        min_agreement: How often it was to have the same top-1 as fp32, 0 to 1.
        reached: Whether it does.
        held_back: How many of the images no range comes from; None where agreement was not asked for.
        agreement: Share of these with the same top-1 as in fp32.
        expected_agreement: Share that is to be expected of other images like them.
        plan: What became of each linear layer, in the order of the graph.
    """

    calibration: Text | None
    images: NonNegativeInt
    images_sha256: Sha256 | None
    ranges: RangeMethod
    min_agreement: float = Field(ge=0, le=1)
    reached: bool
    held_back: NonNegativeInt | None
    agreement: float | None = Field(ge=0, le=1)
    expected_agreement: float | None = Field(ge=0, le=1)
    plan: tuple[LayerRecord, ...]


class ComparisonRecord(_Record):
    """How close an engine comes to fp32.

    Attributes:
        measured_on: What was run: the engine; or, where there is no GPU for it, the graph that it was built from.
        measured_in: Precision that the machine computed in: it may have none of the engine's.
        images: How many images it was run on.
        agreement: Share of these with the same top-1 as the fp32 graph in ONNX Runtime, 0 to 1.
        cosine: Mean cosine similarity of the logits with those of the fp32 graph, -1 to 1.
        max_abs_difference: Largest difference of a logit from that of the fp32 graph.
    """

    measured_on: Literal["engine", "graph"]
    measured_in: Precision
    images: PositiveInt
    agreement: float = Field(ge=0, le=1)
    cosine: float
    max_abs_difference: float


class EngineRecord(_Record):
    """The step from ONNX to engine.

    Attributes:
        layers: Layers the runtime executes for one batch, after its own fusions.
        kinds: How many there are of each kind, in the runtime's own words.
        precisions: How many compute in each number format, the narrowest of what a layer reads.
        fused_attention: How many are whole attentions (one scaled-dot-product kernel).
        attentions: How many attentions the graph has: what ``fused_attention`` is at best.
        reformats: How many only change the layout or format of a tensor.
        weights_bytes: Bytes of weights in the engine.
        int8_coverage: Share of the multiply-accumulates of linear layers that run in INT8, 0 to 1.
        against_fp32: How close it comes to fp32; None for a graph that came quantized to a machine without a GPU, which
            has neither an fp32 graph nor an engine to run.
    """

    layers: PositiveInt
    kinds: dict[Text, PositiveInt]
    precisions: dict[Text, PositiveInt]
    fused_attention: NonNegativeInt
    attentions: NonNegativeInt
    reformats: NonNegativeInt
    weights_bytes: NonNegativeInt
    int8_coverage: float = Field(ge=0, le=1)
    against_fp32: ComparisonRecord | None


class Manifest(_Record):
    """Everything about a bundle except the bytes of its files.

    Attributes:
        format: Version of this layout.
        created: UTC time of the build, ISO 8601.
        runtime: The runtime that executes the engine.
        precision: Precision that was asked for; a CPU without bf16 runs a bf16 bundle in fp32 and says so.
        target: What a TensorRT engine was built for; None for the other runtimes.
        quantization: How an INT8 or FP8 engine came by its ranges; None for the other precisions.
        files: Every other file of the bundle by name.
        versions: Version of each package that took part in the build.
    """

    format: Literal[3]
    created: Text
    runtime: RuntimeName
    precision: Precision
    batch: BatchProfile
    checkpoint: CheckpointRecord
    model: ModelRecord
    export: ExportRecord
    target: TargetRecord | None
    quantization: QuantizationRecord | None
    engine: EngineRecord
    files: dict[PlainName, FileRecord]
    versions: dict[Text, Text]
