from __future__ import annotations

import importlib
from typing import Any

import pytest

from trt_vit.checkpoint.processors import MODEL_PROCESSORS, PROCESSORS

pytest.importorskip("transformers", reason="needs the export extra")

MODULES = {
    "ViTImageProcessor": "vit",
    "DeiTImageProcessor": "deit",
    "BeitImageProcessor": "beit",
    "BitImageProcessor": "bit",
    "CLIPImageProcessor": "clip",
    "SiglipImageProcessor": "siglip",
    "ConvNextImageProcessor": "convnext",
}
SETTINGS = [
    "do_resize",
    "size",
    "resample",
    "default_to_square",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_pad",
    "crop_pct",
]


def _comparable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("name", PROCESSORS)
def test_defaults_are_the_class_attributes_of_transformers(name: str) -> None:
    module = importlib.import_module(f"transformers.models.{MODULES[name]}.image_processing_pil_{MODULES[name]}")
    processor = getattr(module, f"{name}Pil")
    installed = {key: _comparable(getattr(processor, key, None)) for key in SETTINGS}
    ours = {key: PROCESSORS[name].get(key) for key in SETTINGS}
    assert ours == {**installed, "do_center_crop": bool(installed["do_center_crop"])}


@pytest.mark.parametrize("model_type", MODEL_PROCESSORS)
def test_processor_of_a_model_type_is_that_of_transformers(model_type: str) -> None:
    names = importlib.import_module("transformers.models.auto.image_processing_auto").IMAGE_PROCESSOR_MAPPING_NAMES
    assert names[model_type]["pil"] == f"{MODEL_PROCESSORS[model_type]}Pil"
