"""The bundled checkpoint and the recipes, as `make demo` uses them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from trt_vit.cli import run
from trt_vit.config import resolve
from trt_vit.settings import BuildSettings, ClassifySettings

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "examples" / "vit-cifar10"
ENGINE_RECIPES = sorted((ROOT / "engines").glob("*.yaml"))
PIPELINE_RECIPES = sorted((ROOT / "pipelines").glob("*.yaml"))


def is_local(recipe: Path) -> bool:
    return bool(yaml.safe_load(recipe.read_text(encoding="utf-8"))["source"].startswith("../"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the recipes refer to, so that what they write stays out of the checkout."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("engines", "pipelines"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("built"))
    (root / "examples").mkdir()
    shutil.copytree(CHECKPOINT, root / "examples" / CHECKPOINT.name)
    return root


@pytest.fixture(scope="module")
def bundle(project: Path) -> Path:
    assert run(["build-engine", str(project / "engines" / "vit-cifar10-fp32.yaml")]) == 0
    return project / "engines" / "built" / "vit-cifar10-fp32"


def test_there_are_recipes() -> None:
    assert len(ENGINE_RECIPES) >= 2
    assert len(PIPELINE_RECIPES) >= 1


@pytest.mark.parametrize("recipe", ENGINE_RECIPES, ids=lambda path: path.stem)
def test_every_engine_recipe_is_valid(recipe: Path) -> None:
    settings = resolve(BuildSettings, {}, recipe=recipe, environment={})
    assert settings.output == recipe.parent / "built" / recipe.stem


@pytest.mark.parametrize("recipe", [path for path in ENGINE_RECIPES if is_local(path)], ids=lambda path: path.stem)
def test_every_engine_recipe_of_a_local_checkpoint_builds(
    project: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if yaml.safe_load(recipe.read_text(encoding="utf-8")).get("runtime") == "tensorrt-rtx":
        pytest.importorskip("tensorrt_rtx_libs", reason="needs TensorRT for RTX: pip install 'trt-vit[rtx]'")
    assert run(["build-engine", str(project / "engines" / recipe.name), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["precision"] == yaml.safe_load(recipe.read_text(encoding="utf-8"))["precision"]
    assert document["against_fp32"]["cosine"] > 0.999


@pytest.mark.parametrize("recipe", PIPELINE_RECIPES, ids=lambda path: path.stem)
def test_every_pipeline_recipe_runs(project: Path, bundle: Path, recipe: Path) -> None:
    copy = project / "pipelines" / recipe.name
    settings = resolve(ClassifySettings, {}, recipe=copy, environment={})
    assert run(["classify", str(bundle), "--pipeline", str(copy)]) == 0
    assert Path(str(settings.output)).is_file()


def test_the_samples_are_classified_as_the_model_card_says(bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    assert run(["classify", str(bundle), str(CHECKPOINT / "samples"), "-o", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    right = sum(row["topk"][0]["label"] == Path(row["path"]).parent.name for row in rows)
    top1 = json.loads((CHECKPOINT / "metrics.json").read_text(encoding="utf-8"))["top1"]
    assert len(rows) == 200
    # 200 images of 10,000: three standard errors of a share.
    assert abs(right / len(rows) - top1) < 3 * (top1 * (1 - top1) / len(rows)) ** 0.5


def test_the_samples_match_hugging_face_to_the_digit(bundle: Path, tmp_path: Path) -> None:
    import torch
    from PIL import Image
    from transformers import AutoModelForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    paths = sorted((CHECKPOINT / "samples").rglob("*.jpg"))[::10]
    processor = ViTImageProcessorPil.from_pretrained(CHECKPOINT)
    model = AutoModelForImageClassification.from_pretrained(CHECKPOINT).eval()
    inputs = processor([Image.open(path).convert("RGB") for path in paths], return_tensors="pt")
    with torch.inference_mode():
        best = model(**inputs).logits.softmax(-1).topk(3)
    output = tmp_path / "o.jsonl"
    assert run(["classify", str(bundle), *map(str, paths), "-o", str(output), "--top-k", "3"]) == 0
    rows = [json.loads(line)["topk"] for line in output.read_text(encoding="utf-8").splitlines()]
    assert [[item["index"] for item in row] for row in rows] == best.indices.tolist()
    probabilities = torch.tensor([[item["probability"] for item in row] for row in rows])
    assert (probabilities - best.values).abs().max() < 1e-5
