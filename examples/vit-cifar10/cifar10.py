"""CIFAR-10 in memory: read from a zip of JPEG files, augmented as tensors."""

from __future__ import annotations

import io
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LABELS = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
IMAGE_SIZE = 32
CROP_PADDING = 4
FLIP_PROBABILITY = 0.5


@dataclass(frozen=True)
class Split:
    """Images as uint8 in NHWC order, with one class index for each."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        """The split on a device."""
        return Split(self.images.to(device), self.labels.to(device))


def list_files(archive: zipfile.ZipFile, split: str) -> dict[str, list[str]]:
    """The JPEG members of a split (``train`` or ``test``), sorted, by label."""
    files: dict[str, list[str]] = defaultdict(list)
    for name in sorted(archive.namelist()):
        path = PurePosixPath(name)
        if path.suffix == ".jpg" and path.parts[-3:-2] == (split,):
            files[path.parts[-2]].append(name)
    if set(files) != set(LABELS):
        raise ValueError(f"{archive.filename}: split {split!r} has the labels {sorted(files)}")
    return dict(files)


def load_split(archive_path: Path, split: str) -> Split:
    """Decode a whole split, ordered by label and file name."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    with zipfile.ZipFile(archive_path) as archive:
        for name, members in sorted(list_files(archive, split).items()):
            for member in members:
                with Image.open(io.BytesIO(archive.read(member))) as image:
                    images.append(np.asarray(image.convert("RGB")))
            labels += [LABELS.index(name)] * len(members)
    return Split(torch.from_numpy(np.stack(images)), torch.tensor(labels))


def hold_out(split: Split, count: int) -> tuple[Split, Split]:
    """Split off the last ``count / 10`` images of every class for validation."""
    per_class = count // len(LABELS)
    held = torch.zeros(len(split), dtype=torch.bool)
    for label in range(len(LABELS)):
        members = torch.nonzero(split.labels == label).flatten()
        held[members[len(members) - per_class :]] = True
    return (
        Split(split.images[~held], split.labels[~held]),
        Split(split.images[held], split.labels[held]),
    )


def normalize(images: Tensor) -> Tensor:
    """uint8 NHWC to float NCHW in [-1, 1]: rescaling by 1/255, mean and std 0.5."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def pad_reflect(images: Tensor, padding: int = CROP_PADDING) -> Tensor:
    """Reflect the borders of NHWC images outwards, ready for random crops."""
    size = images.shape[1]
    index = torch.arange(-padding, size + padding, device=images.device).abs()
    index = torch.where(index >= size, 2 * (size - 1) - index, index)
    return images[:, index][:, :, index]


def crop_and_flip(padded: Tensor, batch: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop, mirrored half of the time, of each image that ``batch`` names."""
    count, device = len(batch), padded.device
    corner = torch.randint(0, 2 * CROP_PADDING + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < FLIP_PROBABILITY
    span = torch.arange(IMAGE_SIZE)
    rows = corner[0] + span
    columns = corner[1] + torch.where(mirrored, span.flip(0), span)
    rows, columns, batch = rows.to(device), columns.to(device), batch.to(device)
    return padded[batch[:, None, None], rows[:, :, None], columns[:, None, :]]


def cutmix(images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Paste one random box of every image's neighbour in the batch, targets in proportion."""
    share = float(torch.rand(1, generator=generator))
    side = round(IMAGE_SIZE * (1.0 - share) ** 0.5)
    top, left = torch.randint(0, IMAGE_SIZE - side + 1, (2,), generator=generator).tolist()
    box = (..., slice(top, top + side), slice(left, left + side))
    mixed = images.clone()
    mixed[box] = images.roll(1, 0)[box]
    kept = 1.0 - side * side / IMAGE_SIZE**2
    return mixed, kept * targets + (1.0 - kept) * targets.roll(1, 0)
