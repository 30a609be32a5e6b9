"""Where an integrand of one or two dims is not as good as zero: a box for each datum.

Points are (K, B, D) and log f is (K, B), for K points, B data and D dims.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["LogIntegrand", "bounding_box", "product"]

LogIntegrand = Callable[[Tensor], Tensor]

_DEPTH = 40.0  # nats below the maximum at which an integrand is as good as zero
_COARSE = {1: 129, 2: 49}
_MOST_ZOOMS = 48
# Grid steps to leave free around what is inside, where a wedge may end unseen; and what shrinkage is worth a round.
_MARGIN, _LESS = 3, 0.7


def bounding_box(log_f: LogIntegrand, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper corners, (B, D) each, of the box where log f is within 40 nats of its maximum.

    From the box given, a coarse grid is widened where it cuts the integrand off, and zoomed in where most of it is
    empty. A grid point counts as inside if log f could be high enough anywhere between it and its neighbours.
    """
    num_dims = low.shape[-1]
    size = _COARSE[num_dims]
    grid = product(torch.linspace(0, 1, size, dtype=low.dtype, device=low.device), num_dims)
    largest = torch.full_like(low[:, 0], -math.inf)
    for _ in range(_MOST_ZOOMS):
        width = high - low
        values = torch.nan_to_num(log_f(low + width * grid[:, None]), nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
        largest = torch.maximum(largest, values.amax(0))
        values = values.unflatten(0, (size,) * num_dims)
        inside = _highest(values, num_dims) >= largest - _DEPTH
        moved, lows, highs = torch.zeros_like(low, dtype=torch.bool), [], []
        for dim in range(num_dims):
            along = inside.any(1 - dim) if num_dims == 2 else inside
            first, last = _ends(along)
            step, span = width[:, dim] / (size - 1), width[:, dim]
            lower = torch.where(first == 0, low[:, dim] - span, low[:, dim] + (first - _MARGIN) * step)
            upper = torch.where(last == size - 1, high[:, dim] + span, low[:, dim] + (last + _MARGIN) * step)
            cut = (first == 0) | (last == size - 1)
            moved[:, dim] = along.any(0) & (cut | (upper - lower < _LESS * span))
            lows.append(lower)
            highs.append(upper)
        low = torch.where(moved, torch.stack(lows, -1), low)
        high = torch.where(moved, torch.stack(highs, -1), high)
        if not bool(moved.any()):
            break
    return low, high


def _highest(values: Tensor, num_dims: int) -> Tensor:
    """How high log f could be between each point of the grid and its neighbours along an axis.

    Where log f is concave, it stays below the lines through the two points to the left and the two to the right of a
    gap. A line that is not known, for a point lies outside the grid or where the integrand is zero, bounds nothing.
    """
    highest = values.clone()
    for dim in range(num_dims):
        size = values.shape[dim]
        change = values.diff(dim=dim)
        beyond = torch.full_like(values.narrow(dim, 0, 1), math.inf)
        from_left = torch.cat([beyond, change], dim)
        from_right = torch.cat([-change, beyond], dim)
        left, right = (
            torch.where(values.isfinite() & rise.isfinite(), values + rise.clamp(min=0), math.inf)
            for rise in (from_left, from_right)
        )
        bound = torch.minimum(left.narrow(dim, 0, size - 1), right.narrow(dim, 1, size - 1))
        bound = bound.masked_fill(bound.isposinf(), -math.inf)
        for start in (0, 1):
            part = highest.narrow(dim, start, size - 1)
            part.copy_(torch.maximum(part, bound))
    return highest


def _ends(along: Tensor) -> tuple[Tensor, Tensor]:
    """The first and last true row of each column: (S, B) -> (B,), (B,)."""
    rows = along.int()
    return rows.argmax(0), len(rows) - 1 - rows.flip(0).argmax(0)


def product(line: Tensor, num_dims: int) -> Tensor:
    """All tuples of `num_dims` entries of a line: (S^D, D), the first dim slowest."""
    return torch.cartesian_prod(*[line] * num_dims).reshape(-1, num_dims)
