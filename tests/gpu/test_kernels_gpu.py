"""The kernels on a real GPU: the same bits as on the CPU, and nothing that compute-sanitizer has to say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support.data import sample_photos
from trt_vit.cuda import driver, topk
from trt_vit.cuda.arena import Arena
from trt_vit.cuda.device import open_device
from trt_vit.cuda.lane import BatchShape
from trt_vit.cuda.preprocess import PlacedImage, describe, plan_image, preprocess_kernel
from trt_vit.images.decode import decode
from trt_vit.images.preprocess import Preprocessor
from trt_vit.images.preprocessing import Preprocessing, ShortestEdge, Squash
from trt_vit.pipeline.topk import top_k

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trt_vit.cuda.device import Device

pytestmark = pytest.mark.gpu

VIT = Preprocessing(resize=Squash(size=(224, 224)), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
DEIT = Preprocessing(resize=ShortestEdge(edge=256), filter="bicubic", crop=(224, 224))
LANCZOS = Preprocessing(resize=Squash(size=(224, 224)), filter="lanczos")


@pytest.fixture(scope="module")
def device() -> Device:
    if not driver.gpus():
        pytest.skip("needs an NVIDIA GPU and its driver")
    if find_spec("pycuda") is None or find_spec("cuda") is None:
        pytest.skip("needs pycuda and cuda-bindings: pip install 'trt-vit[cuda]'")
    return open_device()


def on_gpu(
    device: Device, preprocessor: Preprocessor, images: Sequence[NDArray[np.uint8]], dtype: str = "fp32"
) -> NDArray[Any]:
    """Preprocess a batch on the GPU."""
    kernel = preprocess_kernel(preprocessor, dtype)
    shape = BatchShape(len(images), kernel, 1, 1)
    with device.current():
        arena = Arena(device, len(images), shape.sure_bytes, sum(image.nbytes for image in images) + (1 << 22))
        stream, done = device.stream(), device.event()
        placed = []
        for image in images:
            plan = plan_image(preprocessor, *image.shape[:2])
            assert plan is not None
            place = arena.reserve(4 * plan.words + image.nbytes)
            assert place is not None
            pixels = place + 4 * plan.words
            arena.host[place:pixels].view(np.int32)[:] = np.concatenate([plan.rows.words, plan.columns.words])
            arena.host[pixels : pixels + image.nbytes] = image.reshape(-1)
            placed.append(PlacedImage(plan, arena.memory.address + pixels, 3 * image.shape[1], place // 4))
        describe(placed, arena.sources[: len(images)])
        values = device.pinned(kernel.values.shape, kernel.values.dtype)
        values[:] = kernel.values
        table = device.allocate(values.nbytes)
        output = device.pinned((len(images), 3, kernel.height, kernel.width), kernel.values.dtype)
        made = device.allocate(output.nbytes)
        arena.copy_to_device(stream)
        stream.copy_to_device(table, values)
        address = arena.memory.address
        given = kernel.arguments(sources=address, tables=address, values=table.address, output=made.address)
        stream.launch(device.kernel("preprocess.cu", kernel.name), kernel.grid(len(images)), given)
        stream.copy_to_host(output, made)
        stream.record(done)
        done.synchronize()
        return output.copy()


def by_pillow(preprocessor: Preprocessor, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    out = np.empty((3, *preprocessor.output_size), dtype=np.float32)
    preprocessor(image, out)
    return out


@pytest.mark.parametrize("preprocessing", [VIT, DEIT, LANCZOS], ids=["vit", "deit", "lanczos"])
def test_photos_come_out_bit_for_bit(device: Device, preprocessing: Preprocessing) -> None:
    photos = sample_photos()
    if not photos:
        pytest.skip("needs photos: see tests/support/data.py")
    preprocessor = Preprocessor(preprocessing, (224, 224))
    for first in range(0, len(photos), 50):
        images = [decode(path.read_bytes()) for path in photos[first : first + 50]]
        for found, image in zip(on_gpu(device, preprocessor, images), images, strict=True):
            assert np.array_equal(found, by_pillow(preprocessor, image))


@pytest.mark.parametrize("name", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_random_sizes_come_out_bit_for_bit(device: Device, name: Any) -> None:
    generator = np.random.default_rng(0)
    for size in [(224, 224), (45, 70), (1, 1)]:
        preprocessor = Preprocessor(Preprocessing(resize=Squash(size=size), filter=name), size)
        sides = np.exp(generator.uniform(0, np.log(700), size=(40, 2))).astype(int)
        images = [generator.integers(0, 256, size=(*pair, 3), dtype=np.uint8) for pair in sides.tolist()]
        for found, image in zip(on_gpu(device, preprocessor, images), images, strict=True):
            assert np.array_equal(found, by_pillow(preprocessor, image))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_narrow_outputs(device: Device, dtype: str) -> None:
    preprocessor = Preprocessor(VIT, (224, 224))
    image = np.random.default_rng(1).integers(0, 256, size=(300, 500, 3), dtype=np.uint8)
    wide = by_pillow(preprocessor, image)
    table = preprocess_kernel(preprocessor, dtype).values
    values = np.array([preprocessor.table[channel].searchsorted(wide[channel]) for channel in range(3)])
    expected = np.stack([table[channel][values[channel]] for channel in range(3)])
    assert np.array_equal(on_gpu(device, preprocessor, [image], dtype)[0], expected)


@pytest.mark.parametrize(("classes", "k"), [(10, 5), (1000, 1), (1000, 5), (1000, 100), (50_000, 100), (257, 257)])
def test_top_k_is_numpy_s(device: Device, classes: int, k: int) -> None:
    logits = (np.round(8 * np.random.default_rng(2).normal(size=(64, classes))) / 2).astype(np.float32)
    logits[3, 7] = np.nan
    with device.current():
        stream, done = device.stream(), device.event()
        given, answer = device.pinned(logits.shape, "float32"), device.pinned((64, topk.words(k)), "uint32")
        given[:] = logits
        source, target = device.allocate(given.nbytes), device.allocate(answer.nbytes)
        stream.copy_to_device(source, given)
        arguments = topk.arguments(logits=source.address, output=target.address, classes=classes, k=k)
        stream.launch(device.kernel("topk.cu", topk.KERNELS["fp32"]), (64, 1), arguments)
        stream.copy_to_host(answer, target)
        stream.record(done)
        done.synchronize()
    finite, indices, probabilities = topk.read(answer)
    assert np.flatnonzero(~finite).tolist() == [3]
    expected = top_k(logits[finite], k)
    assert np.array_equal(indices[finite], expected.indices)
    np.testing.assert_allclose(probabilities[finite], expected.probabilities, rtol=1e-5, atol=1e-30)


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer_has_nothing_to_say(device: Device, tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("needs compute-sanitizer, of the CUDA toolkit")
    root = Path(__file__).parents[2]
    tests = ["-k", "random_sizes and bicubic or top_k and 1000-100", "-p", "no:cacheprovider", "-q", __file__]
    done = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "pytest", *tests],
        check=False,
        capture_output=True,
        text=True,
        cwd=root,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:]
