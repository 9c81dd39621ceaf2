"""Tiny checkpoints with random weights, one builder for each architecture, in the Hugging Face layout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = 7
ARCHITECTURES = ("vit", "deit", "deit-distilled", "beit", "dinov2", "dinov2-registers", "swin", "siglip")

_ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
# As published: trained with larger images than the preprocessing gives, so position embeddings are interpolated.
_DINO = {key: value for key, value in _ENCODER.items() if key != "intermediate_size"} | {
    "image_size": 56,
    "mlp_ratio": 2,
}
_SWIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 1],
    "num_heads": [2, 4],
    "window_size": 4,
}
_CLASS_NAMES = {
    "vit": ("ViTConfig", "ViTForImageClassification", "ViTImageProcessor"),
    "deit": ("DeiTConfig", "DeiTForImageClassification", "DeiTImageProcessor"),
    "deit-distilled": ("DeiTConfig", "DeiTForImageClassificationWithTeacher", "DeiTImageProcessor"),
    "beit": ("BeitConfig", "BeitForImageClassification", "BeitImageProcessor"),
    "dinov2": ("Dinov2Config", "Dinov2ForImageClassification", "BitImageProcessor"),
    "dinov2-registers": (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersForImageClassification",
        "BitImageProcessor",
    ),
    "swin": ("SwinConfig", "SwinForImageClassification", "ViTImageProcessor"),
    "siglip": ("SiglipConfig", "SiglipForImageClassification", "SiglipImageProcessor"),
}


def random_checkpoint(architecture: str, directory: Path, **overrides: Any) -> Path:
    """Write a checkpoint of one of ARCHITECTURES and return its directory.

    Args:
        architecture: One of ARCHITECTURES.
        directory: Where to write config.json, model.safetensors and preprocessor_config.json; made if missing.
        **overrides: Configuration values other than the tiny ones; ``num_labels`` is CLASSES and the weights' seed 0.
    """
    import torch  # of the export extra, which not every test needs
    import transformers

    config_name, model_name, processor = _CLASS_NAMES[architecture]
    config = getattr(transformers, config_name)(**_config(architecture, overrides))
    torch.manual_seed(0)
    model = getattr(transformers, model_name)(config)
    for parameter in model.parameters():  # the initial biases, class tokens and scales of 0 and 1 would hide mistakes
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    size = overrides.get("image_size", _ENCODER["image_size"])
    write_preprocessor(directory, image_processor_type=processor, **_processing(processor, size))
    return directory


def write_preprocessor(directory: Path, **settings: Any) -> Path:
    """Write a preprocessor_config.json with exactly these settings."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "preprocessor_config.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path


def _config(architecture: str, overrides: dict[str, Any]) -> dict[str, Any]:
    labels = {"id2label": {index: f"kind {index}" for index in range(CLASSES)}}
    if architecture == "siglip":
        text = {key: _ENCODER[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size")}
        return {
            "vision_config": _ENCODER | overrides,
            "text_config": text | {"num_hidden_layers": 1, "vocab_size": 20},
        } | labels
    base = {"swin": _SWIN, "dinov2": _DINO, "dinov2-registers": _DINO}.get(architecture, _ENCODER)
    bias = {"use_relative_position_bias": True} if architecture == "beit" else {}
    return labels | base | bias | overrides


def _processing(processor: str, size: int | list[int]) -> dict[str, Any]:
    height, width = (size, size) if isinstance(size, int) else size
    box = {"height": height, "width": width}
    if processor == "DeiTImageProcessor":
        return {"size": {"height": height + 4, "width": width + 4}, "crop_size": box}
    if processor == "BitImageProcessor":
        return {"size": {"shortest_edge": min(height, width) + 4}, "crop_size": box}
    return {"size": box}
