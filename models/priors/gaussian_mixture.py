"""The prior that is a mixture of Gaussians."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pvae.support.refusals import whole

__all__ = ["GaussianMixture"]


class GaussianMixture(nn.Module):
    """Several Gaussians, p(z) = sum_m w_m N(z | loc_m, diag(scale_m^2)), with learned w, loc and scale.

    Components start with equal weights, at locs drawn from N(0, I / 2) and with variance 1 / 2: apart, and together of
    mean 0 and variance 1, as an encoder expects it.

    Args:
        latent_dim: dimensions of z.
        num_components: M.

    Attributes: `logits` (M,), `loc` and `log_scale`, (M, latent_dim) each.

    Raises: ValueError for a `latent_dim` or `num_components` below 1.

    Dilokthanakul et al. (2016), Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders; as a prior
    summed out, "MoG" in Tomczak and Welling (2018).
    """

    def __init__(self, latent_dim: int, num_components: int = 10) -> None:
        super().__init__()
        self.latent_dim = whole("latent_dim", latent_dim, usual=8)
        self.num_components = whole("num_components", num_components, usual=10)
        shape = (self.num_components, self.latent_dim)
        self.logits = nn.Parameter(torch.zeros(self.num_components))
        self.loc = nn.Parameter(torch.randn(shape) * math.sqrt(0.5))
        self.log_scale = nn.Parameter(torch.full(shape, 0.5 * math.log(0.5)))

    @property
    def scale(self) -> Tensor:
        """The standard deviations, (num_components, latent_dim)."""
        return self.log_scale.exp()

    def forward(self) -> dist.TorchDistribution:
        """Event shape (latent_dim,)."""
        components = dist.Normal(self.loc, self.scale).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)
