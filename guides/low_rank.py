"""The Gaussian guide with a diagonal covariance plus one of low rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from pvae.guides.parts.amortized import AmortizedGuide, Encoder, read
from pvae.guides.parts.joint import sample_jointly
from pvae.guides.parts.placing import width
from pvae.support.arguments import check_min_scale
from pvae.support.refusals import whole

__all__ = ["LowRank"]


class LowRank(AmortizedGuide):
    """One Gaussian over all latent sites: q(z | x) = N(z | loc(x), diag(scale(x)^2) + F(x) F(x)').

    F is (D, rank) for the D latent numbers of a datum, of all sites and their plates inside the data plate: with few
    columns it holds the strongest correlations for D (2 + rank) numbers per datum, where `FullCovariance` takes
    D (D + 3) / 2. A rank of D - 1 holds every covariance.

    Args:
        model: any model within the contract; its latent sites are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default.
        rank: columns of F.
        min_scale: floor on each scale.

    Raises: ValueError for discrete sites, a rank below 1, or data of another shape than the example.

    Rezende, Mohamed and Wierstra (2014), Stochastic Backpropagation, section 4.3; Ong, Nott and Smith (2018), Gaussian
    Variational Approximation with a Factor Covariance Structure.
    """

    name = "low_rank"

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
        rank: int = 2,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        self.rank = rank = whole("rank", rank, usual="2; without a factor use MeanField")
        self.min_scale = check_min_scale(min_scale)
        self.sites = read(model, example_batch)
        self.dim = sum(width(site) for site in self.sites)
        self.encoder = Encoder(example_batch, self.dim * (2 + rank), hidden, encoder)

    def draw(self, numbers: Tensor) -> None:
        """Sample every latent site of the model from the numbers of each datum, (B, num_outputs)."""
        loc, raw, factor = numbers.split([self.dim, self.dim, self.dim * self.rank], -1)
        factor = factor.unflatten(-1, (self.dim, self.rank))
        sample_jointly(self.sites, _Normal(loc, factor, self.min_scale + softplus(raw)), len(numbers))


class _Normal(dist.TorchDistribution):
    """N(loc, diag(scale^2) + factor factor'), its density computed in float64.

    The density subtracts numbers of size (factor / scale)^2, and what float32 leaves of the difference may be anything.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, factor: Tensor, scale: Tensor) -> None:
        self.loc, self.factor, self.scale = loc, factor, scale
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """loc."""
        return self.loc

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Normal:
        """More of the same."""
        shape = torch.Size(batch_shape)
        factor = self.factor.expand(*shape, *self.factor.shape[-2:])
        return _Normal(self.loc.expand(*shape, -1), factor, self.scale.expand(*shape, -1))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, (*sample_shape, *batch_shape, D)."""
        shape = self._extended_shape(sample_shape)
        common = torch.randn(*shape[:-1], self.factor.shape[-1], 1, dtype=self.loc.dtype, device=self.loc.device)
        own = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (self.factor @ common)[..., 0] + self.scale * own

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, (*batch_shape)."""
        loc, factor, variance = self.loc.double(), self.factor.double(), self.scale.double().square()
        wide = dist.LowRankMultivariateNormal(loc, factor, variance, validate_args=False)
        return wide.log_prob(value.double()).to(value.dtype)
