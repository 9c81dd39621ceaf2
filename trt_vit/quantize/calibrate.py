"""Calibration: what a graph's activations are like, measured once for a graph, its images and their preprocessing.

Part of the images is held back: ranges come from the others, so that agreement on these says what it will be on images
that nobody has seen. What was measured is kept, so that another precision or placement costs no second pass.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_vit.quantize.attention import attention_behind
from trt_vit.quantize.linear import linear_layers
from trt_vit.quantize.session import run
from trt_vit.quantize.statistics import Statistics, TensorStatistics, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

    from trt_vit.caches import FileCache

    Read = Callable[[Sequence[str]], Iterator[NDArray[np.float32]]]

_MOST_HELD_BACK = 128
_FEWEST = 8
"""With fewer images, none are held back: each is used for everything."""
_FILE = "calibration.npz"


@dataclass(frozen=True)
class Calibration:
    """What was measured, and the images that were held back.

    Attributes:
        statistics: What the graph's activations are like.
        held_back: Preprocessed images that no range comes from, float32 [n, 3, height, width] each.
        reference: Logits of the float graph for them, float32 [images, classes]: as many as there are images, while the
            last batch may be filled up.
    """

    statistics: Statistics
    held_back: tuple[NDArray[np.float32], ...]
    reference: NDArray[np.float32]

    def held_back_batches(self, images: int) -> list[NDArray[np.float32]]:
        """Return the first batches, as many as hold that many images, or all."""
        counts = np.cumsum([len(batch) for batch in self.held_back])
        return list(self.held_back[: int(np.searchsorted(counts, images)) + 1])


def split(paths: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Divide images into those that ranges come from and those that are held back.

    ``choose_images`` takes a folder's images in turn with the others', so that both parts have the same share of each.
    """
    held_back = min(len(paths) // 2, _MOST_HELD_BACK)
    return (paths[:-held_back], paths[-held_back:]) if holds_back(len(paths)) else (paths, paths)


def holds_back(images: int) -> bool:
    """Tell whether any of so many images are held back."""
    return images >= _FEWEST


def calibrate(
    model: ir.Model,
    paths: Sequence[str],
    read: Read,
    *,
    cache: FileCache,
    facts: dict[str, Any],
    tell: Callable[[str, int, int], None],
) -> Calibration:
    """Measure a graph on images, or take what was measured before.

    Args:
        model: A float graph of opset 18 or later; it is left as it is.
        paths: The calibration images.
        read: Reads and preprocesses images, in batches that the graph takes.
        cache: Where what is measured is kept.
        facts: All that decides what is measured, JSON-ready: digests of graph and images, preprocessing, versions.
        tell: Called with what is being done, how much of it is done and how much there is.

    Raises:
        EngineError: A tensor or the logits are infinite or not a number.
        InputError: An image cannot be read any more.
        EnvironmentFault: ONNX Runtime is missing.
        ArtifactError: ONNX Runtime cannot read the graph.
    """
    measured, held_back = split(paths)
    batches = tuple(read(held_back))
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    known = cache.get(key, lambda entry: _load(entry / _FILE))
    if known is None:
        counted = _counted(read(measured), len(measured), lambda done: tell("calibrating", done, len(measured)))
        statistics = measure(model, counted, images=len(measured), also=_attention_tensors(model))
        reference = run(model, list(batches))[: len(held_back)]
        known = statistics, reference
        cache.put(key, lambda entry: _save(entry / _FILE, statistics, reference))
    return Calibration(known[0], batches, known[1])


def _counted(
    batches: Iterable[NDArray[np.float32]], images: int, tell: Callable[[int], None]
) -> Iterator[NDArray[np.float32]]:
    done = 0
    for batch in batches:
        yield batch
        done = min(images, done + len(batch))
        tell(done)


def _attention_tensors(model: ir.Model) -> list[str]:
    """Return the names of the queries, keys and values of each attention that a layer reads."""
    found = [attention_behind(layer.activation) for layer in linear_layers(model)]
    return [str(value.name) for attention in found if attention is not None for value in attention.tensors]


def _save(file: Path, statistics: Statistics, reference: NDArray[np.float32]) -> None:
    arrays: dict[str, NDArray[Any]] = {"reference": reference, "logits": statistics.logits}
    for index, halves in enumerate(statistics.groups.values()):
        for side, half in enumerate(halves):
            arrays |= {f"{index}.{side}.{name}": getattr(half, name) for name in ("low", "high", "rows")}
    names = {"groups": list(statistics.groups), "largest": statistics.largest}
    arrays["names"] = np.frombuffer(json.dumps(names).encode(), np.uint8)
    np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's own annotation takes its flag for one of them


def _load(file: Path) -> tuple[Statistics, NDArray[np.float32]]:
    with np.load(file, allow_pickle=False) as arrays:
        names = json.loads(arrays["names"].tobytes())
        groups = {}
        for index, name in enumerate(names["groups"]):
            first, second = (
                TensorStatistics(*(arrays[f"{index}.{side}.{part}"] for part in ("low", "high", "rows")))
                for side in range(2)
            )
            groups[name] = first, second
        return Statistics(groups, names["largest"], arrays["logits"]), arrays["reference"]
