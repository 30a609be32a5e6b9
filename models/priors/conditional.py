"""A prior that knows the condition."""

from __future__ import annotations

import math

import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

from pvae.models.checks import part_or
from pvae.nets import MLP
from pvae.support.arguments import check_min_scale
from pvae.support.refusals import whole

__all__ = ["ConditionalPrior"]

_UNIT = math.log(math.e - 1)  # softplus makes 1 of it


class ConditionalPrior(nn.Module):
    """A Gaussian for every condition, p(z | c) = prod_d N(z_d | loc_d(c), scale_d(c)^2).

    Args:
        condition_dim: width C of a condition, the number of classes for one-hot labels.
        latent_dim: dimensions of z.
        net: from (..., C) to (..., 2, latent_dim), locs and raw scales; by default an affine map, which for one-hot
            labels is a table of one loc and one scale per class.
        min_scale: floor on each scale.

    Sohn, Lee and Yan (2015), Learning Structured Output Representation using Deep Conditional Generative Models.
    """

    def __init__(
        self, condition_dim: int, latent_dim: int, *, net: nn.Module | None = None, min_scale: float = 1e-3
    ) -> None:
        super().__init__()
        self.condition_dim = whole("condition_dim", condition_dim, usual=10)
        self.latent_dim = whole("latent_dim", latent_dim, usual=8)
        self.min_scale = check_min_scale(min_scale)
        self.net = part_or("net", net, lambda: MLP(self.condition_dim, (), (2, self.latent_dim)), usual="pvae.nets.MLP")

    def forward(self, c: Tensor) -> dist.TorchDistribution:
        """Conditions (..., C) -> a distribution with batch shape (...) and event shape (latent_dim,)."""
        loc, raw = self.net(c).unbind(-2)
        return dist.Normal(loc, self.min_scale + softplus(raw + _UNIT)).to_event(1)
