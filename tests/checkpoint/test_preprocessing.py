from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.support.checkpoints import write_preprocessor
from trt_vit.checkpoint.preprocessing import read_preprocessing
from trt_vit.errors import CheckpointError
from trt_vit.images.preprocessing import Preprocessing, ShortestEdge, Squash

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The file of google/vit-base-patch16-224, which names neither a class nor a filter.
GOOGLE_VIT: dict[str, Any] = {
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "size": 224,
}
# The file of facebook/deit-base-patch16-224, with sizes as numbers.
FACEBOOK_DEIT: dict[str, Any] = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "DeiTFeatureExtractor",
    "image_mean": list(IMAGENET_MEAN),
    "image_std": list(IMAGENET_STD),
    "resample": 3,
    "size": 256,
}


def read(directory: Path, model_type: str | None = None, **settings: Any) -> Preprocessing:
    return read_preprocessing(write_preprocessor(directory, **settings), model_type=model_type)


def test_google_vit_takes_the_defaults_of_its_model_type(tmp_path: Path) -> None:
    assert read(tmp_path, "vit", **GOOGLE_VIT) == Preprocessing(
        resize=Squash(size=(224, 224)), filter="bilinear", rescale=1 / 255, mean=HALF, std=HALF
    )


def test_facebook_deit_with_sizes_as_numbers(tmp_path: Path) -> None:
    assert read(tmp_path, "deit", **FACEBOOK_DEIT) == Preprocessing(
        resize=Squash(size=(256, 256)),
        filter="bicubic",
        crop=(224, 224),
        rescale=1 / 255,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def test_named_class_goes_before_the_model_type(tmp_path: Path) -> None:
    swin = read(tmp_path, "dinov2", image_processor_type="ViTImageProcessor", resample=3)
    assert (swin.resize, swin.filter, swin.mean) == (Squash(size=(224, 224)), "bicubic", HALF)


@pytest.mark.parametrize("suffix", ["", "Fast", "Pil"])
def test_suffix_of_the_backend_does_not_matter(suffix: str, tmp_path: Path) -> None:
    got = read(tmp_path, image_processor_type=f"BitImageProcessor{suffix}", size={"shortest_edge": 256})
    assert (got.resize, got.crop, got.filter) == (ShortestEdge(edge=256), (224, 224), "bicubic")


@pytest.mark.parametrize(
    ("name", "size", "resize"),
    [
        ("ViTImageProcessor", 32, Squash(size=(32, 32))),
        ("ViTImageProcessor", [32, 48], Squash(size=(32, 48))),
        ("ViTImageProcessor", {"height": 32, "width": 48}, Squash(size=(32, 48))),
        ("ViTImageProcessor", {"shortest_edge": 32}, ShortestEdge(edge=32)),
        ("ViTImageProcessor", {"shortest_edge": 32, "longest_edge": None}, ShortestEdge(edge=32)),
        ("CLIPImageProcessor", 32, ShortestEdge(edge=32)),
        ("CLIPFeatureExtractor", None, ShortestEdge(edge=224)),
    ],
)
def test_spellings_of_size(name: str, size: Any, resize: Squash | ShortestEdge, tmp_path: Path) -> None:
    assert read(tmp_path, image_processor_type=name, size=size).resize == resize


@pytest.mark.parametrize(
    ("number", "name"),
    [(0, "nearest"), (1, "lanczos"), (2, "bilinear"), (3, "bicubic"), (4, "box"), (5, "hamming")],
)
def test_filters_have_the_numbers_of_pillow(number: int, name: str, tmp_path: Path) -> None:
    assert read(tmp_path, "vit", resample=number).filter == name
    assert Image.Resampling(number).name.lower() == name


def test_steps_can_be_off(tmp_path: Path) -> None:
    off = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False}
    assert read(tmp_path, "clip", **off) == Preprocessing(resize=None, filter="bicubic", rescale=None)


def test_rescale_factor_and_one_mean_for_all_channels(tmp_path: Path) -> None:
    got = read(tmp_path, "vit", rescale_factor=1 / 127.5, image_mean=1.0, image_std=[1, 1, 1])
    assert (got.rescale, got.mean, got.std) == (1 / 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))


def test_convnext_crops_below_384_pixels(tmp_path: Path) -> None:
    got = read(tmp_path, "convnext", size=224, crop_pct=0.95)
    assert (got.resize, got.crop) == (ShortestEdge(edge=235), (224, 224))


def test_convnext_squashes_from_384_pixels(tmp_path: Path) -> None:
    got = read(tmp_path, "convnext", size={"shortest_edge": 384}, crop_pct=0.95)
    assert (got.resize, got.crop) == (Squash(size=(384, 384)), None)


def test_nested_processor_config_goes_first(tmp_path: Path) -> None:
    write_preprocessor(tmp_path, image_processor_type="ViTImageProcessor", size=64)
    nested = {"image_processor": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert read_preprocessing(tmp_path, model_type=None).resize == Squash(size=(32, 32))
    assert read_preprocessing(tmp_path / "preprocessor_config.json", model_type=None).resize == Squash(size=(64, 64))


def test_processor_config_without_image_processor_is_passed_over(tmp_path: Path) -> None:
    write_preprocessor(tmp_path, image_processor_type="ViTImageProcessor", size=64)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "SiglipProcessor"}')
    assert read_preprocessing(tmp_path, model_type=None).resize == Squash(size=(64, 64))


def test_complete_file_needs_no_class(tmp_path: Path) -> None:
    got = read(tmp_path, **GOOGLE_VIT, do_rescale=True, resample=3)
    assert got == Preprocessing(resize=Squash(size=(224, 224)), filter="bicubic", rescale=1 / 255, mean=HALF, std=HALF)


def test_incomplete_file_without_class_names_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="leaves out resample, do_rescale") as caught:
        read(tmp_path, "unheard-of", **GOOGLE_VIT)
    assert "image_processor_type" in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"longest_edge": 224}}, "size is {'longest_edge': 224}"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "longest_edge"),
        ({"size": {"max_height": 224, "max_width": 224}}, "max_height"),
        ({"size": {"height": 224}}, "size is {'height': 224}"),
        ({"size": {"height": 224, "width": 0}}, "size has 0"),
        ({"size": 224.5}, "size is 224.5"),
        ({"size": True}, "size has True"),
        ({"size": [224]}, r"size is \[224\]"),
        ({"do_center_crop": True}, "crop_size is None"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 224}}, "crop_size needs height and width"),
        ({"do_pad": True, "pad_size": 224}, "do_pad is True"),
        ({"offset": 0.5}, "offset is 0.5"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order is True"),
        ({"crop_pct": 0.9}, "crop_pct is 0.9"),
        ({"data_format": "channels_last"}, "data_format is 'channels_last'"),
        ({"auto_map": {"AutoImageProcessor": "code.Processor"}}, "auto_map"),
        ({"resample": 6}, "resample is 6"),
        ({"resample": "bicubic"}, "resample is 'bicubic'"),
        ({"do_resize": 1}, "do_resize is 1"),
        ({"rescale_factor": 0}, "rescale is invalid"),
        ({"rescale_factor": "1/255"}, "rescale_factor has '1/255'"),
        ({"image_mean": [0.5, 0.5]}, "image_mean has 2 values"),
        ({"size": 2**14 + 1}, "size has 16385, not a number of pixels from 1 to 16384"),
        ({"size": {"height": 8, "width": 10**12}}, "size has 1000000000000, not a number of pixels"),
        ({"size": "x" * 10**6}, r"size is 'xxx.*\.\.\.xxx.*', not a number"),
        ({"a\x1b[31m\n": 3}, r"preprocessor_config.json: 'a\\x1b\[31m\\n' is 3"),
        ({"image_processor_type": "a\x1b[31m\n"}, r"the image processor 'a\\x1b\[31m\\n' is not supported"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 100}, "crop_pct": 1e-320},
            "crop_pct is 1e-320",
        ),
        ({"image_std": [0.5, 0.5, 0]}, "std.2 is invalid"),
        ({"image_processor_type": "LevitImageProcessor"}, "LevitImageProcessor is not supported"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"height": 9, "width": 9}}, "needs shortest_edge"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": 224, "crop_pct": 1.5}, "crop_pct is 1.5"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "do_center_crop": True, "crop_size": 224},
            "do_center_crop is true beside crop_pct",
        ),
    ],
)
def test_what_cannot_be_reproduced_is_an_error(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read(tmp_path, "vit", **settings)
    assert str(tmp_path / "preprocessor_config.json") in caught.value.message
    assert len(str(caught.value)) < 1000
    assert "--preprocessor FILE" in caught.value.hint


def test_switched_off_and_inert_keys_do_no_harm(tmp_path: Path) -> None:
    inert = {"do_pad": False, "do_convert_rgb": True, "do_reduce_labels": False, "data_format": "channels_first"}
    assert read(tmp_path, "vit", **inert, offset=None) == read(tmp_path, "vit")


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_malformed_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match="JSON") as caught:
        read_preprocessing(path, model_type="vit")
    assert str(path) in caught.value.message


def test_directory_without_preprocessor(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no preprocessor_config.json") as caught:
        read_preprocessing(tmp_path, model_type="vit")
    assert "--preprocessor FILE" in caught.value.hint


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_preprocessing(tmp_path / "other.json", model_type="vit")


def _apply(preprocessing: Preprocessing, image: Image.Image) -> NDArray[np.float64]:
    """The description carried out with Pillow and numpy, as float64 [3, height, width]."""
    size = (image.height, image.width)
    if isinstance(preprocessing.resize, Squash):
        size = preprocessing.resize.size
    elif preprocessing.resize is not None:
        short, edge = min(size), preprocessing.resize.edge
        size = (int(edge * size[0] / short), int(edge * size[1] / short))
    filters = {filter_.name.lower(): filter_ for filter_ in Image.Resampling}
    pixels = np.asarray(image.resize((size[1], size[0]), filters[preprocessing.filter])).astype(np.float64)
    if preprocessing.crop is not None:
        top, left = ((have - want) // 2 for have, want in zip(size, preprocessing.crop, strict=True))
        pixels = pixels[top : top + preprocessing.crop[0], left : left + preprocessing.crop[1]]
    if preprocessing.rescale is not None:
        pixels = pixels * preprocessing.rescale
    if preprocessing.mean is not None:
        pixels = (pixels - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    return pixels.transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        ("vit", {**GOOGLE_VIT, "image_processor_type": "ViTImageProcessor"}),
        ("vit", {"image_processor_type": "ViTImageProcessor", "resample": 1, "size": {"height": 20, "width": 31}}),
        ("vit", {"image_processor_type": "ViTImageProcessor", "do_normalize": False}),
        ("vit", {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "image_mean": 3.0}),
        ("vit", {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 40}}),
        ("vit", {"image_processor_type": "ViTImageProcessor", "do_center_crop": True, "crop_size": [31, 40]}),
        ("deit", {**FACEBOOK_DEIT, "image_processor_type": "DeiTImageProcessor"}),
        ("beit", {"image_processor_type": "BeitImageProcessor", "size": 64, "crop_size": 32, "do_center_crop": True}),
        ("bit", {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 45}, "crop_size": 32}),
        ("bit", {"image_processor_type": "BitImageProcessor"}),
        ("clip", {"image_processor_type": "CLIPImageProcessor", "size": 37, "crop_size": 32}),
        ("siglip", {"image_processor_type": "SiglipImageProcessor", "size": {"height": 48, "width": 48}}),
        ("convnext", {"image_processor_type": "ConvNextImageProcessor", "size": 32, "crop_pct": 0.9}),
        ("convnext", {"image_processor_type": "ConvNextImageProcessor"}),
    ],
)
def test_the_description_does_what_transformers_does(module: str, settings: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the export extra")
    name = f"{settings['image_processor_type']}Pil"
    processor_class = getattr(
        importlib.import_module(f"{transformers.__name__}.models.{module}.image_processing_pil_{module}"), name
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8))
    path = write_preprocessor(tmp_path, **settings)
    expected = processor_class.from_pretrained(tmp_path)(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(_apply(read_preprocessing(path, model_type=None), image), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": [0.5, 0.5, float("nan")]},
        {"image_mean": [10**400, 0.5, 0.5]},
        {"rescale_factor": float("inf")},
        {"rescale_factor": 10**400},
        {"size": 10**30},
    ],
)
def test_numbers_that_no_float_holds_are_errors(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a number of 64 bits") as caught:
        read(tmp_path, "vit", **settings)
    assert str(tmp_path / "preprocessor_config.json") in caught.value.message
