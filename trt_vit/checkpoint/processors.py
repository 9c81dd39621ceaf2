"""What transformers' image processors do when a preprocessor_config.json leaves a setting out.

The files seldom hold every setting: the rest is in the class they name, or in the class that belongs to the model.
The values are the class attributes of transformers 5; a test compares them with the installed ones.
"""

from __future__ import annotations

from typing import Any, Final

_HALF: Final = (0.5, 0.5, 0.5)
_CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)

# Pillow's numbers for its filters.
_BILINEAR: Final = 2
_BICUBIC: Final = 3

COMMON: Final[dict[str, Any]] = {"rescale_factor": 1 / 255, "default_to_square": True, "do_center_crop": False}
_EVERY_STEP: Final[dict[str, Any]] = COMMON | {"do_resize": True, "do_rescale": True, "do_normalize": True}

_VIT: Final = _EVERY_STEP | {
    "resample": _BILINEAR,
    "size": {"height": 224, "width": 224},
    "image_mean": _HALF,
    "image_std": _HALF,
}
_CLIP: Final = _EVERY_STEP | {
    "resample": _BICUBIC,
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
}

PROCESSORS: Final[dict[str, dict[str, Any]]] = {
    "ViTImageProcessor": _VIT,
    "DeiTImageProcessor": _VIT
    | {
        "resample": _BICUBIC,
        "size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
    },
    "BeitImageProcessor": _VIT | {"resample": _BICUBIC, "crop_size": {"height": 224, "width": 224}},
    "BitImageProcessor": _CLIP,
    "CLIPImageProcessor": _CLIP,
    "SiglipImageProcessor": _VIT | {"resample": _BICUBIC, "default_to_square": False},
    "ConvNextImageProcessor": _VIT
    | {
        "resample": _BICUBIC,
        "size": {"shortest_edge": 384},
        "default_to_square": False,
        "crop_pct": 224 / 256,
    },
}
"""The defaults of each processor that can be reproduced exactly, by the class's name without a backend's suffix."""

MODEL_PROCESSORS: Final[dict[str, str]] = {
    "beit": "BeitImageProcessor",
    "clip": "CLIPImageProcessor",
    "convnext": "ConvNextImageProcessor",
    "convnextv2": "ConvNextImageProcessor",
    "data2vec-vision": "BeitImageProcessor",
    "deit": "DeiTImageProcessor",
    "dinov2": "BitImageProcessor",
    "siglip": "SiglipImageProcessor",
    "swin": "ViTImageProcessor",
    "swinv2": "ViTImageProcessor",
    "vit": "ViTImageProcessor",
    "vit_msn": "ViTImageProcessor",
}
"""The processor that belongs to a model type, for files that name none."""
