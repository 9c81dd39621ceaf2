"""How much each group of layers, quantized alone, moves the logits."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_vit.graph.segments import cut
from trt_vit.quantize.agreement import squared_error
from trt_vit.quantize.qdq import place
from trt_vit.quantize.session import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

    from trt_vit.quantize.solve import GroupCodes

    Batches = list[NDArray[np.float32]]


def sensitivities(
    model: ir.Model, groups: Mapping[str, GroupCodes], batches: Batches, tell: Callable[[int, int], None]
) -> dict[str, float]:
    """Measure what quantizing one group of layers, and nothing else, does to the logits.

    The graph runs once as it is. Then each group costs its own part of the graph and the parts behind it.

    Args:
        model: The float graph.
        groups: How each group is quantized, by its name.
        batches: Preprocessed images, float32 [n, 3, height, width] each.
        tell: Called with how many groups are done, and how many there are.

    Returns:
        Mean squared error of an image's logits, summed over the classes, by the group's name.
    """
    parts = cut(model, {layer for group in groups.values() for layer in group.layers})
    results: dict[str, float] = {}
    with ExitStack() as stack:
        sessions = [stack.enter_context(opened(part)) for part in parts]
        reaching = [batches]
        for session in sessions:
            reaching.append(_run(session, reaching[-1]))
        reference = np.concatenate(reaching.pop())
        for index, (part, given) in enumerate(zip(parts, reaching, strict=True)):
            names = {node.name for node in part.graph}
            for name, group in groups.items():
                if not names.issuperset(group.layers):
                    continue
                changed = part.clone()
                place(changed, [group])
                with opened(changed) as session:
                    moved = _run(session, given)
                for later in sessions[index + 1 :]:
                    moved = _run(later, moved)
                results[name] = squared_error(np.concatenate(moved), reference)
                tell(len(results), len(groups))
    return results


def _run(session: Any, batches: Batches) -> Batches:
    given = session.get_inputs()[0].name
    return [np.asarray(session.run(None, {given: batch})[0], dtype=np.float32) for batch in batches]
