from __future__ import annotations

import io
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.images.samples import pixels
from tests.support.data import sample_photos
from trt_vit.errors import ArtifactError, ImageError
from trt_vit.images.decode import decode, read_image
from trt_vit.images.preprocess import Preprocessor, Span, crop_span, normalization_table, resized_size
from trt_vit.images.preprocessing import Preprocessing, ShortestEdge, Squash

if TYPE_CHECKING:
    from numpy.typing import NDArray

PHOTOS = sample_photos()

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}

ODD_SIZES = [(1, 1), (1, 50), (50, 1), (2, 90), (37, 53), (40, 40), (41, 40), (39, 41), (200, 17), (333, 500), (31, 32)]


def squash(height: int, width: int, **rest: Any) -> Preprocessing:
    return Preprocessing.model_validate({"resize": Squash(size=(height, width)), **rest})


def shortest_edge(edge: int, **rest: Any) -> Preprocessing:
    return Preprocessing.model_validate({"resize": ShortestEdge(edge=edge), **rest})


def resize_arguments(preprocessing: Preprocessing) -> dict[str, Any]:
    """The same preprocessing in the words of a preprocessor_config.json."""
    resize, crop = preprocessing.resize, preprocessing.crop
    if isinstance(resize, Squash):
        size: dict[str, int] | None = {"height": resize.size[0], "width": resize.size[1]}
    else:
        size = {"shortest_edge": resize.edge} if resize else None
    arguments = {
        "do_resize": resize is not None,
        "resample": RESAMPLE[preprocessing.filter],
        "do_center_crop": crop is not None,
        "do_rescale": preprocessing.rescale is not None,
        "do_normalize": preprocessing.mean is not None,
        "image_mean": list(preprocessing.mean or HALF),
        "image_std": list(preprocessing.std or HALF),
    }
    if size:
        arguments["size"] = size
    if crop:
        arguments["crop_size"] = {"height": crop[0], "width": crop[1]}
    if preprocessing.rescale is not None:
        arguments["rescale_factor"] = preprocessing.rescale
    return arguments


def processor(name: str, **arguments: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="needs transformers, whose processors are the reference")
    return getattr(transformers, name)(**arguments)


def ours(preprocessing: Preprocessing, image: NDArray[np.uint8], size: tuple[int, int] | None = None) -> Any:
    height, width = size or preprocessing.output_size or (0, 0)
    preprocessor = Preprocessor(preprocessing, (height, width))
    batch = np.full((3, 3, height, width), np.nan, dtype=np.float32)
    preprocessor(image, batch[1])
    assert np.isnan(batch[[0, 2]]).all()  # nothing is written beside the slot
    np.testing.assert_array_equal(in_two_steps(preprocessor, image), batch[1])
    return batch[1]


def in_two_steps(preprocessor: Preprocessor, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    fitted = np.full((3, *preprocessor.output_size, 3), 77, dtype=np.uint8)
    preprocessor.fit(image, fitted[1])
    assert (fitted[[0, 2]] == 77).all()
    normalized = np.full((3, *preprocessor.output_size), np.nan, dtype=np.float32)
    preprocessor.normalize(fitted[1], normalized)
    return normalized


def theirs(reference: Any, image: NDArray[np.uint8]) -> Any:
    return reference(Image.fromarray(image), return_tensors="np")["pixel_values"][0].astype(np.float32)


def assert_exact(preprocessing: Preprocessing, reference: Any, image: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(ours(preprocessing, image), theirs(reference, image), strict=True)


CONFIGS: dict[str, tuple[str, Preprocessing]] = {
    "vit": ("ViTImageProcessorPil", squash(40, 40, mean=HALF, std=HALF)),
    "vit-oblong": ("ViTImageProcessorPil", squash(30, 47, mean=IMAGENET_MEAN, std=IMAGENET_STD, filter="bicubic")),
    "vit-not-rescaled": ("ViTImageProcessorPil", squash(40, 40, rescale=None, mean=CLIP_MEAN, std=CLIP_STD)),
    "vit-not-normalised": ("ViTImageProcessorPil", squash(40, 40)),
    "vit-only-resized": ("ViTImageProcessorPil", squash(40, 40, rescale=None)),
    "vit-rescaled-by-127": ("ViTImageProcessorPil", squash(40, 40, rescale=1 / 127.5, mean=(1, 1, 1), std=(1, 1, 1))),
    **{f"vit-{name}": ("ViTImageProcessorPil", squash(40, 40, mean=HALF, std=HALF, filter=name)) for name in RESAMPLE},
    "deit": (
        "DeiTImageProcessorPil",
        squash(46, 46, crop=(40, 40), mean=IMAGENET_MEAN, std=IMAGENET_STD, filter="bicubic"),
    ),
    "deit-odd-crop": ("DeiTImageProcessorPil", squash(46, 46, crop=(39, 33), mean=HALF, std=HALF)),
    "deit-padded": ("DeiTImageProcessorPil", squash(33, 46, crop=(40, 41), mean=IMAGENET_MEAN, std=IMAGENET_STD)),
    "deit-padded-oddly": ("DeiTImageProcessorPil", squash(33, 34, crop=(40, 41), mean=IMAGENET_MEAN, std=IMAGENET_STD)),
    "beit": ("BeitImageProcessorPil", squash(40, 40, mean=HALF, std=HALF, filter="bicubic")),
    "beit-crop": ("BeitImageProcessorPil", squash(48, 48, crop=(40, 40), mean=HALF, std=HALF, filter="lanczos")),
    "siglip": ("SiglipImageProcessorPil", squash(40, 40, mean=HALF, std=HALF, filter="bicubic")),
    "bit": (
        "BitImageProcessorPil",
        shortest_edge(40, crop=(40, 40), mean=CLIP_MEAN, std=CLIP_STD, filter="bicubic"),
    ),
    "bit-wider-crop": ("BitImageProcessorPil", shortest_edge(37, crop=(50, 61), mean=CLIP_MEAN, std=CLIP_STD)),
    "bit-smaller-crop": ("BitImageProcessorPil", shortest_edge(46, crop=(31, 40), mean=CLIP_MEAN, std=CLIP_STD)),
    "bit-crop-only": ("BitImageProcessorPil", Preprocessing(resize=None, crop=(40, 40), mean=CLIP_MEAN, std=CLIP_STD)),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", ODD_SIZES)
def test_pixel_values_equal_those_of_transformers(name: str, size: tuple[int, int]) -> None:
    class_name, preprocessing = CONFIGS[name]
    assert_exact(preprocessing, processor(class_name, **resize_arguments(preprocessing)), pixels(*size))


@given(st.sampled_from(sorted(CONFIGS)), st.integers(1, 130), st.integers(1, 130))
@settings(max_examples=150, deadline=None)
def test_pixel_values_of_any_size(name: str, height: int, width: int) -> None:
    class_name, preprocessing = CONFIGS[name]
    assert_exact(preprocessing, processor(class_name, **resize_arguments(preprocessing)), pixels(height, width))


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize(("edge", "crop_pct"), [(40, 224 / 256), (40, 0.95), (40, 1.0), (384, 224 / 256)])
def test_convnext_resizes_by_its_crop_share(size: tuple[int, int], edge: int, crop_pct: float) -> None:
    """Below 384 pixels: the shortest edge to edge / crop_pct, then a crop. From 384 on: a squash."""
    rest: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "filter": "bicubic"}
    cropped = shortest_edge(int(edge / crop_pct), crop=(edge, edge), **rest)
    reference = processor(
        "ConvNextImageProcessorPil",
        size={"shortest_edge": edge}, crop_pct=crop_pct, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD, resample=3,
    )  # fmt: skip
    assert_exact(cropped if edge < 384 else squash(edge, edge, **rest), reference, pixels(*size))


def test_no_resize_and_no_crop() -> None:
    preprocessing = Preprocessing(resize=None, mean=HALF, std=HALF)
    reference = processor("ViTImageProcessorPil", **resize_arguments(preprocessing))
    image = pixels(40, 31)
    np.testing.assert_array_equal(ours(preprocessing, image, (40, 31)), theirs(reference, image), strict=True)


DEFAULTS = {
    "ViTImageProcessorPil": squash(224, 224, mean=HALF, std=HALF),
    "DeiTImageProcessorPil": squash(256, 256, crop=(224, 224), mean=HALF, std=HALF, filter="bicubic"),
    "BeitImageProcessorPil": squash(224, 224, mean=HALF, std=HALF, filter="bicubic"),
    "SiglipImageProcessorPil": squash(224, 224, mean=HALF, std=HALF, filter="bicubic"),
    "BitImageProcessorPil": shortest_edge(224, crop=(224, 224), mean=CLIP_MEAN, std=CLIP_STD, filter="bicubic"),
}


@pytest.mark.skipif(not PHOTOS, reason="needs the photos of tests/support/data.py")
def test_photos_through_the_defaults_of_each_processor() -> None:
    references = {name: processor(name) for name in DEFAULTS}
    for path in PHOTOS:
        data = read_image(str(path))
        image = decode(data)
        photo = Image.open(io.BytesIO(data)).convert("RGB")
        for name, preprocessing in DEFAULTS.items():
            expected = references[name](photo, return_tensors="np")["pixel_values"][0]
            np.testing.assert_array_equal(ours(preprocessing, image), expected, strict=True, err_msg=path.name + name)


class TestGeometry:
    @pytest.mark.parametrize(
        ("edge", "height", "width", "expected"),
        [(256, 375, 500, (256, 341)), (256, 500, 375, (341, 256)), (10, 3, 7, (10, 23)), (10, 7, 7, (10, 10))],
    )
    def test_the_longer_side_is_cut_to_an_integer(
        self, edge: int, height: int, width: int, expected: tuple[int, int]
    ) -> None:
        assert resized_size(shortest_edge(edge), height, width) == expected

    def test_other_resizes(self) -> None:
        assert resized_size(squash(20, 30), 7, 9) == (20, 30)
        assert resized_size(Preprocessing(resize=None), 7, 9) == (7, 9)

    @pytest.mark.parametrize(
        ("length", "crop", "expected"),
        [
            (10, 10, Span(0, 0, 10)),
            (11, 10, Span(0, 0, 10)),
            (12, 10, Span(1, 0, 10)),
            (13, 10, Span(1, 0, 10)),
            (9, 10, Span(0, 1, 9)),
            (8, 10, Span(0, 1, 8)),
            (7, 10, Span(0, 2, 7)),
            (1, 10, Span(0, 5, 1)),
        ],
    )
    def test_crop_span(self, length: int, crop: int, expected: Span) -> None:
        assert crop_span(length, crop) == expected


class TestTable:
    def test_values(self) -> None:
        table = normalization_table(squash(4, 4, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0)))
        assert table.shape == (3, 256)
        assert table.dtype == np.float32
        assert table[:, 0].tolist() == [-1.0, -0.25, 0.0]
        assert table[:, 255].tolist() == [1.0, 0.75, 0.5]
        assert table[1, 51] == np.float32(np.float32(51 / 255) - np.float32(0.25))

    def test_neither_rescaled_nor_normalised(self) -> None:
        table = normalization_table(squash(4, 4, rescale=None))
        np.testing.assert_array_equal(table, np.tile(np.arange(256, dtype=np.float32), (3, 1)), strict=True)


class TestRefused:
    def test_an_image_of_another_size_than_the_model(self) -> None:
        for preprocessing in (Preprocessing(resize=None), shortest_edge(20)):
            with pytest.raises(
                ImageError, match=r"^image is (3|2)\dx20 pixels after preprocessing, the model takes 20x20$"
            ):
                ours(preprocessing, pixels(20, 31), (20, 20))

    def test_a_ribbon_does_not_take_all_memory(self) -> None:
        image = np.zeros((1, 10_000, 3), np.uint8)
        tracemalloc.start()
        try:
            with pytest.raises(
                ImageError, match=r"^image of 10000x1 pixels resizes to 2560000x256, more than the limit"
            ):
                ours(shortest_edge(256, crop=(224, 224)), image)
            assert tracemalloc.get_traced_memory()[1] < 2**23
        finally:
            tracemalloc.stop()

    def test_a_model_of_another_size_than_the_preprocessing(self) -> None:
        with pytest.raises(ArtifactError, match=r"^preprocessing gives 30x20 pixels, the model takes 20x20") as caught:
            Preprocessor(squash(20, 30), (20, 20))
        assert caught.value.exit_code == 5


def test_threads_may_share_a_preprocessor() -> None:
    preprocessing = CONFIGS["bit"][1]
    shared = Preprocessor(preprocessing, (40, 40))
    images = [pixels(50 + index, 70 - index) for index in range(40)]
    batch = np.empty((40, 3, 40, 40), np.float32)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(shared, images, batch))
    for image, slot in zip(images, batch, strict=True):
        np.testing.assert_array_equal(slot, ours(preprocessing, image), strict=True)


def test_pixels_need_not_be_writable_or_of_c_order() -> None:
    preprocessing = CONFIGS["deit"][1]
    image = pixels(61, 45)
    turned = np.asfortranarray(image)
    turned.flags.writeable = False
    np.testing.assert_array_equal(ours(preprocessing, turned), ours(preprocessing, image))
