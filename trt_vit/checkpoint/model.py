"""Weights in the Hugging Face layout, loaded as the torch module they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trt_vit.checkpoint.files import needs_export_extra, quiet, read_json_object, sha256_of
from trt_vit.errors import CheckpointError
from trt_vit.reading import plain, quoted

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from trt_vit.checkpoint.source import Checkpoint

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_ANY_SIZE = frozenset({"convnext", "convnextv2", "dinov2", "dinov2_with_registers"})
"""Model types that take any image size by themselves: what ``image_size`` says is only what they were trained with."""
_REACHES_OUT = (
    "auto_map",
    "_attn_implementation",
    "attn_implementation",
    "_experts_implementation",
    "experts_implementation",
    "transformers_weights",
    "quantization_config",
)
"""Keys that make transformers run code from elsewhere, or read other weights than those that were hashed."""
_HARMLESS: tuple[object, ...] = (None, {}, "eager", "sdpa", "flash_attention_2")
_MOST_LAYERS = 1000
_CONFUSED = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""What transformers raises at a config.json that makes no sense."""
_LONGEST_REASON = 500
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Model:
    """A classifier, ready to be exported.

    Attributes:
        module: The model in float32 and evaluation mode, with the eager attention of transformers.
        architecture: Its class, such as ViTForImageClassification.
        model_type: ``model_type`` of its configuration, such as vit.
        image_size: Height and width in pixels that its position embeddings are made for, or None where any will do.
        parameters: How many weights it has.
        weights_sha256: SHA-256 of its safetensors files, one after the other in the order of their names.
    """

    module: torch.nn.Module
    architecture: str
    model_type: str
    image_size: tuple[int, int] | None
    parameters: int
    weights_sha256: str


def read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read config.json and refuse early what cannot be a classifier, before any weight is read.

    No family is refused by its name: whatever transformers loads as an image classifier is, because its exported graph
    is compared with it and its preprocessing must be known. ViT, DeiT, BEiT, DINOv2, Swin and SigLIP are tested.

    Raises:
        CheckpointError: config.json is malformed, is timm's, needs code of its repository, or has no classifier.
    """
    path = checkpoint.path / "config.json"
    config = read_json_object(path)
    if "pretrained_cfg" in config:
        raise CheckpointError(
            f"{path}: a timm checkpoint", hint="export it to ONNX with timm, then pass the .onnx file instead"
        )
    for key in _REACHES_OUT:
        if _asks(config, key):
            raise CheckpointError(
                f"{path}: {key} asks to run code or to read weights from elsewhere, which trt-vit never does",
                hint="use a checkpoint of an architecture that transformers has, or export it to ONNX yourself",
            )
    for part in _parts(config):
        if not _is_count(part.get("num_hidden_layers", 1)):
            message = f"{path}: num_hidden_layers is {quoted(part['num_hidden_layers'])}, not a number of layers"
            raise CheckpointError(message, hint="repair the file")
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(
            f"{path}: no model_type", hint="pass a directory that save_pretrained of transformers wrote"
        )
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list):
        raise CheckpointError(f"{path}: architectures is not a list", hint="repair the file")
    if architectures and not any("ForImageClassification" in str(name) for name in architectures):
        raise _no_classifier(path, f"its architecture is {plain(str(architectures[0]))[:_LONGEST_REASON]}")
    return config


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """A configuration and those in it, of its vision tower for one."""
    return [config, *(part for value in config.values() if isinstance(value, dict) for part in _parts(value))]


def _asks(config: dict[str, Any], key: str) -> bool:
    return any(part.get(key) not in _HARMLESS for part in _parts(config))


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and 0 < value <= _MOST_LAYERS)


def load_model(checkpoint: Checkpoint) -> Model:
    """Load the weights of a checkpoint directory into the class its config.json names.

    Raises:
        CheckpointError: The checkpoint is not a complete image classifier in safetensors.
        EnvironmentFault: torch or transformers is missing.
    """
    read_config(checkpoint)
    files = _weight_files(checkpoint)
    module, report = _from_pretrained(checkpoint.path)
    missing = sorted(report["missing_keys"])
    if missing:
        raise _no_classifier(checkpoint.path, f"it lacks {len(missing)} weights, among them {missing[0]}")
    module.eval()
    config = module.config
    return Model(
        module=module,
        architecture=type(module).__name__,
        model_type=config.model_type,
        image_size=_image_size(config),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        weights_sha256=sha256_of(files),
    )


def _from_pretrained(directory: Path) -> tuple[Any, dict[str, Any]]:
    with needs_export_extra():
        import torch
        from huggingface_hub.errors import StrictDataclassError
        from safetensors import SafetensorError
        from transformers import AutoModelForImageClassification
        from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with quiet():
            module, report = AutoModelForImageClassification.from_pretrained(
                directory,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
            )
    except (*_CONFUSED, StrictDataclassError, SafetensorError) as error:
        reason = plain(next(iter(str(error).strip().splitlines()), type(error).__name__))[:_LONGEST_REASON]
        raise CheckpointError(
            f"{directory}: transformers cannot load it as an image classifier: {reason}",
            hint="check config.json and download the weights again",
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    return module, report


def _weight_files(checkpoint: Checkpoint) -> list[Path]:
    """The safetensors files that transformers will read, in the order of their names."""
    directory = checkpoint.path
    if (directory / _WEIGHTS).is_file():
        return [directory / _WEIGHTS]
    if (directory / _INDEX).is_file():
        return _shards(directory)
    pickled = checkpoint.kind == "hub" or any((directory / name).exists() for name in _PICKLES)
    raise CheckpointError(
        f"{checkpoint.source}: no {_WEIGHTS}" + (", and pickled weights are never loaded" if pickled else ""),
        hint="where you trust the weights, convert them: "
        "AutoModelForImageClassification.from_pretrained(DIR).save_pretrained(NEW_DIR)",
    )


def _shards(directory: Path) -> list[Path]:
    index = directory / _INDEX
    weight_map = read_json_object(index).get("weight_map")
    names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    for name in names:
        if "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: {name!r} is not a safetensors file beside it", hint="repair the index")
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory}: {name} is missing", hint="download the checkpoint again")
    if not names:
        raise CheckpointError(f"{index}: no weight_map", hint="download the checkpoint again")
    return [directory / name for name in names]


def _image_size(config: Any) -> tuple[int, int] | None:
    if config.model_type in _ANY_SIZE:
        return None
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None)
    if size is None:
        return None
    if isinstance(size, int):
        return size, size
    if not isinstance(size, list | tuple) or [type(edge) for edge in size] != [int, int]:
        raise CheckpointError(f"image_size is {quoted(size)}, not a number or two", hint="repair config.json")
    height, width = size
    return height, width


def _no_classifier(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: not a trained image classifier: {why}",
        hint="fine-tune it first, or pick a checkpoint whose architecture is a *ForImageClassification",
    )
