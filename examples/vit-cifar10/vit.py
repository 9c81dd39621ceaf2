"""The model: a plain Hugging Face ViT, its initialisation and its training-time forward pass."""

from __future__ import annotations

import math

import torch
from cifar10 import IMAGE_SIZE, LABELS, normalize
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

PATCH_SIZE = 4
HEAD_SIZE = 16
GRID = IMAGE_SIZE // PATCH_SIZE
FREQUENCIES = HEAD_SIZE // 4
NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))


def build_model(width: int, depth: int) -> ViTForImageClassification:
    """A pre-norm ViT with GELU, a [CLS] token and learned position embeddings."""
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // HEAD_SIZE,
        intermediate_size=4 * width,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
    )
    return ViTForImageClassification(config)


def position_features() -> Tensor:
    """Cosines and sines of each patch's column and row: (patches, HEAD_SIZE)."""
    angle = torch.outer(torch.arange(GRID), torch.arange(1, FREQUENCIES + 1)) * (math.pi / GRID)
    axis = torch.stack((angle.cos(), angle.sin()), dim=-1).flatten(1)
    rows = axis[:, None].expand(GRID, GRID, -1)
    columns = axis[None].expand(GRID, GRID, -1)
    return torch.cat((rows, columns), dim=-1).flatten(0, 1)


def shift_matrix(row: int, column: int) -> Tensor:
    """The rotation that turns a patch's position features into those of its neighbour."""
    rotation = torch.zeros(HEAD_SIZE, HEAD_SIZE)
    for axis, step in enumerate((row, column)):
        for frequency in range(FREQUENCIES):
            angle = step * (frequency + 1) * math.pi / GRID
            cosine, sine = math.cos(angle), math.sin(angle)
            first = 2 * (axis * FREQUENCIES + frequency)
            pair = slice(first, first + 2)
            rotation[pair, pair] = torch.tensor([[cosine, -sine], [sine, cosine]])
    return rotation


def whitening_filters(images: Tensor, width: int) -> Tensor:
    """Patch filters under which the patches of ``images`` have uncorrelated unit channels."""
    unfold = nn.functional.unfold(normalize(images), PATCH_SIZE, stride=PATCH_SIZE)
    patches = unfold.transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    whitening = vectors * (values + 1e-3 * values.max()).rsqrt()
    mix = nn.init.orthogonal_(torch.empty(width, len(values)))
    filters: Tensor = mix @ whitening.T * (width / len(values)) ** 0.5
    return filters.view(width, 3, PATCH_SIZE, PATCH_SIZE)


@torch.no_grad()
def initialise(model: ViTForImageClassification, images: Tensor, sharpness: float) -> None:
    """Start as a local network: whitened patches, one neighbour for each attention head.

    The first HEAD_SIZE channels carry the patch's position. Queries and keys read those
    channels so that head h at first attends to the neighbour NEIGHBOURS[h]; both stay free
    to learn anything else. The [CLS] token, which has no position, attends to all alike.
    """
    embeddings = model.vit.embeddings
    width = model.config.hidden_size
    filters = 0.5 * whitening_filters(images, width)
    filters[:HEAD_SIZE] *= 0.1
    embeddings.patch_embeddings.projection.weight.copy_(filters)
    embeddings.patch_embeddings.projection.bias.zero_()
    embeddings.position_embeddings.zero_()
    embeddings.position_embeddings[0, 1:, :HEAD_SIZE] = position_features()
    for layer in model.vit.layers:
        attention = layer.attention
        nn.init.normal_(attention.q_proj.weight, std=0.02)
        nn.init.normal_(attention.k_proj.weight, std=0.02)
        for head in range(model.config.num_attention_heads):
            rows = slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
            shift = shift_matrix(*NEIGHBOURS[head % len(NEIGHBOURS)])
            attention.q_proj.weight[rows, :HEAD_SIZE] += sharpness * shift
            attention.k_proj.weight[rows, :HEAD_SIZE] += sharpness * torch.eye(HEAD_SIZE)
        nn.init.orthogonal_(attention.v_proj.weight)
        nn.init.orthogonal_(attention.o_proj.weight, gain=0.5)
        nn.init.orthogonal_(layer.mlp.fc1.weight)
        nn.init.orthogonal_(layer.mlp.fc2.weight, gain=0.5)
    nn.init.zeros_(model.classifier.weight)


def forward_tokens(model: ViTForImageClassification, pixels: Tensor, kept: int, generator: torch.Generator) -> Tensor:
    """Logits from ``kept`` random patches of each image (patch dropout); all of them if 64."""
    embeddings = model.vit.embeddings
    position = embeddings.position_embeddings
    tokens = embeddings.patch_embeddings(pixels) + position[:, 1:]
    count, patches, width = tokens.shape
    if kept < patches:
        order = torch.rand(count, patches, generator=generator).argsort(dim=1)[:, :kept]
        index = order.to(tokens.device)[:, :, None].expand(-1, -1, width)
        tokens = tokens.gather(1, index)
    cls = (embeddings.cls_token + position[:, :1]).expand(count, -1, -1).to(tokens.dtype)
    tokens = torch.cat((cls, tokens), dim=1)
    for layer in model.vit.layers:
        tokens = layer(tokens)
    logits: Tensor = model.classifier(model.vit.layernorm(tokens[:, :1])[:, 0])
    return logits
