"""From a preprocessor_config.json to the exact steps it stands for, or an error where they cannot be reproduced."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trt_vit.checkpoint.files import read_json_object
from trt_vit.checkpoint.processors import COMMON, MODEL_PROCESSORS, PROCESSORS
from trt_vit.errors import CheckpointError
from trt_vit.images.preprocessing import MAX_EDGE, Filter, Preprocessing, ShortestEdge, Squash
from trt_vit.reading import quoted

if TYPE_CHECKING:
    from pathlib import Path

PREPROCESSOR_FILE = "preprocessor_config.json"
_PROCESSOR_FILE = "processor_config.json"

_FILTERS: dict[int, Filter] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_FLAGS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "default_to_square")
_SETTINGS = {*_FLAGS, "size", "resample", "crop_size", "rescale_factor", "image_mean", "image_std"}
# Keys that change nothing about how an RGB image becomes a tensor.
_INERT = {
    "image_processor_type", "feature_extractor_type", "processor_class", "model_input_names", "do_convert_rgb",
    "do_reduce_labels", "reduce_labels", "pad_size", "return_tensors", "device", "disable_grouping",
    "input_data_format", "image_seq_length", "_valid_processor_keys", "_valid_kwargs_names",
}  # fmt: skip
_CONVNEXT_SQUASH_FROM = 384
"""ConvNeXt's processor crops below this edge, in pixels, and squashes from it on."""
_LONGEST_KEY = 80
_NO_CLASS_NEEDS = ("do_resize", "size", "resample", "do_rescale", "do_normalize")


@dataclass(frozen=True)
class _Settings:
    """The settings of one file, completed with the defaults of its processor."""

    file: Path
    values: dict[str, Any]

    def error(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(
            f"{self.file}: {key} {problem}",
            hint=f"correct {key} in the file, or in a copy of it passed with --preprocessor FILE",
        )

    def on(self, key: str) -> bool:
        value = self.values[key]
        if not isinstance(value, bool):
            raise self.error(key, f"is {quoted(value)}, not true or false")
        return value


def read_preprocessing(path: Path, *, model_type: str | None) -> Preprocessing:
    """Read how a checkpoint wants its images.

    The semantics are those of the Pillow processors of transformers 5, which complete a file with the defaults of the
    class it names or, where it names none, of the class that belongs to the model. A setting that would change the
    pixels and is not understood is an error: a model fed slightly wrong images still answers, only worse.

    Args:
        path: A preprocessor_config.json, a processor_config.json with an ``image_processor`` in it, or a directory with
            one of them.
        model_type: ``model_type`` of the checkpoint's config.json, if there is one.

    Raises:
        CheckpointError: The file is missing, malformed, or asks for something that cannot be reproduced.
    """
    file, given = _find(path)
    settings = _complete(file, given, model_type)
    try:
        return _preprocessing(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise settings.error(key, f"is invalid: {first['msg']}") from error


def _find(path: Path) -> tuple[Path, dict[str, Any]]:
    """The file with the settings, and the settings: a nested image processor goes before a file of its own."""
    candidates = [path / _PROCESSOR_FILE, path / PREPROCESSOR_FILE] if path.is_dir() else [path]
    for file in candidates:
        if path.is_dir() and not file.is_file():
            continue
        content = read_json_object(file)
        nested = content.get("image_processor")
        if isinstance(nested, dict):
            return file, nested
        if file.name != _PROCESSOR_FILE:
            return file, content
    raise CheckpointError(
        f"{path}: no {PREPROCESSOR_FILE}, so how to prepare images is not known",
        hint="pass the preprocessor_config.json the model was trained with: --preprocessor FILE",
    )


def _complete(file: Path, given: dict[str, Any], model_type: str | None) -> _Settings:
    name = _processor_name(file, given, model_type)
    defaults = COMMON if name is None else PROCESSORS[name]
    present = {key: value for key, value in given.items() if value is not None}
    settings = _Settings(file, defaults | present)
    for key, value in present.items():
        if key in _SETTINGS or key in _INERT or key in defaults or value is False:
            continue
        if key == "data_format" and value == "channels_first":
            continue
        raise settings.error(_spelled(key), f"is {quoted(value)}, which cannot be reproduced")
    if name is None and (missing := [key for key in _NO_CLASS_NEEDS if key not in present]):
        raise CheckpointError(
            f"{file}: names no image processor and leaves out {', '.join(missing)}",
            hint=f'add "image_processor_type" to the file, one of {", ".join(PROCESSORS)}',
        )
    return settings


def _spelled(key: str) -> str:
    """Return a key that may be anything as a message names it."""
    return key if key.isidentifier() and len(key) <= _LONGEST_KEY else quoted(key)


def _processor_name(file: Path, given: dict[str, Any], model_type: str | None) -> str | None:
    """The class whose defaults apply, without the suffix of its backend, or None where nothing says which."""
    named = given.get("image_processor_type") or given.get("feature_extractor_type")
    if named is None:
        return MODEL_PROCESSORS.get(model_type or "")
    name = str(named).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if name not in PROCESSORS:
        raise CheckpointError(
            f"{file}: the image processor {_spelled(str(named))} is not supported",
            hint=f"describe its steps as one of {', '.join(PROCESSORS)} in a file passed with --preprocessor FILE",
        )
    return name


def _preprocessing(settings: _Settings) -> Preprocessing:
    values = settings.values
    resize, crop = _resize_and_crop(settings)
    normalize = settings.on("do_normalize")
    resample = values.get("resample", 2)
    if not isinstance(resample, int) or isinstance(resample, bool) or resample not in _FILTERS:
        raise settings.error("resample", f"is {quoted(resample)}, not one of Pillow's filters 0 to 5")
    return Preprocessing(
        resize=resize,
        filter=_FILTERS[resample],
        crop=crop,
        rescale=_number(settings, "rescale_factor", values["rescale_factor"]) if settings.on("do_rescale") else None,
        mean=_channels(settings, "image_mean") if normalize else None,
        std=_channels(settings, "image_std") if normalize else None,
    )


def _resize_and_crop(settings: _Settings) -> tuple[Squash | ShortestEdge | None, tuple[int, int] | None]:
    crop = _crop(settings) if settings.on("do_center_crop") else None
    if not settings.on("do_resize"):
        return None, crop
    size = _size(settings, "size", square=settings.on("default_to_square"))
    if "crop_pct" in settings.values:
        if crop is not None:
            raise settings.error("do_center_crop", "is true beside crop_pct, which crops by itself")
        return _convnext(settings, size)
    if isinstance(size, int):
        return ShortestEdge(edge=size), crop
    return Squash(size=size), crop


def _convnext(settings: _Settings, size: int | tuple[int, int]) -> tuple[Squash | ShortestEdge, tuple[int, int] | None]:
    """ConvNeXt's rule: up to 383 pixels a margin is resized to and cropped away, above the image is squashed."""
    if not isinstance(size, int):
        raise settings.error("size", "needs shortest_edge, as the processor has crop_pct")
    if size >= _CONVNEXT_SQUASH_FROM:
        return Squash(size=(size, size)), None
    crop_pct = _number(settings, "crop_pct", settings.values["crop_pct"])
    if not size / MAX_EDGE <= crop_pct <= 1:
        raise settings.error("crop_pct", f"is {crop_pct}, not above 0 and at most 1")
    return ShortestEdge(edge=int(size / crop_pct)), (size, size)


def _crop(settings: _Settings) -> tuple[int, int]:
    size = _size(settings, "crop_size", square=True)
    if isinstance(size, int):
        raise settings.error("crop_size", "needs height and width, not shortest_edge")
    return size


def _size(settings: _Settings, key: str, *, square: bool) -> int | tuple[int, int]:
    """A size in any of the spellings it has had: the pixels of the shorter side, or height and width."""
    value = settings.values.get(key)
    if isinstance(value, dict):
        sides = {side: pixels for side, pixels in value.items() if pixels is not None}
        if sides.keys() == {"shortest_edge"}:
            return _pixels(settings, key, sides["shortest_edge"])
        if sides.keys() == {"height", "width"}:
            return _pixels(settings, key, sides["height"]), _pixels(settings, key, sides["width"])
    elif isinstance(value, list) and len(value) == 2:  # noqa: PLR2004  # height and width
        return _pixels(settings, key, value[0]), _pixels(settings, key, value[1])
    elif isinstance(value, int):
        pixels = _pixels(settings, key, value)
        return (pixels, pixels) if square else pixels
    raise settings.error(key, f"is {quoted(value)}, not a number, height and width, or shortest_edge alone")


def _pixels(settings: _Settings, key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_EDGE:
        raise settings.error(key, f"has {quoted(value)}, not a number of pixels from 1 to {MAX_EDGE}")
    return value


def _channels(settings: _Settings, key: str) -> tuple[float, float, float]:
    value = settings.values.get(key)
    if not isinstance(value, list | tuple):
        value = [value] * 3
    if len(value) != 3:  # noqa: PLR2004  # red, green and blue
        raise settings.error(key, f"has {len(value)} values, not one for each of red, green and blue")
    red, green, blue = (_number(settings, key, channel) for channel in value)
    return red, green, blue


def _number(settings: _Settings, key: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise settings.error(key, f"has {quoted(value)}, not a number")
    return float(value)
