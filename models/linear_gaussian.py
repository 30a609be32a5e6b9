"""Probabilistic PCA: the latent-variable model whose every quantity has a closed form."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["LinearGaussian"]


class LinearGaussian(nn.Module):
    """Probabilistic PCA: z ~ N(0, I_L), x | z ~ N(W z + mu, s2 I_D).

    Args:
        x_dim: D.
        latent_dim: L.

    Attributes: `weight` W (D, L), `loc` mu (D,), `log_scale` log s, a scalar.

    Sites: "z" (L,) and "x" (D,), in the plate "data".

    Raises: ValueError for a size below 1, or a batch that does not have the shape (B, D).

    Tipping and Bishop (1999), Probabilistic Principal Component Analysis.
    """

    def __init__(self, x_dim: int, latent_dim: int) -> None:
        super().__init__()
        for name, size in {"x_dim": x_dim, "latent_dim": latent_dim}.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}; try 8")
        self.x_dim, self.latent_dim = x_dim, latent_dim
        self.weight = nn.Parameter(torch.randn(x_dim, latent_dim) / math.sqrt(latent_dim))
        self.loc = nn.Parameter(torch.zeros(x_dim))
        self.log_scale = nn.Parameter(torch.zeros(()))

    @classmethod
    @torch.no_grad()
    def maximum_likelihood(cls, x: Tensor, latent_dim: int) -> LinearGaussian:
        """The model of highest likelihood for data x (N, D), in closed form and in x's dtype.

        s2 is the mean of the D - L least eigenvalues of the covariance, W = U (Lambda - s2 I)^(1/2).

        Raises: ValueError unless x is (N, D) with N >= 2 and 1 <= latent_dim < D.
        """
        if x.dim() != 2 or len(x) < 2 or not 1 <= latent_dim < x.shape[1]:
            raise ValueError(
                f"expected data (N, D) with N >= 2 and 1 <= latent_dim < D, got {tuple(x.shape)} and "
                f"latent_dim {latent_dim}; flatten each datum, or ask for fewer dimensions"
            )
        model = cls(x.shape[1], latent_dim).to(x)
        values, vectors = torch.linalg.eigh(x.T.cov(correction=0))
        values, vectors = values.flip(0), vectors.flip(1)
        noise = values[latent_dim:].mean()
        model.weight.copy_(vectors[:, :latent_dim] * (values[:latent_dim] - noise).clamp(min=0).sqrt())
        model.loc.copy_(x.mean(0))
        model.log_scale.copy_(0.5 * noise.log())
        return model

    def forward(self, x: Tensor) -> Tensor:
        """Run the model on a batch x (B, D); returns the observed x."""
        self._check(x)
        pyro.module("linear_gaussian", self)
        with pyro.plate("data", len(x)):
            zero = self.weight.new_zeros(self.latent_dim)
            z = pyro.sample("z", dist.Normal(zero, torch.ones_like(zero)).to_event(1))
            loc = z @ self.weight.T + self.loc
            return pyro.sample("x", dist.Normal(loc, self.log_scale.exp()).to_event(1), obs=x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log p(x), (B,), in nats: the density of N(mu, W W' + s2 I)."""
        self._check(x)
        return dist.LowRankMultivariateNormal(
            self.loc, self.weight, (2 * self.log_scale).exp().expand(self.x_dim), validate_args=False
        ).log_prob(x)

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """Exact p(z | x) = N(M^-1 W'(x - mu), s2 M^-1) with M = W'W + s2 I, for x (B, D)."""
        self._check(x)
        noise = (2 * self.log_scale).exp()
        eye = torch.eye(self.latent_dim, dtype=self.weight.dtype, device=self.weight.device)
        precision = self.weight.T @ self.weight / noise + eye
        loc = torch.linalg.solve(precision, ((x - self.loc) @ self.weight / noise).mT).mT
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def _check(self, x: Tensor) -> None:
        if x.dim() != 2 or x.shape[1] != self.x_dim:
            raise ValueError(
                f"LinearGaussian expects a batch of shape (B, {self.x_dim}), got {tuple(x.shape)}; "
                "flatten each datum, or build the model with their width"
            )
