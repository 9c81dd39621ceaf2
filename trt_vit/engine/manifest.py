"""The manifest: what a bundle holds, and where each part of it came from."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

FORMAT: Final = 1
"""Version of the bundle layout. A reader refuses a format it does not know."""

Precision = Literal["fp32", "bf16"]
RuntimeName = Literal["openvino", "onnxruntime"]

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _plain_name(name: str) -> str:
    if not _PLAIN_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a plain file name")
    return name


PlainName = Annotated[str, AfterValidator(_plain_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BatchProfile(_Record):
    """Batch sizes an engine is built for: the smallest, the one it is tuned for, and the largest."""

    min: PositiveInt
    opt: PositiveInt
    max: PositiveInt

    @model_validator(mode="after")
    def _ascending(self) -> BatchProfile:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"batch sizes must ascend, got {self}")
        return self

    def __str__(self) -> str:
        return f"{self.min},{self.opt},{self.max}"


class FileRecord(_Record):
    """One file of the bundle."""

    sha256: Sha256
    bytes: NonNegativeInt


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

    source: str
    kind: Literal["hub", "directory", "onnx"]
    revision: str | None
    architecture: str | None
    weights_sha256: Sha256
    parameters: NonNegativeInt


class ModelRecord(_Record):
    """The engine's interface: one float32 image tensor [batch, 3, height, width] in, logits [batch, classes] out."""

    input_name: str
    output_name: str
    height: PositiveInt
    width: PositiveInt
    classes: PositiveInt


class ExportRecord(_Record):
    """The step from checkpoint to ONNX.

    Attributes:
        opset: ONNX operator set of the exported graph.
        max_abs_difference: Largest difference of a logit from torch's on random images, or None for an ONNX SOURCE.
    """

    opset: PositiveInt
    max_abs_difference: float | None


class EngineRecord(_Record):
    """The step from ONNX to engine.

    Attributes:
        layers: Layers the runtime executes for one batch, after its own fusions.
        fused_attention: How many of them are whole attentions (one scaled-dot-product kernel).
        weights_bytes: Bytes of weights in the engine.
        int8_coverage: Share of the multiply-accumulates of linear layers that run in INT8, 0 to 1.
        measured_in: Precision that the three figures below were measured in: the machine that built a bf16 engine may
            have run it in fp32.
        agreement: Share of the reference images with the same top-1 as ONNX Runtime in fp32, 0 to 1.
        cosine: Mean cosine similarity of the logits with ONNX Runtime's in fp32, -1 to 1.
        max_abs_difference: Largest difference of a logit from ONNX Runtime's in fp32.
    """

    layers: PositiveInt
    fused_attention: NonNegativeInt
    weights_bytes: NonNegativeInt
    int8_coverage: float = Field(ge=0, le=1)
    measured_in: Precision
    agreement: float = Field(ge=0, le=1)
    cosine: float
    max_abs_difference: float


class Manifest(_Record):
    """Everything about a bundle except the bytes of its files.

    Attributes:
        format: Version of this layout.
        created: UTC time of the build, ISO 8601.
        runtime: The runtime that executes the engine.
        precision: Precision that was asked for; a CPU without bf16 runs a bf16 bundle in fp32 and says so.
        files: Every other file of the bundle by name.
        versions: Version of each package that took part in the build.
    """

    format: Literal[1]
    created: str
    runtime: RuntimeName
    precision: Precision
    batch: BatchProfile
    checkpoint: CheckpointRecord
    model: ModelRecord
    export: ExportRecord
    engine: EngineRecord
    files: dict[PlainName, FileRecord]
    versions: dict[str, str]
