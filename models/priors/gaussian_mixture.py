"""The prior that is a mixture of Gaussians."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["GaussianMixture"]


class GaussianMixture(nn.Module):
    """Several Gaussians, p(z) = sum_m w_m N(z | loc_m, diag(scale_m^2)), with learned w, loc and scale.

    Components start with equal weights, at locs drawn from N(0, I / 2) and with variance 1 / 2: apart, and together of
    mean 0 and variance 1, as an encoder expects it.

    Args:
        latent_dim: dimensions of z.
        num_components: M.

    Attributes: `logits` (M,), `loc` and `log_scale`, (M, latent_dim) each.

    Raises: ValueError for fewer than 1 component.

    Dilokthanakul et al. (2016), Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders; as a prior
    summed out, "MoG" in Tomczak and Welling (2018).
    """

    def __init__(self, latent_dim: int, num_components: int = 10) -> None:
        super().__init__()
        if not isinstance(num_components, int) or num_components < 1:
            raise ValueError(f"num_components must be a whole number of at least 1, got {num_components!r}; try 10")
        self.latent_dim, self.num_components = latent_dim, num_components
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim) * math.sqrt(0.5))
        self.log_scale = nn.Parameter(torch.full((num_components, latent_dim), 0.5 * math.log(0.5)))

    @property
    def scale(self) -> Tensor:
        """The standard deviations, (num_components, latent_dim)."""
        return self.log_scale.exp()

    def forward(self) -> dist.TorchDistribution:
        """Event shape (latent_dim,)."""
        components = dist.Normal(self.loc, self.scale).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)
