"""Probabilistic PCA: the latent-variable model whose every quantity has a closed form."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pvae.models.likelihoods import observed_only
from pvae.support.masks import as_mask
from pvae.support.refusals import whole

__all__ = ["LinearGaussian"]


class LinearGaussian(nn.Module):
    """Probabilistic PCA: z ~ N(0, I_L), x | z ~ N(W z + mu, s2 I_D).

    Args:
        x_dim: D.
        latent_dim: L.

    Attributes: `weight` W (D, L), `loc` mu (D,), `log_scale` log s, a scalar.

    Sites: "z" (L,) and "x" (D,), in the plate "data". A batch may be (x, observed): the entries of x where the bool
    tensor `observed` does not hold are missing, and every quantity is that of the observed entries.

    Raises: ValueError for a size below 1, or a batch that does not have the shape (B, D).

    Tipping and Bishop (1999), Probabilistic Principal Component Analysis.
    """

    def __init__(self, x_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.x_dim = whole("x_dim", x_dim, usual=8)
        self.latent_dim = whole("latent_dim", latent_dim, usual=8)
        self.weight = nn.Parameter(torch.randn(self.x_dim, self.latent_dim) / math.sqrt(self.latent_dim))
        self.loc = nn.Parameter(torch.zeros(self.x_dim))
        self.log_scale = nn.Parameter(torch.zeros(()))

    @classmethod
    @torch.no_grad()
    def maximum_likelihood(cls, x: Tensor, latent_dim: int) -> LinearGaussian:
        """The model of highest likelihood for data x (N, D), in closed form and in x's dtype.

        s2 is the mean of the D - L least eigenvalues of the covariance, W = U (Lambda - s2 I)^(1/2).

        Raises: ValueError unless x is (N, D) with N >= 2 and 1 <= latent_dim < D, of finite real numbers, and varies in
        more than latent_dim directions: else s2 = 0, and the likelihood has no maximum.
        """
        latent_dim = whole("latent_dim", latent_dim, usual=8)
        if x.dim() != 2 or len(x) < 2 or latent_dim >= x.shape[1]:
            raise ValueError(
                f"expected data (N, D) with N >= 2 and 1 <= latent_dim < D, got {tuple(x.shape)} and "
                f"latent_dim {latent_dim}; flatten each datum, or ask for fewer dimensions"
            )
        if not x.is_floating_point():
            raise ValueError(f"expected data of real numbers, got {x.dtype}; convert them with .float() or .double()")
        if num_bad := int((~x.isfinite()).sum()):
            raise ValueError(
                f"data hold {num_bad} values that are nan or inf, of which no covariance is known; drop or impute "
                "them, or train the model with pvae.fit on (x, observed) = pvae.data.missing(x)"
            )
        model = cls(x.shape[1], latent_dim).to(x)
        values, vectors = torch.linalg.eigh(x.T.cov(correction=0))
        values, vectors = values.flip(0), vectors.flip(1)
        noise = values[latent_dim:].mean()
        if not noise > len(values) * torch.finfo(x.dtype).eps * values[0]:
            raise ValueError(
                f"the {len(x)} data vary in no more than {latent_dim} directions, so the best noise is 0 and the "
                "likelihood has no maximum; ask for fewer dimensions, or give more data"
            )
        model.weight.copy_(vectors[:, :latent_dim] * (values[:latent_dim] - noise).clamp(min=0).sqrt())
        model.loc.copy_(x.mean(0))
        model.log_scale.copy_(0.5 * noise.log())
        return model

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Run the model on a batch x (B, D), of which only `observed` entries count; returns the observed x."""
        self._check(x)
        pyro.module("linear_gaussian", self)
        with pyro.plate("data", len(x)):
            zero = self.weight.new_zeros(self.latent_dim)
            z = pyro.sample("z", dist.Normal(zero, torch.ones_like(zero)).to_event(1))
            likelihood = dist.Normal(z @ self.weight.T + self.loc, self.log_scale.exp()).to_event(1)
            if observed is not None:
                likelihood, x = observed_only(likelihood, x, observed)
            return pyro.sample("x", likelihood, obs=x)

    def log_prob(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Exact log p(x_obs), (B,), in nats: the density of N(mu, W W' + s2 I) over the observed entries."""
        residual, weight = self._observed(x, observed)
        noise = (2 * self.log_scale).exp().expand(self.x_dim)
        marginal = dist.LowRankMultivariateNormal(torch.zeros_like(self.loc), weight, noise, validate_args=False)
        if observed is None:
            return marginal.log_prob(residual)
        # A missing entry stands in the density as a 0 under N(0, s2).
        of_one = 0.5 * math.log(2 * math.pi) + self.log_scale
        return marginal.log_prob(residual) + of_one * (~as_mask(observed)).sum(-1)

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> dist.MultivariateNormal:
        """Exact p(z | x_obs) = N(M^-1 W'(x - mu), s2 M^-1), M = W'W + s2 I over the observed entries of x (B, D)."""
        residual, weight = self._observed(x, observed)
        noise = (2 * self.log_scale).exp()
        eye = torch.eye(self.latent_dim, dtype=self.weight.dtype, device=self.weight.device)
        precision = weight.mT @ weight / noise + eye
        loc = torch.linalg.solve(precision, (residual @ self.weight / noise).unsqueeze(-1)).squeeze(-1)
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def _observed(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """x - mu and W, with zeros for missing entries: (B, D) and (B, D, L), or (D, L) where none is."""
        self._check(x)
        if observed is None:
            return x - self.loc, self.weight
        observed = as_mask(observed)
        return torch.where(observed, x - self.loc, 0.0), self.weight * observed.unsqueeze(-1)

    def _check(self, x: Tensor) -> None:
        if x.dim() != 2 or x.shape[1] != self.x_dim:
            raise ValueError(
                f"LinearGaussian expects a batch of shape (B, {self.x_dim}), got {tuple(x.shape)}; "
                "flatten each datum, or build the model with their width"
            )
