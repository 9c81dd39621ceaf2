"""What can be set for each command; trt_vit/config.py says where the values come from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PlainValidator,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from trt_vit.engine.manifest import BatchProfile, BatchSize, Precision, RangeMethod, RuntimeName
from trt_vit.images.limits import FORMATS, MAX_BYTES, MAX_PIXELS, DecodeLimits, ImageFormat
from trt_vit.images.preprocessing import Decode
from trt_vit.outputs import RemoteOutput, parse_output
from trt_vit.parts import Part
from trt_vit.reading import quoted
from trt_vit.sources.urls import is_url

if TYPE_CHECKING:
    from trt_vit.outputs import Output

_CAPABILITY = re.compile(r"[0-9]+\.[0-9]")
_PART = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


def _parse_profile(value: object) -> object:
    """Read a batch profile from ``MIN,OPT,MAX``, or from a list of the three."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list):
        return value
    if len(parts) != len(BatchProfile.model_fields):
        raise ValueError(f"a batch profile is MIN,OPT,MAX, got {quoted(value)}")
    return dict(zip(BatchProfile.model_fields, parts, strict=True))


def _parse_capability(value: object) -> object:
    """Read a compute capability, which YAML takes for a number."""
    if value is not None and not _CAPABILITY.fullmatch(str(value)):
        raise ValueError("a compute capability is MAJOR.MINOR, as 8.9")
    return None if value is None else str(value)


def _parse_part(value: object) -> object:
    """Read a part of a run, ``I/N``."""
    if not isinstance(value, str):
        return value
    found = _PART.fullmatch(value)
    if found is None:
        raise ValueError("a part is I/N with I from 1 to N")
    return Part(int(found[1]), int(found[2]))


def _parse_formats(value: object) -> object:
    """Read formats from ``jpeg,png``, or from a list."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


def _parse_output(value: object) -> Output:
    """Read where results go: a path or a URL."""
    if isinstance(value, (Path, RemoteOutput)):
        return value
    if not isinstance(value, str):
        raise ValueError("Input is not a path or URL")  # noqa: TRY004 - pydantic wants this one
    return parse_output(value)


def _parse_metrics(value: object) -> object:
    """Refuse a URL, of which a path would make a directory."""
    if isinstance(value, str) and is_url(value):
        raise ValueError("metrics go to a file on this machine, not to a URL")
    return value


class Settings(BaseModel):
    """Base of the settings of a command.

    Attributes:
        section: Name of the command's section in config.yaml.
        paths: Keys whose values are paths; in a file they are relative to that file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    section: ClassVar[str]
    paths: ClassVar[frozenset[str]]

    @field_validator("*", mode="before")
    @classmethod
    def _yes_and_no_only_where_they_mean_something(cls, value: object, info: ValidationInfo) -> object:
        """Refuse YAML's booleans where they would pass for the integers 0 and 1."""
        wants_bool = cls.model_fields[info.field_name or ""].annotation is bool
        if isinstance(value, bool) and not wants_bool:
            raise ValueError("yes and no mean nothing here")
        return value


class BuildSettings(Settings):
    """Settings of ``trt-vit build-engine``; an engine recipe holds the same keys.

    Attributes:
        source: Checkpoint directory, .onnx file or Hugging Face id. In a recipe, a path starts with ``./``, ``../``,
            ``/`` or ``~``; anything else is an id.
        revision: Commit, tag or branch of a Hugging Face id.
        output: Directory of the bundle; engines/built/<source>-<precision>-<runtime> where it is not given.
        precision: Precision of the engine.
        runtime: Runtime the engine is for; ``auto`` is the best one that is installed.
        batch: Batch sizes the engine is for: smallest, usual, largest. 1,8,32 where it is not given.
        calibration: Directory of images that the ranges of an INT8 or FP8 engine are measured on.
        calibration_images: How many of them are used, the same share of each of its folders.
        min_agreement: How often an INT8 or FP8 engine is to have the same top-1 as fp32, 0 to 1, on calibration images
            that are held back for that; layers stay in floating point until it has. 0 quantizes whatever can be.
        ranges: Where the range of a tensor ends: ``error`` (of the layers that read it), ``max``, ``percentile``,
            ``entropy`` or ``mse``.
        quantize_attention: Whether TensorRT's INT8 engines compute attention in INT8 too, where accuracy allows.
        compute_capability: GPU generation that TensorRT for RTX builds for, as ``8.9``; every one from Ampere on where
            it is not given. No GPU is needed either way.
        preprocessor: A preprocessor_config.json to use in place of the checkpoint's own.
        labels: A text file with one label a line, to use in place of the checkpoint's own.
        lanes: Batches that a TensorRT engine can have in flight at once; each costs memory for its activations.
        workspace_gib: Most memory in GiB that a layer's kernels may use while they run; all there is where not given.
        optimization_level: How hard TensorRT searches for kernels, 0 to 5; its own default where it is not given.
        aux_streams: Streams that TensorRT may spread one batch over; none where several lanes run side by side.
        version_compatible: Whether later versions of TensorRT are to load the plan.
        hardware_compatible: Whether later GPU generations (Ampere and up) are to load the plan.
        cache: Directory of built plans and TensorRT's measurements; ``~/.cache/trt-vit`` where it is not given.
    """

    section = "build"
    paths = frozenset({"source", "output", "preprocessor", "labels", "calibration", "cache"})

    source: str
    revision: str | None = None
    output: Path | None = None
    precision: Precision = "fp32"
    runtime: Literal["auto", RuntimeName] = "auto"
    batch: Annotated[BatchProfile | None, BeforeValidator(_parse_profile)] = None
    calibration: Path | None = None
    calibration_images: PositiveInt = 512
    min_agreement: Annotated[float, Field(ge=0, le=1)] = 0.98
    ranges: RangeMethod = "error"
    quantize_attention: bool = False
    compute_capability: Annotated[str, BeforeValidator(_parse_capability)] | None = None
    preprocessor: Path | None = None
    labels: Path | None = None
    lanes: Annotated[int, Field(gt=0, le=64)] = 2
    workspace_gib: Annotated[float, Field(gt=0, le=1024)] | None = None
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    aux_streams: Annotated[int, Field(ge=0, le=128)] | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    cache: Path | None = None


class ClassifySettings(Settings):
    """Settings of ``trt-vit classify``; a pipeline recipe holds the same keys.

    Attributes:
        inputs: Images, directories, archives of images, lists, globs, or URLs of these.
        output: File of the results: .jsonl, .csv or .parquet; a path or a URL.
        top_k: Labels an image; capped at the number of classes.
        batch_size: Images a batch; the bundle's usual batch size where it is not given.
        lanes: Batches in flight; the runtime's own choice where it is not given.
        decode_threads: Threads that read, decode and preprocess; one a core where it is not given.
        decode: Where JPEGs are decoded for an engine on a GPU: ``exact`` on the CPU, to Pillow's pixels, or ``fast`` on
            the GPU, to pixels close to those.
        gpus: GPUs to use at most; all that are like the first where it is not given.
        max_failures: Failed images above which the command ends with exit code 3; any number is fine where not given.
        resume: Whether to go on with what an earlier run of the same has done.
        shard: Which part of the run to do where several processes share it, I/N with I from 1 to N; all of it where
            not given.
        shard_size: Images that are written and committed together.
        distributed: What spreads the run over machines, ``ray``; this process alone where not given.
        ray_address: Address of the Ray cluster; the variable RAY_ADDRESS where not given, and without either one is
            started on this machine. There, ``decode_threads`` are of each task that decodes, one where not given.
        metrics: File that tells how the run is doing, as OpenMetrics text; none where not given.
        formats: Formats of images that are decoded: jpeg, png, webp, bmp, tiff, gif. A list, or with commas between.
        max_pixels: Largest number of pixels of an image.
        max_file_bytes: Largest file.
        decode_workers: Processes that decode, so that a crash of a decoder costs one row; 0 decodes in threads.
        decode_seconds: How long decoding an image may take, at most a day; it needs such processes.
        decode_memory_mib: Memory that decoding an image may take in such a process.
    """

    section = "classify"
    paths = frozenset({"inputs", "output", "metrics"})

    inputs: Annotated[list[str], Field(min_length=1)]
    output: Annotated[Path | RemoteOutput, PlainValidator(_parse_output)]
    top_k: PositiveInt = 5
    batch_size: BatchSize | None = None
    lanes: Annotated[int, Field(gt=0, le=1024)] | None = None
    decode_threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    decode: Decode = "exact"
    gpus: PositiveInt | None = None
    max_failures: NonNegativeInt | None = None
    resume: bool = True
    shard: Annotated[Part | None, BeforeValidator(_parse_part)] = None
    shard_size: PositiveInt = 1024
    distributed: Literal["ray"] | None = None
    ray_address: str | None = None
    metrics: Annotated[Path | None, BeforeValidator(_parse_metrics)] = None
    formats: Annotated[frozenset[ImageFormat], Field(min_length=1), BeforeValidator(_parse_formats)] = FORMATS
    max_pixels: Annotated[int, Field(gt=0, le=MAX_PIXELS)] = MAX_PIXELS
    max_file_bytes: Annotated[int, Field(gt=0, le=MAX_BYTES)] = MAX_BYTES
    decode_workers: NonNegativeInt = 0
    decode_seconds: Annotated[float, Field(gt=0, le=24 * 3600, allow_inf_nan=False)] | None = None
    decode_memory_mib: Annotated[int, Field(gt=0, le=2**24)] = 2048

    @field_validator("decode_seconds", mode="after")
    @classmethod
    def _only_workers_can_be_stopped(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and not info.data.get("decode_workers"):
            raise ValueError("only worker processes can be stopped: set decode_workers too")
        return value

    @property
    def limits(self) -> DecodeLimits:
        """What an image may be and take."""
        return DecodeLimits(self.formats, self.max_pixels, self.max_file_bytes, self.decode_seconds)
