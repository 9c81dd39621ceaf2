"""A ViT-B/16 to measure with: speed does not depend on what its weights are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

if TYPE_CHECKING:
    from pathlib import Path


def write_checkpoint(directory: Path, **others: Any) -> Path:
    """Write a ViT-B/16 with seeded random weights in the Hugging Face layout.

    Args:
        directory: Where to.
        others: What a smaller one has in place of ViT-B/16's dimensions, as ``ViTConfig`` takes it.
    """
    torch.manual_seed(0)
    config = ViTConfig(id2label={index: f"class {index}" for index in range(1000)}, **others)
    ViTForImageClassification(config).save_pretrained(directory)
    ViTImageProcessorPil().save_pretrained(directory)
    return directory
