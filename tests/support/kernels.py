"""Running the kernels on arrays of this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.support import cpu_kernels
from trt_vit.cuda import preprocess, topk
from trt_vit.cuda.preprocess import PlacedImage, describe, plan_image, preprocess_kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trt_vit.cuda.preprocess import ImagePlan
    from trt_vit.images.preprocess import Preprocessor

CANARY = 0x5A
_MARGIN = 4096


def preprocessed(
    preprocessor: Preprocessor,
    images: Sequence[NDArray[np.uint8] | None],
    dtype: str = "fp32",
    plans: Sequence[ImagePlan | None] | None = None,
) -> NDArray[Any]:
    """Preprocess a batch, and check that nothing but the output is written to.

    Args:
        preprocessor: The preprocessing.
        images: uint8 [height, width, 3], rows may have gaps; None for an image that there is not.
        dtype: Of the output.
        plans: How, where that is not what ``plan_image`` says.
    """
    kernel = preprocess_kernel(preprocessor, dtype)
    placed: list[PlacedImage | None] = []
    tables: list[NDArray[np.int32]] = []
    for number, image in enumerate(images):
        if image is None:
            placed.append(None)
            continue
        plan = plans[number] if plans is not None else plan_image(preprocessor, *image.shape[:2])
        assert plan is not None
        placed.append(PlacedImage(plan, image.ctypes.data, image.strides[0], sum(table.size for table in tables)))
        tables += [plan.rows.words, plan.columns.words]
    sources, words = np.zeros(len(images), preprocess.SOURCE), np.concatenate([*tables, np.zeros(0, np.int32)])
    describe(placed, sources)
    shape = (len(images), 3, kernel.height, kernel.width)
    size = int(np.prod(shape)) * kernel.values.itemsize
    memory = np.full(size + 2 * _MARGIN, CANARY, dtype=np.uint8)
    arguments = kernel.arguments(
        sources=sources.ctypes.data,
        tables=words.ctypes.data,
        values=kernel.values.ctypes.data,
        output=memory.ctypes.data + _MARGIN,
    )
    given = [sources, words, kernel.values, *(image for image in images if image is not None)]
    before = [array.copy() for array in given]
    cpu_kernels.launch(kernel.name, kernel.grid(len(images)), arguments)
    assert all(np.array_equal(*pair) for pair in zip(given, before, strict=True))
    assert (memory[:_MARGIN] == CANARY).all()
    assert (memory[-_MARGIN:] == CANARY).all()
    return memory[_MARGIN:-_MARGIN].view(kernel.values.dtype).reshape(shape)


def best(logits: NDArray[Any], k: int, dtype: Any = "fp32") -> Any:
    """Find the best classes of each image, as ``topk.read`` has them, and check that nothing else is written to.

    16-bit logits may be given as their bits.
    """
    images, classes = logits.shape
    answer = np.full((images + 2, topk.words(k)), CANARY, dtype=np.uint32)
    given = np.ascontiguousarray(logits)
    before = given.tobytes()
    arguments = topk.arguments(logits=given.ctypes.data, output=answer[1:].ctypes.data, classes=classes, k=k)
    cpu_kernels.launch(topk.KERNELS[dtype], (images, 1), arguments)
    assert given.tobytes() == before
    assert (answer[[0, -1]] == CANARY).all()
    return topk.read(answer[1:-1])
