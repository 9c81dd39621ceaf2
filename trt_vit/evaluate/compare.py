"""Two engines side by side: how often they say the same, and how close their logits are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.engine.bundle import Bundle
from trt_vit.engine.compare import Comparison, compare_logits
from trt_vit.errors import InputError, UsageError
from trt_vit.evaluate.logits import load_engines, run_engines
from trt_vit.images.source import list_images

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class ClassAgreement:
    """The images that the first engine takes for one class.

    Attributes:
        index: The class.
        label: Its label.
        images: How many they are.
        agreement: Share of them that the second engine takes for it too.
    """

    index: int
    label: str
    images: int
    agreement: float


@dataclass(frozen=True)
class Difference:
    """One engine against another.

    Attributes:
        comparison: The second engine's logits against the first one's, over all images that could be used.
        failed: How many images could not, and why the first of them.
        classes: Every class that the first engine has found, those that the second knows worst first.
    """

    comparison: Comparison
    failed: int
    first_error: str | None
    classes: tuple[ClassAgreement, ...]


def compare_bundles(first: Path, second: Path, inputs: Sequence[str], tell: Callable[[int, int], None]) -> Difference:
    """Run two bundles' engines on the same images.

    Args:
        first: The bundle that is taken for right.
        second: The other.
        inputs: Images, directories, lists or globs, as ``trt_vit.images.source.list_images`` takes them.
        tell: Called with how many images are done, and how many there are.

    Raises:
        UsageError: The bundles have different classes, or an input names nothing.
        InputError: None of the images can be used.
        ArtifactError: A file of a bundle is not what was built.
        EnvironmentFault: A runtime is missing or fails.
    """
    bundles = [Bundle.open(first), Bundle.open(second)]
    labels = bundles[0].labels()
    if labels != bundles[1].labels():
        message = f"{first} and {second} do not have the same classes in the same order"
        raise UsageError(message, hint="compare engines of one checkpoint; --labels at the build gives others")
    paths = list_images(inputs)
    parts: list[tuple[np.ndarray, ...]] = []
    errors: list[str] = []
    done = 0
    for batch in run_engines(load_engines(bundles), paths):
        errors += [f"{path}: {error}" for path, error in zip(batch.paths, batch.errors, strict=True) if error]
        if len(batch.logits[0]):
            parts.append(batch.logits)
        done += len(batch.paths)
        tell(done, len(paths))
    if not parts:
        raise InputError(f"none of the {len(paths)} images can be used: {errors[0]}", hint="name good images")
    reference, other = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Difference(
        comparison=compare_logits(other, reference),
        failed=len(errors),
        first_error=errors[0] if errors else None,
        classes=_by_class(reference.argmax(axis=1), other.argmax(axis=1), labels),
    )


def _by_class(reference: np.ndarray, other: np.ndarray, labels: Sequence[str]) -> tuple[ClassAgreement, ...]:
    found, same = Counter(reference.tolist()), Counter(reference[reference == other].tolist())
    rows = [ClassAgreement(index, labels[index], count, same[index] / count) for index, count in found.items()]
    return tuple(sorted(rows, key=lambda row: (row.agreement, row.index)))
