"""The standard normal prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pvae.support.refusals import whole

__all__ = ["StandardNormal"]


class StandardNormal(nn.Module):
    """The standard normal prior, p(z) = N(0, I) over `latent_dim` dimensions.

    Raises: ValueError for a `latent_dim` below 1.
    """

    zero: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = whole("latent_dim", latent_dim, usual=8)
        self.register_buffer("zero", torch.zeros(self.latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Event shape (latent_dim,)."""
        return dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1)
