"""Engines scored on labelled images: how often they are right, how sure that is, and how they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trt_vit.engine.bundle import Bundle
from trt_vit.errors import InputError, UsageError
from trt_vit.evaluate.classes import Classes
from trt_vit.evaluate.labelled import find_labelled
from trt_vit.evaluate.logits import load_engines, run_engines
from trt_vit.evaluate.score import Answers, Disagreement, EngineScore, Scorer, Tally
from trt_vit.pipeline.lanes import NOT_FINITE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trt_vit.evaluate.labelled import Labelled
    from trt_vit.evaluate.logits import BatchLogits, LoadedEngine


@dataclass(frozen=True)
class Evaluation:
    """What came of it all.

    Attributes:
        engines: A score for each engine, in the order they were named.
        source: Where the labels come from.
        unlabelled: Images without a label, which were left out.
        missing: Labels of images that are not there.
        failures: Path and reason of each image that could not be used.
        disagreements: Images that the engines do not agree on.
        warnings: What a person should know before believing the figures.
    """

    engines: list[EngineScore]
    source: str
    unlabelled: int
    missing: int
    failures: list[tuple[str, str]]
    disagreements: list[Disagreement]
    warnings: list[str]


def evaluate_bundles(
    places: Sequence[Path],
    data: Path,
    labels: Path | None,
    limit: int | None,
    tell: Callable[[int, int], None],
) -> Evaluation:
    """Score the engines of some bundles on the same labelled images, each of which is decoded once.

    Args:
        places: The bundles; the others are held against the first.
        data: Directory of images.
        labels: A file of labels, or None where folders or a file beside the images say.
        limit: How many images at most, spread evenly over all.
        tell: Called with how many images are done, and how many there are.

    Raises:
        UsageError: The bundles have different classes, or something that was named is not there.
        InputError: The labels do not fit, or none of the images can be used.
        ArtifactError: A file of a bundle is not what was built.
        EnvironmentFault: A runtime is missing or fails.
    """
    bundles = [Bundle.open(place) for place in places]
    names = bundles[0].labels()
    for bundle in bundles[1:]:
        if bundle.labels() != names:
            message = f"{bundles[0].path} and {bundle.path} do not have the same classes in the same order"
            raise UsageError(message, hint="evaluate engines of one checkpoint together, and others by themselves")
    labelled = find_labelled(data, labels, names)
    chosen = labelled.limited(limit)
    engines = load_engines(bundles)
    found = _run(engines, chosen, tell)
    scorer = Scorer(Classes(names), found.targets, found.answers[0], len(found.failures))
    return Evaluation(
        engines=[
            scorer.score(bundle, engine.runtime.inference_precision, answers)
            for bundle, engine, answers in zip(bundles, engines, found.answers, strict=True)
        ],
        source=labelled.source,
        unlabelled=len(labelled.unlabelled),
        missing=labelled.missing,
        failures=found.failures,
        disagreements=scorer.disagreements(found.paths, found.answers),
        warnings=_warnings(bundles, labelled),
    )


@dataclass(frozen=True)
class _Pass:
    """What came of one pass over the images: those that could be used, what the engines say of them, and the others."""

    paths: list[str]
    targets: list[frozenset[int]]
    answers: list[Answers]
    failures: list[tuple[str, str]]


def _run(engines: Sequence[LoadedEngine], chosen: Labelled, tell: Callable[[int, int], None]) -> _Pass:
    tallies = [Tally() for _ in engines]
    found = _Pass([], [], [], [])
    done = 0
    for batch in run_engines(engines, chosen.paths):
        finite = np.all([np.isfinite(logits).all(axis=1) for logits in batch.logits], axis=0)
        for path, reason in zip(batch.paths, _reasons(batch, finite.tolist()), strict=True):
            if reason is None:
                found.paths.append(path)
                found.targets.append(chosen.targets[done])
            else:
                found.failures.append((path, reason))
            done += 1
        if finite.any():
            for tally, logits in zip(tallies, batch.logits, strict=True):
                tally.add(logits[finite], batch.logits[0][finite])
        tell(done, len(chosen.paths))
    if not found.paths:
        path, reason = found.failures[0]
        message = f"none of the {len(found.failures)} images can be used: {path}: {reason}"
        raise InputError(message, hint="name good images")
    found.answers.extend(tally.answers() for tally in tallies)
    return found


def _reasons(batch: BatchLogits, finite: Sequence[bool]) -> list[str | None]:
    """Return why each image of a batch cannot be used, or None; ``finite`` is of those that have logits."""
    sound = iter(finite)
    return [error if error is not None else None if next(sound) else NOT_FINITE for error in batch.errors]


def _warnings(bundles: Sequence[Bundle], labelled: Labelled) -> list[str]:
    found = []
    if labelled.unlabelled:
        some = labelled.unlabelled[0]
        found.append(f"{len(labelled.unlabelled)} images have no label and are left out, {some} for one")
    if labelled.missing:
        found.append(f"{labelled.source} has labels of {labelled.missing} images that are not there")
    first = bundles[0].preprocessing()
    found += [
        f"{bundle.path} and {bundles[0].path} do not preprocess alike: more than their engines differs"
        for bundle in bundles[1:]
        if bundle.preprocessing() != first
    ]
    return found
