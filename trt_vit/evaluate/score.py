"""What an engine's logits are worth, held against the images' labels and against another engine's logits."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.engine.compare import cosine_similarities
from trt_vit.evaluate.statistics import calibration_bins, calibration_error, mcnemar, wilson_interval
from trt_vit.pipeline.topk import top_k

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trt_vit.engine.bundle import Bundle
    from trt_vit.engine.manifest import Precision
    from trt_vit.evaluate.classes import Classes

K = 5
_CONFUSIONS = 20


@dataclass(frozen=True)
class ClassScore:
    """One class of the labels.

    Attributes:
        index: The class.
        label: How a person tells it from the others.
        images: How many images show it.
        top1: Share of them that the engine takes for it, 0 to 1.
    """

    index: int
    label: str
    images: int
    top1: float


@dataclass(frozen=True)
class Confusion:
    """Images of one class that an engine takes for another.

    Attributes:
        label: What they show.
        taken_for: What the engine says.
        images: How many.
    """

    label: str
    taken_for: str
    images: int


@dataclass(frozen=True)
class EngineScore:
    """One engine on all images that could be used.

    Attributes:
        bundle: Its bundle.
        precision: What the bundle was built for.
        runs_in: What its arithmetic runs in on this machine.
        runtime: The runtime.
        images: Images that were scored.
        failed: Images that could not be used, for whichever reason.
        top1: Share of the images whose best class is right, 0 to 1.
        top5: Share of those among whose best five classes a right one is.
        top1_ci95: The interval of 95 % of ``top1``.
        top5_ci95: The interval of 95 % of ``top5``.
        agreement: Share of the images with the top-1 of the first engine.
        mean_cosine: Mean cosine similarity of the logits with the first engine's.
        p_value: McNemar's test of ``top1`` against the first engine's; 1 for the first itself.
        calibration_error: Expected calibration error.
        bins: Images, mean confidence and accuracy of each bin of confidence.
        classes: Every class of the labels, the worst known first.
        confusions: The commonest errors.
    """

    bundle: str
    precision: Precision
    runs_in: Precision
    runtime: str
    images: int
    failed: int
    top1: float
    top5: float
    top1_ci95: tuple[float, float]
    top5_ci95: tuple[float, float]
    agreement: float
    mean_cosine: float
    p_value: float
    calibration_error: float
    bins: list[tuple[int, float, float]]
    classes: list[ClassScore]
    confusions: list[Confusion]


@dataclass(frozen=True)
class Disagreement:
    """An image of which an engine says something else than the first.

    Attributes:
        path: The image.
        labels: What it shows.
        said: What each engine says.
    """

    path: str
    labels: list[str]
    said: list[str]


@dataclass(frozen=True)
class Answers:
    """What an engine says of all images.

    Attributes:
        best: Its best classes, the best first, int64 [images, k].
        confidences: The softmax probability of the first, float32 [images].
        cosines: Of its logits with the first engine's, float64 [images].
    """

    best: NDArray[np.int64]
    confidences: NDArray[np.float32]
    cosines: NDArray[np.float64]


class Tally:
    """Collects what is needed of an engine's logits, which are too many to keep."""

    def __init__(self) -> None:
        self._parts: list[Answers] = []

    def add(self, logits: NDArray[np.float32], reference: NDArray[np.float32]) -> None:
        """Add a batch: its finite logits, and the first engine's, both [images, classes]."""
        best = top_k(logits, min(K, logits.shape[1]))
        cosines = cosine_similarities(logits.astype(np.float64), reference.astype(np.float64))
        self._parts.append(Answers(best.indices, best.probabilities[:, 0], cosines))

    def answers(self) -> Answers:
        """Return what was collected, of all batches."""
        return Answers(
            np.concatenate([part.best for part in self._parts]),
            np.concatenate([part.confidences for part in self._parts]),
            np.concatenate([part.cosines for part in self._parts]),
        )


@dataclass(frozen=True)
class Scorer:
    """Scores engines on the same images.

    Attributes:
        classes: The classes.
        targets: The right classes of each image that could be used.
        first: What the first engine says of them.
        failed: Images that could not be used.
    """

    classes: Classes
    targets: Sequence[frozenset[int]]
    first: Answers
    failed: int

    def score(self, bundle: Bundle, runs_in: Precision, answers: Answers) -> EngineScore:
        """Score what an engine says."""
        hits, among = self._hits(answers), self._hits(answers, K)
        reference = self._hits(self.first)
        bins = calibration_bins(answers.confidences, hits)
        count = len(self.targets)
        return EngineScore(
            bundle=str(bundle.path),
            precision=bundle.manifest.precision,
            runs_in=runs_in,
            runtime=bundle.manifest.runtime,
            images=count,
            failed=self.failed,
            top1=float(hits.mean()),
            top5=float(among.mean()),
            top1_ci95=wilson_interval(int(hits.sum()), count),
            top5_ci95=wilson_interval(int(among.sum()), count),
            agreement=float(np.mean(answers.best[:, 0] == self.first.best[:, 0])),
            mean_cosine=float(answers.cosines.mean()),
            p_value=mcnemar(int((reference & ~hits).sum()), int((hits & ~reference).sum())),
            calibration_error=calibration_error(bins),
            bins=bins,
            classes=self._by_class(hits),
            confusions=self._confusions(answers, hits),
        )

    def _hits(self, answers: Answers, k: int = 1) -> NDArray[np.bool_]:
        """Tell of each image whether a right class is among the best k."""
        rows = answers.best[:, :k].tolist()
        return np.array([not target.isdisjoint(row) for target, row in zip(self.targets, rows, strict=True)])

    def _by_class(self, hits: NDArray[np.bool_]) -> list[ClassScore]:
        images, right = Counter[int](), Counter[int]()
        for target, hit in zip(self.targets, hits.tolist(), strict=True):
            images.update(target)
            right.update(target if hit else ())
        rows = [
            ClassScore(index, self.classes.title(index), count, right[index] / count) for index, count in images.items()
        ]
        return sorted(rows, key=lambda row: (row.top1, row.index))

    def _confusions(self, answers: Answers, hits: NDArray[np.bool_]) -> list[Confusion]:
        said = answers.best[:, 0].tolist()
        pairs = Counter(
            (min(target), best) for target, best, hit in zip(self.targets, said, hits.tolist(), strict=True) if not hit
        )
        worst = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:_CONFUSIONS]
        title = self.classes.title
        return [Confusion(title(shown), title(best), count) for (shown, best), count in worst]

    def disagreements(self, paths: Sequence[str], answers: Sequence[Answers]) -> list[Disagreement]:
        """Return the images, given by their paths, of which any engine says something else than the first."""
        title = self.classes.title
        rows = np.stack([answer.best[:, 0] for answer in answers], axis=1)
        different = np.flatnonzero((rows != rows[:, :1]).any(axis=1)).tolist()
        return [
            Disagreement(
                paths[number],
                [title(index) for index in sorted(self.targets[number])],
                [title(index) for index in rows[number].tolist()],
            )
            for number in different
        ]
