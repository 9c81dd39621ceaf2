"""What the hot loop sees of the lanes that do its work, on a CPU or on GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trt_vit.pipeline.rows import Prediction, Row

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

    from trt_vit.pipeline.stages import StageSeconds
    from trt_vit.sources.item import Item

NOT_FINITE = "the engine's logits are not finite"


@dataclass(frozen=True)
class BatchResult:
    """What came of one batch.

    Attributes:
        rows: One for each of its images, in order.
        seconds: How long each stage was busy with it.
        gpu_decoded: How many of its images were decoded on a GPU.
    """

    rows: list[Row]
    seconds: StageSeconds
    gpu_decoded: int = 0


class Lanes(Protocol):
    """Lanes, the threads that feed them, and the memory that bounds how far these run ahead."""

    @property
    def depth(self) -> int:
        """Batches that may be under way. At most as many are started whose results have not been taken."""
        ...

    @property
    def stages(self) -> Sequence[str]:
        """What a batch goes through."""
        ...

    def start(self, number: int, items: Sequence[Item]) -> Future[BatchResult]:
        """Start batch ``number``, as soon as there is a place for it.

        The result raises ``EnvironmentFault`` where the runtime or the device fails.
        """
        ...


def make_rows(
    items: Sequence[Item],
    errors: Sequence[str | None],
    finite: NDArray[np.bool_],
    best: tuple[NDArray[np.int64], NDArray[np.float32]],
    labels: Sequence[str],
) -> list[Row]:
    """Make a batch's rows of its top-k.

    Args:
        items: The images.
        errors: Why an image has none, or None.
        finite: Whether its logits are finite, [images].
        best: Class indices, [images, k], the most probable first, and their probabilities, [images, k].
        labels: Label of each class.
    """
    rows = []
    indices, probabilities = best
    for number, (item, error) in enumerate(zip(items, errors, strict=True)):
        if error is None and not finite[number]:
            error = NOT_FINITE  # noqa: PLW2901 - the row's error from here on
        if error is not None:
            rows.append(Row(item.name, error, ()))
            continue
        picked = zip(indices[number].tolist(), probabilities[number].tolist(), strict=True)
        rows.append(Row(item.name, None, tuple(Prediction(index, labels[index], value) for index, value in picked)))
    return rows


def failed_rows(items: Sequence[Item], errors: Sequence[str | None]) -> list[Row]:
    """Make the rows of a batch in which no image could be used."""
    return [Row(item.name, error, ()) for item, error in zip(items, errors, strict=True)]
