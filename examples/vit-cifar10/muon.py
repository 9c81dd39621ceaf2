"""Muon (momentum orthogonalised by Newton-Schulz iterations) for matrices."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable

# The quintic of the iteration: steep at zero, and bounded near one for every singular value.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of wide matrices, stacked in the first axis, close to one."""
    first, third, fifth = QUINTIC
    if matrices.is_cuda:
        matrices = matrices.bfloat16()
    x: Tensor = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = first * x + (third * gram + fifth * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay. Takes matrices only."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 (the base class has it)
        """Update every parameter from its gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[min(parameter.shape), max(parameter.shape)].append(parameter)
            for parameters in by_shape.values():
                self._step_stack(parameters, group["lr"], group["momentum"], group["weight_decay"])

    def _step_stack(self, parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        """Update parameters of one shape (or its transpose) with a single batched iteration."""
        directions = []
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None:
                raise ValueError("Muon needs a gradient for every parameter")
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(gradient, 1.0 - momentum)
            direction = gradient.lerp(state["momentum"], momentum)
            directions.append(direction.mT if is_tall(parameter) else direction)
        updates = orthogonalise(torch.stack(directions))
        for parameter, update in zip(parameters, updates, strict=True):
            rows, columns = parameter.shape
            scale = max(1.0, rows / columns) ** 0.5
            oriented = update.mT if is_tall(parameter) else update
            parameter.mul_(1.0 - lr * weight_decay)
            parameter.add_(oriented.to(parameter.dtype), alpha=-lr * scale)


def is_tall(matrix: Tensor) -> bool:
    """Whether a matrix has more rows than columns."""
    return matrix.shape[0] > matrix.shape[1]
