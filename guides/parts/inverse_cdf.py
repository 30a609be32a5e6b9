"""Distributions drawn through their quantile function, z = F^-1(u) with u ~ Uniform(0, 1), that torch does not have.

Or has, but so that a draw may fall on an end of the floats, or a value outside the support gets a finite density. Here
log densities are computed from the value, so they hold in the tails where F rounds to 0 or 1, and are -inf outside the
support. Parameters are positive where not said otherwise, and broadcast.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform
from torch.nn.functional import logsigmoid

__all__ = ["Quantile", "gompertz", "logistic", "pareto", "rayleigh", "reciprocal", "triangular", "uniform"]


class Quantile(Transform):
    """The bijection u -> z = F^-1(u) from (0, 1) to the support [low, high], log |dz/du| = -log f(z).

    Args:
        quantile: F^-1.
        cdf: F.
        log_density: log f within the support.
        low, high: its ends.
    """

    bijective = True
    sign = 1
    domain = constraints.unit_interval

    def __init__(
        self,
        quantile: Callable[[Tensor], Tensor],
        cdf: Callable[[Tensor], Tensor],
        log_density: Callable[[Tensor], Tensor],
        low: Tensor,
        high: Tensor,
    ) -> None:
        super().__init__()
        self.quantile, self.cdf, self.log_density = quantile, cdf, log_density
        self.low, self.high = low, high

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        """The support."""
        return constraints.interval(self.low, self.high)

    def _call(self, u: Tensor) -> Tensor:
        # Rounding may carry a draw over an end, where its density would be 0.
        return self._within(self.quantile(_off_the_ends(u)))

    def _inverse(self, z: Tensor) -> Tensor:
        return _off_the_ends(self.cdf(self._within(z)))

    def log_abs_det_jacobian(self, u: Tensor, z: Tensor) -> Tensor:
        """-log f(z), +inf outside the support."""
        inside = (z >= self.low) & (z <= self.high)
        return -self.log_density(self._within(z)).masked_fill(~inside, -torch.inf)

    def _within(self, z: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(z, self.low), self.high)


def gompertz(concentration: Tensor, scale: Tensor) -> dist.TorchDistribution:
    """f(z) = c / s exp(z / s - c (exp(z / s) - 1)) for z >= 0: ages at death, a light right tail."""
    c, s = torch.broadcast_tensors(concentration, scale)
    return _drawn_by(
        lambda u: s * torch.log1p(_exponential(u) / c),
        lambda z: -torch.expm1(-c * torch.expm1(z / s)),
        lambda z: c.log() - s.log() + z / s - c * torch.expm1(z / s),
        torch.zeros_like(s),
    )


def logistic(loc: Tensor, scale: Tensor) -> dist.TorchDistribution:
    """F(z) = sigmoid((z - loc) / s), loc any real: tails between the Gaussian's and Laplace's."""
    loc, s = torch.broadcast_tensors(loc, scale)
    return _drawn_by(
        lambda u: loc + s * (u.log() - torch.log1p(-u)),
        lambda z: ((z - loc) / s).sigmoid(),
        lambda z: logsigmoid((z - loc) / s) + logsigmoid((loc - z) / s) - s.log(),
        torch.full_like(s, -torch.inf),
    )


def pareto(scale: Tensor, alpha: Tensor) -> dist.TorchDistribution:
    """f(z) = a s^a / z^(a + 1) for z >= s: a power tail, nothing below s."""
    s, a = torch.broadcast_tensors(scale, alpha)
    return _drawn_by(
        lambda u: s * (_exponential(u) / a).exp(),
        lambda z: -torch.expm1(-a * (z / s).log()),
        lambda z: a.log() - s.log() - (a + 1) * (z / s).log(),
        s,
    )


def rayleigh(scale: Tensor) -> dist.TorchDistribution:
    """f(z) = z / s^2 exp(-z^2 / (2 s^2)) for z >= 0: the length of a Gaussian vector in the plane."""
    s = scale
    return _drawn_by(
        lambda u: s * (2 * _exponential(u)).sqrt(),
        lambda z: -torch.expm1(-0.5 * (z / s).square()),
        lambda z: z.log() - 2 * s.log() - 0.5 * (z / s).square(),
        torch.zeros_like(s),
    )


def reciprocal(low: Tensor, high: Tensor) -> dist.TorchDistribution:
    """f(z) = 1 / (z log(high / low)) for low <= z <= high: uniform in log z."""
    low, high = torch.broadcast_tensors(low, high)
    span = (high / low).log()
    return _drawn_by(
        lambda u: low * (u * span).exp(),
        lambda z: (z / low).log() / span,
        lambda z: -z.log() - span.log(),
        low,
        high,
    )


def triangular(low: Tensor, mode: Tensor, high: Tensor) -> dist.TorchDistribution:
    """f rises linearly from 0 at `low` to 2 / (high - low) at `mode`, and falls to 0 at `high`; the three any reals."""
    low, mode, high = torch.broadcast_tensors(low, mode, high)
    width, left, right = high - low, mode - low, high - mode

    def log_density(z: Tensor) -> Tensor:
        # At the very ends a draw that was rounded there keeps a finite density.
        least = torch.finfo(z.dtype).eps * width
        rising = torch.maximum(z - low, least).log() - left.log()
        falling = torch.maximum(high - z, least).log() - right.log()
        return torch.where(z < mode, rising, falling) - width.log() + torch.log(torch.full_like(z, 2.0))

    return _drawn_by(
        # Roots of the factors: the product may underflow.
        lambda u: torch.where(
            u * width < left,
            low + u.sqrt() * (width * left).sqrt(),
            high - (1 - u).sqrt() * (width * right).sqrt(),
        ),
        lambda z: torch.where(z < mode, (z - low).square() / width / left, 1 - (high - z).square() / width / right),
        log_density,
        low,
        high,
    )


def uniform(low: Tensor, high: Tensor) -> dist.TorchDistribution:
    """f(z) = 1 / (high - low) for low <= z <= high, both ends any reals and part of the support."""
    low, high = torch.broadcast_tensors(low, high)
    return _drawn_by(
        lambda u: low + u * (high - low),
        lambda z: (z - low) / (high - low),
        lambda z: torch.zeros_like(z) - (high - low).log(),
        low,
        high,
    )


def _drawn_by(
    quantile: Callable[[Tensor], Tensor],
    cdf: Callable[[Tensor], Tensor],
    log_density: Callable[[Tensor], Tensor],
    low: Tensor,
    high: Tensor | None = None,
) -> dist.TorchDistribution:
    high = torch.full_like(low, torch.inf) if high is None else high
    base = dist.Uniform(torch.zeros_like(low), torch.ones_like(low), validate_args=False)
    transform = Quantile(quantile, cdf, log_density, low, high)
    return dist.TransformedDistribution(base, [transform], validate_args=False)


def _exponential(u: Tensor) -> Tensor:
    """The exponential draw that goes with u, without loss near 0."""
    return -torch.log1p(-u)


def _off_the_ends(u: Tensor) -> Tensor:
    """u within the floats that lie strictly between 0 and 1."""
    limits = torch.finfo(u.dtype)
    return u.clamp(limits.tiny, 1 - limits.eps / 2)
