"""Scores against a few lines of numpy on the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.evaluate.test_compare import built, logits
from tests.support.checkpoints import random_checkpoint
from trt_vit.engine.bundle import Bundle
from trt_vit.errors import InputError, UsageError
from trt_vit.evaluate import evaluate as module
from trt_vit.evaluate.evaluate import Evaluation, evaluate_bundles
from trt_vit.evaluate.logits import run_engines
from trt_vit.evaluate.report import THUMBNAILS, evaluation_report
from trt_vit.evaluate.statistics import mcnemar, wilson_interval
from trt_vit.images.decode import decode
from trt_vit.pipeline.lanes import NOT_FINITE
from trt_vit.reports import check_report, write_report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from trt_vit.evaluate.logits import BatchLogits, LoadedEngine


@pytest.fixture(scope="module")
def shallow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("shallow")
    return built(random_checkpoint("vit", root / "vit", num_hidden_layers=1), root / "bundle")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures in folders of the 7 classes, two of them broken."""
    root = tmp_path_factory.mktemp("labelled")
    generator = np.random.default_rng(3)
    for number in range(60):
        folder = root / f"kind {number % 7}"
        folder.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, size=(20 + number, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (root / "kind 0" / "broken <b>.png").write_bytes(b"no picture")
    (root / "kind 6" / "empty.png").touch()
    return root


def evaluated(*bundles: Bundle, data: Path, labels: Path | None = None, limit: int | None = None) -> Evaluation:
    return evaluate_bundles([bundle.path for bundle in bundles], data, labels, limit, lambda _done, _of: None)


def good(data: Path) -> list[str]:
    return sorted((str(path) for path in data.rglob("[0-9]*.png")), key=lambda path: path.split("/"))


def targets(paths: list[str]) -> np.ndarray:
    return np.array([int(Path(path).parent.name[-1]) for path in paths])


def test_scores_are_those_of_numpy(onnxruntime_bundle: Bundle, shallow_bundle: Bundle, data: Path) -> None:
    found = evaluated(onnxruntime_bundle, shallow_bundle, data=data)
    paths = good(data)
    right = targets(paths)
    first, second = (logits(bundle, paths).astype(np.float64) for bundle in (onnxruntime_bundle, shallow_bundle))
    hits = []
    for engine, values in zip(found.engines, (first, second), strict=True):
        best = np.argsort(-values, axis=1)[:, :5]
        top1, top5 = best[:, 0] == right, (best == right[:, None]).any(axis=1)
        hits.append(top1)
        assert (engine.images, engine.failed) == (60, 2)
        assert (engine.top1, engine.top5) == (top1.mean(), top5.mean())
        assert engine.top1_ci95 == wilson_interval(int(top1.sum()), 60)
        assert engine.top5_ci95 == wilson_interval(int(top5.sum()), 60)
        assert engine.agreement == np.mean(best[:, 0] == first.argmax(axis=1))
        cosines = (values * first).sum(axis=1) / np.linalg.norm(values, axis=1) / np.linalg.norm(first, axis=1)
        assert engine.mean_cosine == pytest.approx(cosines.mean(), abs=1e-5)
        by_class = {row.index: (row.label, row.images, row.top1) for row in engine.classes}
        assert by_class == {
            index: (f"kind {index}", int((right == index).sum()), top1[right == index].mean()) for index in range(7)
        }
        assert [row.top1 for row in engine.classes] == sorted(row.top1 for row in engine.classes)
        assert sum(row.images for row in engine.confusions) == (~top1).sum()
        assert sum(count for count, _, _ in engine.bins) == 60
        softmax = np.exp(values - values.max(axis=1, keepdims=True))
        confidence = (softmax / softmax.sum(axis=1, keepdims=True)).max(axis=1)
        assert sum(count * mean for count, mean, _ in engine.bins) == pytest.approx(confidence.sum(), rel=1e-4)
    only_first, only_second = int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())
    assert [engine.p_value for engine in found.engines] == [1.0, mcnemar(only_first, only_second)]
    assert (found.engines[0].agreement, found.source) == (1.0, "7 folders")
    different = np.flatnonzero(first.argmax(axis=1) != second.argmax(axis=1))
    assert [row.path for row in found.disagreements] == [paths[number] for number in different]
    row, number = found.disagreements[0], different[0]
    assert row.labels == [f"kind {right[number]}"]
    assert row.said == [f"kind {values[number].argmax()}" for values in (first, second)]


def test_images_that_cannot_be_used_are_counted_and_named(onnxruntime_bundle: Bundle, data: Path) -> None:
    failures = dict(evaluated(onnxruntime_bundle, data=data).failures)
    assert failures == {
        str(
            data / "kind 0" / "broken <b>.png"
        ): "not an image: no known signature of JPEG, PNG, WebP, BMP, TIFF or GIF",
        str(data / "kind 6" / "empty.png"): "empty file",
    }


def test_each_image_is_decoded_once_for_all_engines(
    onnxruntime_bundle: Bundle, shallow_bundle: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def counting(file: bytes) -> NDArray[np.uint8]:
        decoded.append(1)
        return decode(file)

    monkeypatch.setattr("trt_vit.evaluate.logits.decode", counting)
    evaluated(onnxruntime_bundle, shallow_bundle, onnxruntime_bundle, data=data)
    assert len(decoded) == 62


def test_several_right_answers(onnxruntime_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    """With every class right, every image is; with the label file in place of the folders."""
    paths = good(data)
    names = "".join(f"ILSVRC2012_val_{number:08}" + "\n" for number in range(1, 4)).split()
    (tmp_path / "images").mkdir()
    for name, path in zip(names, paths, strict=False):
        (tmp_path / "images" / f"{name}.png").write_bytes(Path(path).read_bytes())
    (tmp_path / "real.json").write_text("[[0,1,2,3,4,5,6],[0,1,2,3,4,5,6],[]]")
    found = evaluated(onnxruntime_bundle, data=tmp_path / "images", labels=tmp_path / "real.json")
    assert (found.engines[0].images, found.engines[0].top1, found.unlabelled) == (2, 1.0, 1)
    assert found.warnings == [f"1 images have no label and are left out, {tmp_path}/images/{names[2]}.png for one"]


def test_a_limit(onnxruntime_bundle: Bundle, data: Path) -> None:
    engine = evaluated(onnxruntime_bundle, data=data, limit=10).engines[0]
    assert engine.images + engine.failed == 10
    assert len(engine.classes) == 7  # spread over all


def test_logits_that_are_not_finite_are_failures(
    onnxruntime_bundle: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(engines: Sequence[LoadedEngine], paths: Sequence[str]) -> Iterator[BatchLogits]:
        for number, batch in enumerate(run_engines(engines, paths)):
            if number == 1:
                batch.logits[0][2, 3] = np.nan
            yield batch

    monkeypatch.setattr(module, "run_engines", broken)
    found = evaluated(onnxruntime_bundle, data=data)
    assert [reason for _, reason in found.failures].count(NOT_FINITE) == 1
    assert (found.engines[0].images, found.engines[0].failed) == (59, 3)


def test_no_image_that_can_be_used(onnxruntime_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "kind 1").mkdir()
    (tmp_path / "kind 1" / "a.png").touch()
    with pytest.raises(InputError, match=r"none of the 1 images can be used: .*a.png: empty file"):
        evaluated(onnxruntime_bundle, data=tmp_path)


def test_other_classes_are_refused(onnxruntime_bundle: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([["a", "b"], ["b", "a"]])
    monkeypatch.setattr(Bundle, "labels", lambda _self: next(answers))
    with pytest.raises(UsageError, match="do not have the same classes in the same order"):
        evaluated(onnxruntime_bundle, onnxruntime_bundle, data=data)


def test_the_report_has_the_figures_and_escapes_names(
    onnxruntime_bundle: Bundle, shallow_bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    found = evaluated(onnxruntime_bundle, shallow_bundle, data=data)
    text = evaluation_report(found)
    assert "broken &lt;b&gt;.png" in text
    assert "<b>" not in text
    for engine in found.engines:
        assert f"{100 * engine.top1:.2f} %" in text
        assert str(engine.bundle) in text
    assert text.count("data:image/jpeg;base64,") == min(THUMBNAILS, len(found.disagreements)) > 0
    assert "http://" not in text
    assert "https://" not in text  # it needs nothing else
    assert "<script" not in text
    write_report(tmp_path / "deep" / "report.html", text)
    assert (tmp_path / "deep" / "report.html").read_text(encoding="utf-8") == text


def test_a_report_is_html(tmp_path: Path) -> None:
    check_report(tmp_path / "report.HTML")
    with pytest.raises(UsageError, match="a report is HTML"):
        check_report(tmp_path / "report.pdf")
