from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from tests.support.checkpoints import random_checkpoint
from trt_vit.engine.build import build
from trt_vit.engine.manifest import BatchProfile
from trt_vit.engine.progress import Quiet
from trt_vit.errors import InputError, UsageError
from trt_vit.evaluate.compare import Difference, compare_bundles
from trt_vit.evaluate.logits import load_engines, run_engines
from trt_vit.images.source import list_images
from trt_vit.settings import BuildSettings

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from trt_vit.engine.bundle import Bundle

LABELS = [f"kind {index}" for index in range(7)]


def built(checkpoint: Path, output: Path) -> Bundle:
    batch = BatchProfile(min=1, opt=3, max=8)
    return build(BuildSettings(source=str(checkpoint), output=output, runtime="onnxruntime", batch=batch), Quiet())


@pytest.fixture(scope="module")
def shallow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model of the same classes that answers otherwise."""
    root = tmp_path_factory.mktemp("shallow")
    return built(random_checkpoint("vit", root / "vit", num_hidden_layers=1), root / "bundle")


def pixels(path: str) -> NDArray[np.float32]:
    """What the checkpoint's preprocessing says: 32 x 32 pixels by Pillow's bilinear filter, from -1 to 1."""
    with Image.open(path) as image:
        small = image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32).transpose(2, 0, 1) / np.float32(127.5) - 1


def logits(bundle: Bundle, paths: list[str], *, brighter: float = 0.0) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(bundle.path / "engine.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return np.concatenate(
        [session.run(None, {given.name: pixels(path)[None] + np.float32(brighter)})[0] for path in paths]
    )


def compared(first: Bundle, second: Bundle, *inputs: Path) -> tuple[Difference, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    names = [str(path) for path in inputs]
    return compare_bundles(first.path, second.path, names, lambda *step: told.append(step)), told


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_an_engine_agrees_with_itself(runtime: str, images: Path, request: pytest.FixtureRequest) -> None:
    bundle = request.getfixturevalue(f"{runtime}_bundle")
    difference, told = compared(bundle, bundle, images)
    comparison = difference.comparison
    assert (comparison.images, comparison.agreement, comparison.max_abs_difference) == (11, 1.0, 0.0)
    assert comparison.cosine == pytest.approx(1)
    assert comparison.min_cosine == pytest.approx(1)
    assert (difference.failed, difference.first_error) == (0, None)
    assert {row.agreement for row in difference.classes} == {1.0}
    assert sum(row.images for row in difference.classes) == 11
    assert told == [(4, 11), (8, 11), (11, 11)]  # batches of the size the engine is tuned for


def test_engines_of_two_runtimes_are_one_model(
    openvino_bundle: Bundle, onnxruntime_bundle: Bundle, images: Path
) -> None:
    difference, _ = compared(openvino_bundle, onnxruntime_bundle, images)
    assert difference.comparison.agreement == 1
    assert difference.comparison.min_cosine > 0.9999
    assert difference.comparison.max_abs_difference < 1e-3


def test_what_two_engines_say_is_counted_class_by_class(
    onnxruntime_bundle: Bundle, shallow_bundle: Bundle, images: Path
) -> None:
    difference, told = compared(onnxruntime_bundle, shallow_bundle, images)
    assert told == [(3, 11), (6, 11), (9, 11), (11, 11)]  # of the smaller of both
    paths = list_images([str(images)])
    a, b = logits(onnxruntime_bundle, paths).astype(np.float64), logits(shallow_bundle, paths).astype(np.float64)
    same = a.argmax(axis=1) == b.argmax(axis=1)
    cosines = [x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for x, y in zip(a, b, strict=True)]
    comparison = difference.comparison
    assert comparison.agreement == pytest.approx(np.mean(same))
    assert comparison.cosine == pytest.approx(np.mean(cosines), abs=1e-5)
    assert comparison.min_cosine == pytest.approx(np.min(cosines), abs=1e-5)
    assert comparison.max_abs_difference == pytest.approx(np.abs(a - b).max(), rel=1e-4)
    by_class = defaultdict(list)
    for index, agrees in zip(a.argmax(axis=1).tolist(), same.tolist(), strict=True):
        by_class[index].append(agrees)
    assert {row.index for row in difference.classes} == by_class.keys()
    for row in difference.classes:
        assert (row.label, row.images) == (LABELS[row.index], len(by_class[row.index]))
        assert row.agreement == pytest.approx(np.mean(by_class[row.index]))
    assert comparison.agreement < 1
    order = [(row.agreement, row.index) for row in difference.classes]
    assert order == sorted(order)


def test_the_first_bundle_is_the_one_that_is_taken_for_right(
    onnxruntime_bundle: Bundle, shallow_bundle: Bundle, images: Path
) -> None:
    there, _ = compared(onnxruntime_bundle, shallow_bundle, images)
    back, _ = compared(shallow_bundle, onnxruntime_bundle, images)
    assert back.comparison == there.comparison
    best = logits(shallow_bundle, list_images([str(images)])).argmax(axis=1)
    assert {row.index for row in back.classes} == set(best.tolist())
    assert {row.index for row in there.classes} != set(best.tolist())


def test_images_that_cannot_be_used_are_counted(onnxruntime_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_text("no image", encoding="utf-8")
    difference, told = compared(onnxruntime_bundle, onnxruntime_bundle, tmp_path, images)
    assert (difference.failed, difference.comparison.images) == (2, 11)
    assert str(difference.first_error).startswith(f"{tmp_path / 'a.png'}: not an image")
    assert told[-1] == (13, 13)


def test_a_whole_batch_that_cannot_be_used(onnxruntime_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    for number in range(5):  # a batch of 4 and one more
        (tmp_path / f"{number}.png").touch()
    difference, told = compared(onnxruntime_bundle, onnxruntime_bundle, tmp_path, images)
    assert (difference.failed, difference.comparison.images) == (5, 11)
    assert told[0] == (4, 16)


def test_no_image_that_can_be_used(onnxruntime_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=f"none of the 1 images can be used: {tmp_path / 'a.png'}: empty file"):
        compared(onnxruntime_bundle, onnxruntime_bundle, tmp_path)


def test_other_classes_are_refused(onnxruntime_bundle: Bundle, checkpoint: Path, images: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(reversed(LABELS)), encoding="utf-8")
    settings = BuildSettings(source=str(checkpoint), output=tmp_path / "other", runtime="onnxruntime", labels=labels)
    other = build(settings, Quiet())
    with pytest.raises(UsageError, match="do not have the same classes in the same order"):
        compared(onnxruntime_bundle, other, images)


def test_each_engine_gets_the_images_as_its_checkpoint_wants_them(
    onnxruntime_bundle: Bundle, images: Path, tmp_path: Path
) -> None:
    """The same weights with another mean, 0.9 in place of 0.5."""
    root = tmp_path / "dark"
    checkpoint = random_checkpoint("vit", root / "vit")
    config = checkpoint / "preprocessor_config.json"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.removesuffix("}") + ', "image_mean": [0.9, 0.9, 0.9]}', encoding="utf-8")
    dark = built(checkpoint, root / "bundle")
    paths = list_images([str(images)])
    found = list(run_engines(load_engines([onnxruntime_bundle, dark]), paths))
    assert [path for batch in found for path in batch.paths] == paths
    assert all(error is None for batch in found for error in batch.errors)
    first, second = (np.concatenate([batch.logits[index] for batch in found]) for index in range(2))
    np.testing.assert_allclose(first, logits(onnxruntime_bundle, paths), atol=1e-4)
    np.testing.assert_allclose(second, logits(dark, paths, brighter=(0.5 - 0.9) / 0.5), atol=1e-4)
    assert np.abs(first - second).max() > 0.01
