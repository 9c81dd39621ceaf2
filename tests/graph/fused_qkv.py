"""A transformer layer as timm writes it, with one linear layer for Q, K and V, or with three; and its exports."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

if TYPE_CHECKING:
    from pathlib import Path

Taking = Literal["unbind", "index", "separate"]
"""How the forward gets Q, K and V: of one product by unbind or indices (one negative), or of three."""
TOKENS, WIDTH, HEADS = 5, 32, 2


def export_layer(taking: Taking, exporter: Literal["dynamo", "legacy"], output: Path, *, fused: bool) -> ir.Model:
    """Export the layer and a classifier of its first token: x [batch, TOKENS, WIDTH] to y [batch, 7].

    Args:
        taking: How Q, K and V come about.
        exporter: torch's dynamo exporter at operator set 18, or its TorchScript exporter at 14.
        output: The file to write.
        fused: Whether attention is one call, or two products and a softmax.
    """
    import torch

    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    example = (torch.zeros(2, TOKENS, WIDTH),)
    torch.manual_seed(0)
    module = _layer(taking, fused=fused).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            batch = ({0: torch.export.Dim("batch")},)
            program = torch.onnx.export(
                module, example, dynamo=True, opset_version=18, dynamic_shapes=batch, verbose=False, **names
            )
            assert program is not None
            program.save(output)
        else:
            axes = {"x": {0: "batch"}, "y": {0: "batch"}}
            torch.onnx.export(module, example, str(output), dynamo=False, opset_version=14, dynamic_axes=axes, **names)
    return ir.load(output)


def _layer(taking: Taking, *, fused: bool) -> Any:
    import torch
    from torch import nn
    from torch.nn.functional import gelu, scaled_dot_product_attention

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])
            if taking != "separate":
                self.qkv = nn.ModuleList([nn.Linear(WIDTH, 3 * WIDTH)])
            self.projection = nn.Linear(WIDTH, WIDTH)
            self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
            self.head = nn.Linear(WIDTH, 7)

        def heads(self, x: torch.Tensor) -> Any:
            batch, tokens, _ = x.shape
            if taking == "separate":
                return [part(x).reshape(batch, tokens, HEADS, WIDTH // HEADS).transpose(1, 2) for part in self.qkv]
            stacked = self.qkv[0](x).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            return stacked.unbind(0) if taking == "unbind" else (stacked[0], stacked[1], stacked[-1])

        def attend(self, x: torch.Tensor) -> Any:
            q, k, v = self.heads(x)
            if fused:
                return self.joined(x, scaled_dot_product_attention(q, k, v))
            q = q * (WIDTH // HEADS) ** -0.5
            return self.joined(x, (q @ k.transpose(-2, -1)).softmax(-1) @ v)

        def joined(self, x: torch.Tensor, heads: torch.Tensor) -> Any:
            return self.projection(heads.transpose(1, 2).reshape(x.shape))

        def forward(self, x: torch.Tensor) -> Any:
            x = x + self.attend(self.norm1(x))
            x = x + self.fc2(gelu(self.fc1(self.norm2(x))))
            return self.head(x[:, 0])

    return Layer()
