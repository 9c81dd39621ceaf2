"""How others classify the same photos on a GPU, for benchmarks/gpu_pipeline.py. Both in fp16."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from transformers import ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def hugging_face_contender(checkpoint: Path, batch: int) -> Callable[[Sequence[str]], float]:
    """Return a function that classifies paths as transformers' documentation does, and gives images a second."""
    processor = ViTImageProcessorPil.from_pretrained(checkpoint)
    model = ViTForImageClassification.from_pretrained(checkpoint, dtype=torch.float16).to("cuda").eval()

    def run(paths: Sequence[str]) -> float:
        started = time.perf_counter()
        for first in range(0, len(paths), batch):
            images = [Image.open(path).convert("RGB") for path in paths[first : first + batch]]
            with torch.inference_mode():
                inputs = processor(images, return_tensors="pt").to("cuda", torch.float16)
                model(**inputs).logits.float().softmax(-1).topk(5).values.cpu()
        return len(paths) / (time.perf_counter() - started)

    return run


class Photos(torch.utils.data.Dataset[Any]):
    """Paths as preprocessed tensors."""

    def __init__(self, paths: Sequence[str], processor: Any) -> None:
        self._paths = paths
        self._processor = processor

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Any:
        image = Image.open(self._paths[index]).convert("RGB")
        return self._processor(image, return_tensors="pt")["pixel_values"][0].half()


def compiled_contender(checkpoint: Path, batch: int) -> Callable[[Sequence[str]], float]:
    """Return the same with torch.compile, and a DataLoader with a worker a core and pinned memory."""
    processor = ViTImageProcessorPil.from_pretrained(checkpoint)
    model = ViTForImageClassification.from_pretrained(checkpoint, dtype=torch.float16).to("cuda").eval()
    compiled: Any = torch.compile(model, mode="max-autotune")

    def run(paths: Sequence[str]) -> float:
        loader: Any = torch.utils.data.DataLoader(
            Photos(paths[: len(paths) // batch * batch], processor),  # whole batches: one shape to compile
            batch_size=batch,
            num_workers=len(os.sched_getaffinity(0)),
            pin_memory=True,
            prefetch_factor=4,
        )
        done, started = 0, time.perf_counter()
        with torch.inference_mode():
            for pixels in loader:
                logits = compiled(pixel_values=pixels.to("cuda", non_blocking=True)).logits
                logits.float().softmax(-1).topk(5).values.cpu()
                done += len(pixels)
        return done / (time.perf_counter() - started)

    return run
