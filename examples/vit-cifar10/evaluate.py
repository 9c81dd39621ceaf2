"""Top-1 and top-5 of a saved model over the CIFAR-10 test split.

Every JPEG file goes through the Hugging Face image processor and model, both loaded from
the model's folder. The figures are printed and written to metrics.json in that folder.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from cifar10 import list_files
from PIL import Image
from torch import Tensor
from transformers import ViTForImageClassification, ViTImageProcessorPil

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = (1, 5)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="zip of cifar10/{train,test}/<label>/*.jpg")
    add("--model", type=Path, default=Path(__file__).parent, help="default: this folder")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    add("--batch-size", type=int, default=250)
    return parser.parse_args()


def test_images(archive_path: Path) -> Iterator[tuple[Image.Image, str]]:
    """Every image of the test split with the name of its class."""
    with zipfile.ZipFile(archive_path) as archive:
        for label, members in list_files(archive, "test").items():
            for member in members:
                with Image.open(io.BytesIO(archive.read(member))) as image:
                    yield image.convert("RGB"), label


def batches(archive_path: Path, size: int) -> Iterator[tuple[list[Image.Image], list[str]]]:
    """The test split in batches of ``size`` images with their labels."""
    images: list[Image.Image] = []
    labels: list[str] = []
    for image, label in test_images(archive_path):
        images.append(image)
        labels.append(label)
        if len(images) == size:
            yield images, labels
            images, labels = [], []
    if images:
        yield images, labels


def count_hits(logits: Tensor, targets: Tensor) -> list[int]:
    """How many targets lie among the first k classes, for each k in TOP."""
    ranked = logits.topk(max(TOP), dim=-1).indices
    hits = ranked == targets[:, None]
    return [int(hits[:, :k].any(dim=1).sum()) for k in TOP]


@torch.inference_mode()
def evaluate(folder: Path, archive_path: Path, device: str, batch_size: int) -> dict[str, float]:
    """The number of images and the shares of them that count as hits."""
    processor = ViTImageProcessorPil.from_pretrained(folder)
    model = ViTForImageClassification.from_pretrained(folder).to(device).eval()
    totals, count = [0] * len(TOP), 0
    for images, labels in batches(archive_path, batch_size):
        pixels = processor(images=images, return_tensors="pt")["pixel_values"].to(device)
        targets = torch.tensor([model.config.label2id[label] for label in labels])
        hits = count_hits(model(pixel_values=pixels).logits.cpu(), targets)
        totals = [total + hit for total, hit in zip(totals, hits, strict=True)]
        count += len(labels)
    metrics: dict[str, float] = {"images": count}
    for k, total in zip(TOP, totals, strict=True):
        metrics[f"top{k}"] = total / count
    return metrics


def main() -> None:
    """Measure, print and write the figures."""
    options = parse_arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    metrics = evaluate(options.model, options.data, options.device, options.batch_size)
    for k in TOP:
        print(f"top-{k}: {metrics[f'top{k}']:.2%} of {metrics['images']:,} test images")
    record = {"dataset": "cifar10", "split": "test", **metrics}
    (options.model / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
