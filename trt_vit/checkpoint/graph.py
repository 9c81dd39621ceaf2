"""From a torch module to an ONNX graph that compilers fuse well, and the check that both compute the same.

torch's dynamo exporter is used, as it is the one that handles every tested architecture (the older one, based on
TorchScript, fails on DINOv2 with registers) and computes at export time all that depends on weights and image size
alone: of a ViT with two layers it makes 77 nodes where the older one makes 197, of a BEiT 81 instead of 1,542, as
position embeddings and relative position biases become constants. What it makes of transformers' own attention is not
clean, though: torch's fused attention becomes a softmax guarded against rows of NaN, and eager attention adds a mask of
zeros to all scores, since under export transformers no longer sees that nothing is masked. Both keep compilers from
recognising attention, so the graph is traced with the attention below.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trt_vit.checkpoint.files import quiet
from trt_vit.errors import CheckpointError, ExportError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

OPSET = 18
"""The exporter's native operator set: LayerNormalization is one node, and every runtime reads it."""

_BATCHES = (1, 3)
_ATTENTION = "trt_vit"


@dataclass(frozen=True)
class Reference:
    """What torch answers: ``logits`` [batch, classes] to ``images`` [batch, 3, height, width], both float32."""

    images: NDArray[np.float32]
    logits: NDArray[np.float32]


def check_opset(opset: int) -> None:
    """Refuse an operator set that the exporter or the installed onnx does not have.

    Raises:
        UsageError: ``opset`` is out of range.
    """
    import onnx.defs

    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise UsageError(f"opset {opset} cannot be exported", hint=f"choose {OPSET} to {newest}")


def reference_logits(module: torch.nn.Module, image_size: tuple[int, int]) -> tuple[Reference, ...]:
    """The logits of random normal images of two batch sizes, the same ones on every call.

    Raises:
        CheckpointError: The module does not take such images, or does not answer with logits [batch, classes].
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    references = []
    for batch in _BATCHES:
        images = torch.randn(batch, 3, *image_size, generator=generator)
        try:
            with torch.inference_mode():
                logits = module(pixel_values=images).logits
        except (RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{type(module).__name__} does not take images of {image_size[0]}x{image_size[1]}: {error}",
                hint="pass a preprocessor_config.json with the size the model takes: --preprocessor FILE",
            ) from error
        references.append(Reference(images.numpy(), logits.numpy()))
    return tuple(references)


def trace(
    module: torch.nn.Module, image_size: tuple[int, int], *, opset: int, input_name: str, output_name: str
) -> torch.onnx.ONNXProgram:
    """Export a transformers image classifier with a dynamic batch named "batch" and a fixed image size.

    Raises:
        ExportError: torch cannot export the module.
    """
    import torch

    example = torch.zeros(2, 3, *image_size)
    batch = torch.export.Dim("batch")
    try:
        with quiet(), _attention_for_compilers(module), _means_for_compilers(module), torch.no_grad():
            program = torch.onnx.export(
                _logits_of(module),
                (example,),
                input_names=[input_name],
                output_names=[output_name],
                dynamic_shapes=({0: batch},),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(
            f"torch cannot export {type(module).__name__}: {reason}",
            hint="export the model to ONNX yourself and pass the .onnx file",
        ) from error
    if program is None:
        raise ExportError("torch returned no graph", hint="upgrade torch: pip install -U torch")
    return program


def max_abs_difference(path: Path, references: tuple[Reference, ...]) -> float:
    """The largest absolute difference of a logit that ONNX Runtime computes from its reference; NaN if either has one.

    Raises:
        ExportError: ONNX Runtime does not load or run the file, or answers with another shape.
    """
    import numpy as np
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as faults

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    differences = []
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for reference in references:
            (logits,) = session.run(None, {session.get_inputs()[0].name: reference.images})
            if logits.shape != reference.logits.shape:
                raise ExportError(
                    f"{path.name}: the graph answers {logits.shape} where torch answers {reference.logits.shape}",
                    hint="export the model to ONNX yourself and pass the .onnx file",
                )
            differences.append(np.abs(logits - reference.logits).max())
    except (
        faults.Fail,
        faults.InvalidArgument,
        faults.InvalidGraph,
        faults.NotImplemented,
        faults.RuntimeException,
    ) as error:
        raise ExportError(
            f"{path.name}: ONNX Runtime does not run the exported graph: {error}", hint="try another version of torch"
        ) from error
    return float(np.max(differences))


def _logits_of(module: torch.nn.Module) -> torch.nn.Module:
    import torch

    class Logits(torch.nn.Module):
        """A classifier with one output, as the models answer with an object that holds several tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.classifier = module

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.classifier(pixel_values=pixel_values).logits
            return logits

    return Logits().eval()


@contextlib.contextmanager
def _attention_for_compilers(module: Any) -> Iterator[None]:
    """Let a transformers model attend by plain products and a softmax, where its architecture lets one choose.

    An attention implementation that transformers has no mask for gets none. Queries are scaled before the product, as
    TensorRT's fused INT8 attention wants them, and so that scores in fp16 stay small.
    """
    import torch
    from transformers import AttentionInterface

    def attend(
        _: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        scaling: float | None = None,
        **_ignored: object,
    ) -> tuple[torch.Tensor, None]:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = torch.matmul(query * scale, key.transpose(-1, -2))
        if attention_mask is not None:  # BEiT's and Swin's position biases come this way
            scores = scores + attention_mask
        return torch.matmul(torch.softmax(scores, dim=-1), value).transpose(1, 2).contiguous(), None

    AttentionInterface.register(_ATTENTION, attend)
    before = module.config._attn_implementation  # noqa: SLF001  # has no public name
    module.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        module.set_attn_implementation(before)


@contextlib.contextmanager
def _means_for_compilers(module: torch.nn.Module) -> Iterator[None]:
    """Let adaptive average pooling to one number (Swin's) be a mean: exported, it gathers rows by computed indices."""
    import torch

    pools = [
        part for part in module.modules() if isinstance(part, torch.nn.AdaptiveAvgPool1d) and part.output_size == 1
    ]
    for pool in pools:
        pool.forward = lambda tokens: tokens.mean(-1, keepdim=True)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for pool in pools:
            del pool.forward
