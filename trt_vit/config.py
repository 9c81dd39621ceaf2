"""Settings of each command, and the one rule of where they come from.

A flag wins over an environment variable ``TRT_VIT_<KEY>``, that over a recipe, that over ``config.yaml``, that over the
default. A key that means nothing is an error wherever it stands: a typo must not silently run with a default.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from trt_vit.engine.manifest import BatchProfile, BatchSize, Precision, RangeMethod, RuntimeName
from trt_vit.errors import UsageError
from trt_vit.images.limits import FORMATS, MAX_BYTES, MAX_PIXELS, DecodeLimits, ImageFormat
from trt_vit.images.preprocessing import Decode
from trt_vit.outputs import RemoteOutput, parse_output
from trt_vit.parts import Part
from trt_vit.reading import quoted, read_file
from trt_vit.sources.urls import STANDARD_INPUT, is_url
from trt_vit.strict_yaml import parse_yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trt_vit.outputs import Output

CONFIG_FILE = "config.yaml"
_PREFIX = "TRT_VIT_"
_CONFIG_VARIABLE = "TRT_VIT_CONFIG"
_MOST_BYTES = 2**18
_LONGEST_KEY = 80
_RECIPE_SUFFIXES = (".yaml", ".yml")
_CAPABILITY = re.compile(r"[0-9]+\.[0-9]")
_PART = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")
_ARGUMENTS = {"source": "SOURCE", "inputs": "INPUT"}
_NOT_VARIABLES = frozenset({*_ARGUMENTS, "output"})
"""What one command works on is no setting of the machine: it comes from the command line or a recipe."""


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


def _parse_output(value: object) -> Output:
    """Read where results go: a path or a URL."""
    if isinstance(value, (Path, RemoteOutput)):
        return value
    if not isinstance(value, str):
        raise ValueError("Input is not a path or URL")  # noqa: TRY004 - pydantic wants this one
    return parse_output(value)


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
        formats: Formats of images that are decoded: jpeg, png, webp, bmp, tiff, gif.
        max_pixels: Largest number of pixels of an image.
        max_file_bytes: Largest file.
        decode_workers: Processes that decode, so that a crash of a decoder costs one row; 0 decodes in threads.
        decode_seconds: How long decoding an image may take; it needs such processes.
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
    metrics: Path | None = None
    formats: Annotated[frozenset[ImageFormat], Field(min_length=1)] = FORMATS
    max_pixels: Annotated[int, Field(gt=0, le=MAX_PIXELS)] = MAX_PIXELS
    max_file_bytes: Annotated[int, Field(gt=0, le=MAX_BYTES)] = MAX_BYTES
    decode_workers: NonNegativeInt = 0
    decode_seconds: PositiveFloat | None = None
    decode_memory_mib: PositiveInt = 2048

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


_SECTIONS: tuple[type[Settings], ...] = (BuildSettings, ClassifySettings)
_S = TypeVar("_S", bound=Settings)


@dataclass(frozen=True)
class _Layer:
    """Settings from one place, and how that place names a key in a message."""

    values: Mapping[str, Any]
    where: str
    spell: Callable[[str], str] = str


def resolve(
    settings: type[_S],
    flags: Mapping[str, Any],
    *,
    recipe: Path | None = None,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> _S:
    """Return a command's settings from all the places they can come from.

    Args:
        settings: Which command's settings.
        flags: Values given on the command line; None for a flag that was not.
        recipe: A recipe file, if one was given.
        config: The config file, or None for the one TRT_VIT_CONFIG names, or ./config.yaml where there is one.
        environment: Environment variables; the process's own where not given.

    Raises:
        UsageError: A file cannot be read, a key means nothing, or a value does not fit; the message names its place.
    """
    variables = os.environ if environment is None else environment
    layers = [
        _Layer({key: value for key, value in flags.items() if value is not None}, "command line", _flag),
        _environment_layer(settings, variables),
        _recipe_layer(settings, recipe),
        _config_layer(settings, config, variables),
    ]
    merged: dict[str, Any] = {}
    origin: dict[str, _Layer] = {}
    for layer in reversed(layers):
        for key, value in layer.values.items():
            merged[key], origin[key] = value, layer
    try:
        return settings.model_validate(merged)
    except ValidationError as error:
        raise _usage_error(error, origin) from error


def resolve_source(settings: type[_S], source: str, flags: Mapping[str, Any], *, config: Path | None = None) -> _S:
    """Return the settings of a command whose SOURCE may be a recipe.

    Args:
        settings: Which command's settings.
        source: A recipe, known by its suffix, or the source itself.
        flags: As for ``resolve``.
        config: As for ``resolve``.

    Raises:
        UsageError: As for ``resolve``.
    """
    if source.lower().endswith(_RECIPE_SUFFIXES):
        return resolve(settings, flags, recipe=Path(source), config=config)
    return resolve(settings, {**flags, "source": source}, config=config)


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _variable(key: str) -> str:
    return f"{_PREFIX}{key.upper()}"


def _usage_error(error: ValidationError, origin: Mapping[str, _Layer]) -> UsageError:
    detail = error.errors(include_url=False)[0]
    key = str(detail["loc"][0])
    layer = origin.get(key)
    if layer is None:
        spelled = _ARGUMENTS.get(key) or _flag(key)
        return UsageError(f"{spelled} is missing", hint="give it on the command line or in a recipe")
    reason = detail["msg"].removeprefix("Value error, ").replace("valid path for <class 'pathlib.Path'>", "path")
    message = f"{layer.where}: {layer.spell(key)}: {reason}, got {quoted(detail['input'])}"
    return UsageError(message, hint="see trt-vit COMMAND --help for the values it takes")


def _environment_layer(settings: type[Settings], variables: Mapping[str, str]) -> _Layer:
    known = {_variable(key): key for section in _SECTIONS for key in section.model_fields if key not in _NOT_VARIABLES}
    values: dict[str, str] = {}
    for variable, value in variables.items():
        if not variable.startswith(_PREFIX) or variable == _CONFIG_VARIABLE:
            continue
        if variable not in known:
            message = f"environment variable {variable} means nothing"
            raise UsageError(message, hint=_suggest(variable, [*known, _CONFIG_VARIABLE]))
        if known[variable] in settings.model_fields:
            values[known[variable]] = value
    return _Layer(values, "environment", _variable)


def _recipe_layer(settings: type[Settings], recipe: Path | None) -> _Layer:
    if recipe is None:
        return _Layer({}, "recipe")
    values = _read_yaml(recipe)
    _refuse_unknown(values, settings.model_fields, recipe)
    return _Layer(_resolve_paths(settings, values, recipe), str(recipe))


def _config_layer(settings: type[Settings], config: Path | None, variables: Mapping[str, str]) -> _Layer:
    if config is None and _CONFIG_VARIABLE in variables:
        config = Path(variables[_CONFIG_VARIABLE])
    if config is None and not Path(CONFIG_FILE).is_file():
        return _Layer({}, CONFIG_FILE)
    file = config or Path(CONFIG_FILE)
    document = _read_yaml(file)
    _refuse_unknown(document, [section.section for section in _SECTIONS], file)
    for section in _SECTIONS:
        values = {} if document.get(section.section) is None else document[section.section]
        if not isinstance(values, dict):
            raise UsageError(f"{file}: {section.section} is not a mapping", hint="write its keys as `key: value` lines")
        _refuse_unknown(values, section.model_fields, file, f"{section.section}.")
    values = document.get(settings.section) or {}
    return _Layer(_resolve_paths(settings, values, file), str(file), lambda key: f"{settings.section}.{key}")


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        document = parse_yaml(read_file(file, _MOST_BYTES))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", hint="check the path") from error
    except ValueError as error:
        message = f"{file} is not YAML: {error}"
        raise UsageError(message, hint="correct the file") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"{file} is not a mapping of keys to values", hint="write it as `key: value` lines")
    return {str(key): value for key, value in document.items()}


def _refuse_unknown(values: Mapping[str, Any], known: Any, file: Path, prefix: str = "") -> None:
    for key in values:
        if key not in known:
            name = str(key)[:_LONGEST_KEY]
            raise UsageError(f"{file}: key {prefix}{name} means nothing", hint=_suggest(name, list(known)))


def _suggest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"


def _resolve_paths(settings: type[Settings], values: Mapping[str, Any], file: Path) -> dict[str, Any]:
    return {key: _resolve_path(key, value, file) if key in settings.paths else value for key, value in values.items()}


def _resolve_path(key: str, value: Any, file: Path) -> Any:
    """Return a path that stands in ``file`` as seen from the working directory; what is no path stays as it is."""
    if isinstance(value, list):
        return [_resolve_path(key, item, file) for item in value]
    if value == "":
        raise UsageError(f"{file}: {key} holds an empty path", hint="write a path or leave the key out")
    if not isinstance(value, str) or (key == "source" and not value.startswith(("./", "../", "/", "~"))):
        return value
    if is_url(value) or (key == "inputs" and value == STANDARD_INPUT):
        return value
    # A glob may stand among the inputs, and the recipe's own directory is no part of its pattern.
    base = glob.escape(str(file.parent)) if key == "inputs" and glob.has_magic(value) else str(file.parent)
    return os.path.join(base, os.path.expanduser(value))  # noqa: PTH111, PTH118 - a pattern is not a path
