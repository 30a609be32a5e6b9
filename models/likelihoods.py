"""Likelihoods p(x | z): modules that turn a decoder's output into the distribution of one datum.

Each says how many numbers per observed value it wants from the decoder (`num_parameters`), and how a
decoder's output is shaped (`parameter_shape`); `forward` takes that output with any leading dims.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

__all__ = ["Bernoulli", "Categorical", "Gaussian"]


class Bernoulli(nn.Module):
    """Binary values: p(x | z) = prod_d Bernoulli(x_d | sigmoid(logits_d)), for x in {0, 1}."""

    num_parameters = 1

    def parameter_shape(self, x_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the decoder's output for a datum of shape `x_shape`: the logits."""
        return tuple(x_shape)

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """Logits (..., *x_shape) -> a distribution with event shape `x_shape`."""
        return dist.Bernoulli(logits=parameters).to_event(len(x_shape))


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


class Categorical(nn.Module):
    """Categories 0 ... num_categories - 1: p(x | z) = prod_d Categorical(x_d | softmax(logits_d)).

    Raises: ValueError for fewer than 2 categories.
    """

    def __init__(self, num_categories: int) -> None:
        super().__init__()
        if num_categories < 2:
            raise ValueError(f"num_categories must be at least 2, got {num_categories}; count the values of x")
        self.num_parameters = num_categories

    def parameter_shape(self, x_shape: Sequence[int]) -> tuple[int, ...]:
        """(*x_shape, num_categories): the logits."""
        return (*x_shape, self.num_parameters)

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """Logits (..., *x_shape, num_categories) -> a distribution with event shape `x_shape`."""
        return dist.Categorical(logits=parameters).to_event(len(x_shape))
