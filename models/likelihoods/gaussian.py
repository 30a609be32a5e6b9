"""The Gaussian likelihood of real values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

__all__ = ["Gaussian"]


class Gaussian(nn.Module):
    """Real values: p(x | z) = prod_d N(x_d | loc_d, scale^2), with a floor on the scale.

    Without a floor the likelihood of a learned scale has no upper bound (Mattei and Frellsen 2018).

    Args:
        scale: a number to hold it fixed; "shared" to learn one scale for all values; "learned" to have the
            decoder give one per value.
        floor: the least scale, in the units of the data.

    Raises: ValueError for another word, or a scale or floor that is not positive.
    """

    def __init__(self, scale: float | Literal["shared", "learned"] = "shared", floor: float = 1e-3) -> None:
        super().__init__()
        if isinstance(scale, str):
            if scale not in ("shared", "learned"):
                raise ValueError(f"scale must be a positive number, 'shared' or 'learned', got {scale!r}")
        elif not scale > 0:
            raise ValueError(f"scale must be positive, got {scale!r}; try 1.0")
        if not floor > 0:
            raise ValueError(f"floor must be positive, got {floor!r}; try 1e-3")
        self.scale, self.floor = scale, floor
        self.num_parameters = 2 if scale == "learned" else 1
        if scale == "shared":
            self.unconstrained_scale = nn.Parameter(torch.tensor(math.log(math.e - 1)))

    def parameter_shape(self, x_shape: Sequence[int]) -> tuple[int, ...]:
        """(*x_shape,) for the locs, or (2, *x_shape) for locs and scales."""
        return (2, *x_shape) if self.num_parameters == 2 else tuple(x_shape)

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """(..., *parameter_shape) -> a distribution with event shape `x_shape`."""
        loc, scale = parameters, parameters.new_tensor(0.0)
        if self.num_parameters == 2:
            loc, raw = parameters.unbind(-1 - len(x_shape))
            scale = self.floor + softplus(raw)
        elif self.scale == "shared":
            scale = self.floor + softplus(self.unconstrained_scale)
        else:
            scale = torch.full_like(scale, float(self.scale))
        return dist.Normal(loc, scale).to_event(len(x_shape))
