"""Train a small Vision Transformer on CIFAR-10 and save it in the Hugging Face layout.

A run may be stopped at any time (SIGINT, SIGTERM) and started again with the same command:
it goes on from its state file. ``--epochs`` may be changed on the way; the learning rate
then follows the new schedule, which ends at zero.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cifar10
import torch
from cifar10 import LABELS, Split
from muon import Muon
from torch import Tensor, nn
from vit import GRID, build_model, forward_tokens, initialise

if TYPE_CHECKING:
    from types import FrameType

    from transformers import ViTForImageClassification

STATE_FILE = "training_state.pt"
PROCESSOR_CONFIG = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": cifar10.IMAGE_SIZE, "width": cifar10.IMAGE_SIZE},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="zip of cifar10/{train,test}/<label>/*.jpg")
    add("--output", type=Path, required=True, help="folder of the model, written every epoch")
    add("--state", type=Path, help="folder of the state file (default: the output folder)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    add("--epochs", type=int, default=12)
    add("--batch-size", type=int, default=128)
    add("--width", type=int, default=128, help="hidden size, a multiple of 16")
    add("--depth", type=int, default=6, help="number of layers")
    add("--lr", type=float, default=2e-3, help="AdamW: embeddings, norms, biases, classifier")
    add("--muon-lr", type=float, default=0.02, help="Muon: the matrices of the layers")
    add("--weight-decay", type=float, default=0.05)
    add("--warmup", type=float, default=0.03, help="share of the steps that warm up")
    add("--kept-patches", type=float, default=0.5, help="share of patches seen at first")
    add("--full-from", type=float, default=0.7, help="share of the steps before all are seen")
    add("--sharpness", type=float, default=1.6, help="initial attention to neighbours; 0: none")
    add("--label-smoothing", type=float, default=0.1)
    add("--cutmix", type=float, default=0.0, help="share of the batches mixed (long runs: 0.5)")
    add("--hold-out", type=int, default=0, help="training images kept for validation")
    add("--seed", type=int, default=0)
    return parser.parse_args()


@dataclass
class Trainer:
    """The model, its optimizers and the position in the schedule."""

    options: argparse.Namespace
    model: ViTForImageClassification
    data: Split
    step: int = 0
    seconds: float = 0.0
    stopping: bool = False

    def __post_init__(self) -> None:
        self.device = torch.device(self.options.device)
        matrices, others = split_parameters(self.model)
        decay = self.options.weight_decay
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=self.options.muon_lr, weight_decay=decay),
            torch.optim.AdamW(others, lr=self.options.lr, betas=(0.9, 0.95), weight_decay=decay),
        ]
        self.peaks = [self.options.muon_lr, self.options.lr]
        self.padded = cifar10.pad_reflect(self.data.images)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the data."""
        return len(self.data) // int(self.options.batch_size)

    @property
    def progress(self) -> float:
        """The share of the schedule that is done."""
        return self.step / (self.steps_per_epoch * int(self.options.epochs))

    def kept_patches(self) -> int:
        """How many patches of each image the current step sees."""
        share = 1.0 if self.progress >= self.options.full_from else self.options.kept_patches
        return round(GRID * GRID * share)

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The augmented images and soft targets of the current step."""
        epoch, index = divmod(self.step, self.steps_per_epoch)
        shuffle = torch.Generator().manual_seed(self.options.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.data), generator=shuffle)
        size = self.options.batch_size
        chosen = order[index * size : (index + 1) * size]
        images = cifar10.normalize(cifar10.crop_and_flip(self.padded, chosen, generator))
        labels = self.data.labels[chosen.to(self.device)]
        targets = nn.functional.one_hot(labels, len(LABELS)).float()
        if float(torch.rand(1, generator=generator)) < self.options.cutmix:
            images, targets = cifar10.cutmix(images, targets, generator)
        return images, targets

    def train_step(self) -> Tensor:
        """One update. All randomness derives from the seed and the step, so runs can resume."""
        generator = torch.Generator().manual_seed((self.options.seed << 32) + self.step)
        images, targets = self.batch(generator)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = forward_tokens(self.model, images, self.kept_patches(), generator)
        loss = nn.functional.cross_entropy(logits.float(), targets, label_smoothing=self.options.label_smoothing)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = learning_rate_factor(self.progress, self.options.warmup)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.detach()

    def train_epoch(self) -> float:
        """Run to the end of the current epoch, or until told to stop; the mean loss."""
        start = time.monotonic()
        losses: list[Tensor] = []
        self.model.train()
        while not self.stopping and (not losses or self.step % self.steps_per_epoch):
            losses.append(self.train_step())
        self.seconds += time.monotonic() - start
        return float(torch.stack(losses).mean()) if losses else math.nan

    def save_state(self, path: Path) -> None:
        """Replace the state file in one move, so that a killed run leaves a whole one."""
        partial = path.with_suffix(".partial")
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, partial)
        partial.replace(path)

    def load_state(self, path: Path) -> None:
        """Go on from a state file."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        """Signal handler: finish the step, save and end."""
        self.stopping = True


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weight matrices of the layers, and all other parameters."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        hidden = ".layers." in name and name.endswith(".weight") and "norm" not in name
        (matrices if hidden else others).append(parameter)
    return matrices, others


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Linear warm-up, then linear decay to zero."""
    return min((progress + 1e-4) / (warmup + 1e-4), (1.0 - progress) / (1.0 - warmup))


@torch.inference_mode()
def accuracy(model: ViTForImageClassification, split: Split) -> float:
    """Top-1 share on tensors, for validation; evaluate.py measures the saved model."""
    model.eval()
    correct = 0
    for start in range(0, len(split), 500):
        part = slice(start, start + 500)
        logits = model(pixel_values=cifar10.normalize(split.images[part])).logits
        correct += int((logits.argmax(-1) == split.labels[part]).sum())
    return correct / len(split)


def export(model: ViTForImageClassification, folder: Path) -> None:
    """config.json, model.safetensors and preprocessor_config.json."""
    model.save_pretrained(folder)
    text = json.dumps(PROCESSOR_CONFIG, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text)


def run(trainer: Trainer, validation: Split | None, state_file: Path) -> None:
    """Train to the end of the schedule, saving after every epoch."""
    options = trainer.options
    signal.signal(signal.SIGINT, trainer.stop)
    signal.signal(signal.SIGTERM, trainer.stop)
    while trainer.progress < 1.0 and not trainer.stopping:
        loss = trainer.train_epoch()
        trainer.save_state(state_file)
        export(trainer.model, options.output)
        line = f"epoch {trainer.step / trainer.steps_per_epoch:.2f}/{options.epochs}"
        line += f"  loss {loss:.4f}  {trainer.seconds:.0f} s"
        if validation is not None:
            line += f"  validation top-1 {accuracy(trainer.model, validation):.4f}"
        print(line, flush=True)


def main() -> None:
    """Set up the data, the model and the trainer, and run it."""
    options = parse_arguments()
    torch.set_flush_denormal(True)
    torch.manual_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    data, validation = cifar10.load_split(options.data, "train"), None
    if options.hold_out:
        data, validation = cifar10.hold_out(data, options.hold_out)
        validation = validation.to(torch.device(options.device))
    model = build_model(options.width, options.depth)
    initialise(model, data.images[::25], options.sharpness)
    device = torch.device(options.device)
    trainer = Trainer(options, model.to(device), data.to(device))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters, {trainer.steps_per_epoch} steps an epoch", flush=True)
    state_file = (options.state or options.output) / STATE_FILE
    state_file.parent.mkdir(parents=True, exist_ok=True)
    if state_file.exists():
        trainer.load_state(state_file)
        print(f"resumed at epoch {trainer.step / trainer.steps_per_epoch:.2f}", flush=True)
    run(trainer, validation, state_file)


if __name__ == "__main__":
    main()
