"""The Gaussian prior with a learned loc and scale."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pvae.support.refusals import whole

__all__ = ["Gaussian"]


class Gaussian(nn.Module):
    """Independent Gaussians, p(z) = prod_d N(z_d | loc_d, scale_d^2), with learned loc and scale.

    It starts as the standard normal. A decoder that begins with an affine layer can absorb both, so that it pays where
    the decoder is fixed, or not affine at its start.

    Args:
        latent_dim: dimensions of z.

    Attributes: `loc` and `log_scale`, (latent_dim,) each.

    Raises: ValueError for a `latent_dim` below 1.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = whole("latent_dim", latent_dim, usual=8)
        self.loc = nn.Parameter(torch.zeros(self.latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(self.latent_dim))

    @property
    def scale(self) -> Tensor:
        """The standard deviations, (latent_dim,)."""
        return self.log_scale.exp()

    def forward(self) -> dist.TorchDistribution:
        """Event shape (latent_dim,)."""
        return dist.Normal(self.loc, self.scale).to_event(1)
