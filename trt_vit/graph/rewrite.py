"""Every pass over the graph, in the order in which each finds what it looks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from trt_vit.graph.attention_scale import scale_queries
from trt_vit.graph.branches import take_branches
from trt_vit.graph.fold import fold
from trt_vit.graph.gelu import fuse_gelu
from trt_vit.graph.layer_normalization import fuse_layer_normalization
from trt_vit.graph.opset import upgrade
from trt_vit.graph.qkv import fold_scales, merge_projections
from trt_vit.graph.stacked_qkv import split_along_heads
from trt_vit.graph.tokens import take_tokens_early

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 20
"""Gelu is an operator from here on."""


def rewrite(model: ir.Model, *, opset: int = OPSET) -> tuple[ir.Model, dict[str, int]]:
    """Give the compiler a graph that it makes the fewest kernels of, whichever exporter wrote it.

    Outputs stay those of the graph before, but for rounding in float32. A graph that holds Q/DQ nodes is not meant to
    come here: where they lie is part of what it says.

    Args:
        model: An fp32 graph of opset 13 or later, all of whose sizes but the batch are fixed.
        opset: Version of the default operator set to bring it to.

    Returns:
        The rewritten graph, and how often each pass changed something, by the pass's name.

    Raises:
        ExportError: The graph cannot be brought to the operator set, has branches or loops that its input decides, or
            constants that cannot be computed.
    """
    model = upgrade(model, opset)
    counts: dict[str, int] = {}
    for one_pass in (
        take_branches,
        fold,
        fuse_layer_normalization,
        fuse_gelu,
        split_along_heads,
        scale_queries,
        merge_projections,
        fold_scales,
        take_tokens_early,
    ):
        counts[one_pass.__name__] = one_pass(model)
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)
    return model, counts
