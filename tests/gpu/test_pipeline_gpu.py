"""The whole pipeline on a real GPU, with whichever engine there is, against the CPU."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.gpu.torch_lane import TorchRuntime
from tests.pipeline.test_run import ListSink
from tests.support.data import sample_photos
from trt_vit.cuda import driver
from trt_vit.cuda.device import open_device
from trt_vit.images.preprocess import Preprocessor
from trt_vit.images.preprocessing import Decode, Preprocessing, Squash
from trt_vit.pipeline.classifier import Classifier
from trt_vit.pipeline.classify import load_classifier
from trt_vit.pipeline.run import classify
from trt_vit.pipeline.timeline import Timeline, overlap
from trt_vit.runtime.onnxruntime import CUDA, providers
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.sources.item import file_items

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trt_vit.engine.bundle import Bundle
    from trt_vit.pipeline.rows import Row

pytestmark = pytest.mark.gpu

IMAGES = 1000
PREPROCESSING = Preprocessing(resize=Squash(size=(224, 224)), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture(scope="module", autouse=True)
def _gpu() -> None:
    if not driver.gpus():
        pytest.skip("needs an NVIDIA GPU and its driver")
    if find_spec("pycuda") is None or find_spec("cuda") is None:
        pytest.skip("needs pycuda and cuda-bindings: pip install 'trt-vit[cuda]'")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """1,000 images: the photos over and over where there are any, pictures of noise elsewhere; one of them broken."""
    directory = tmp_path_factory.mktemp("pictures")
    found = [str(path) for path in sample_photos()]
    generator = np.random.default_rng(0)
    for number in range(0 if found else 50):
        coarse = Image.fromarray(generator.integers(0, 256, size=(9, 12, 3), dtype=np.uint8))
        coarse.resize((400 + number, 300), Image.Resampling.BICUBIC).save(directory / f"{number:02}.jpg", quality=95)
    found = found or sorted(str(path) for path in directory.glob("*.jpg"))
    (directory / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture \xff\xd9")
    repeated = (found * (IMAGES // len(found) + 1))[: IMAGES - 1]
    return [*repeated[:500], str(directory / "broken.jpg"), *repeated[500:]]


@pytest.fixture(scope="module")
def model() -> Any:
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, num_labels=1000
    )
    return transformers.ViTForImageClassification(config).eval()


def classifier(model: Any, decode: Decode, batch: int = 32, lanes: int = 2) -> Classifier:
    torch = pytest.importorskip("torch", reason="needs torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a torch that has CUDA")
    if decode == "fast":
        pytest.importorskip("nvidia.nvimgcodec", reason="needs nvidia-nvimgcodec-cu13")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    runtime = TorchRuntime(open_device(), model, (batch, 3, 224, 224), lanes)
    labels = [f"class {number}" for number in range(1000)]
    preprocessor = Preprocessor(PREPROCESSING, (224, 224))
    return Classifier(preprocessor, (runtime,), (3, 224, 224), labels, 5, 8, decode)


def run(made: Classifier, paths: Sequence[str], timeline: Timeline | None = None) -> list[Row]:
    sink = ListSink()
    classify(file_items(paths), made, sink, lambda _rows: None, timeline)
    return sink.rows


@pytest.fixture(scope="module")
def on_cpu(model: Any, paths: list[str]) -> dict[str, list[int]]:
    """What torch says on the CPU of each picture, decoded and preprocessed there."""
    import torch

    from trt_vit.images.decode import decode, read_image

    preprocessor, found = Preprocessor(PREPROCESSING, (224, 224)), {}
    model = model.to("cpu")
    for path in sorted({path for path in paths if not path.endswith("broken.jpg")}):
        pixels = np.empty((1, 3, 224, 224), dtype=np.float32)
        preprocessor(decode(read_image(path)), pixels[0])
        with torch.inference_mode():
            found[path] = model(pixel_values=torch.from_numpy(pixels)).logits[0].topk(2).indices.tolist()
    return found


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_a_thousand_images_get_the_cpu_s_labels(
    on_cpu: dict[str, list[int]], model: Any, paths: list[str], lanes: int
) -> None:
    rows = run(classifier(model, "exact", lanes=lanes), paths)
    assert [row.path for row in rows] == paths
    assert [number for number, row in enumerate(rows) if row.error] == [500]
    wrong = [row for row in rows if not row.error and row.topk[0].index != on_cpu[row.path][0]]
    # The same pixels, but products are summed in another order: two labels that are as good as equal may change places.
    assert all(row.topk[0].index == on_cpu[row.path][1] for row in wrong)
    assert all(row.topk[0].probability - row.topk[1].probability < 1e-4 for row in wrong)


def test_decoding_on_the_gpu_changes_few_labels(on_cpu: dict[str, list[int]], model: Any, paths: list[str]) -> None:
    rows = run(classifier(model, "fast"), paths)
    assert [number for number, row in enumerate(rows) if row.error] == [500]
    same = [row.topk[0].index == on_cpu[row.path][0] for row in rows if not row.error]
    assert np.mean(same) > 0.9  # random weights: labels are closer to each other than a trained model's


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_runs_repeat_themselves(model: Any, paths: list[str], decode: Decode) -> None:
    made = classifier(model, decode)
    first, second = run(made, paths), run(made, paths)
    assert [[item.index for item in row.topk] for row in first] == [[item.index for item in row.topk] for row in second]


def test_stages_overlap(model: Any, paths: list[str]) -> None:
    timeline = Timeline()
    run(classifier(model, "exact", lanes=2), paths, timeline)
    found = overlap(timeline.intervals)
    assert found.several > 0
    assert {"read", "decode", "copy", "preprocess", "infer", "top_k", "write"} <= set(found.busy)


def test_onnx_runtime_s_cuda_provider_on_the_lane_s_stream(onnxruntime_bundle: Bundle, images: Path) -> None:
    if CUDA not in dict(providers()):
        pytest.skip("needs onnxruntime-gpu")
    made = load_classifier(onnxruntime_bundle, RuntimeOptions(batch_size=4, lanes=2), k=3, gpus=1)
    assert made.on_gpu
    rows = run(made, sorted(str(path) for path in images.rglob("*.*")) * 20)
    assert not [row.error for row in rows if row.error]
    assert all(row.topk == rows[number % 11].topk for number, row in enumerate(rows))
