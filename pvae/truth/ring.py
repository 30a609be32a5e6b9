"""A truth with a posterior that is no Gaussian: points near a ring."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pvae.truth.truth import Truth, given_or_drawn

__all__ = ["ring"]

# Beyond this radius the prior is below e^-72.
_NUM_CELLS, _MOST_RADIUS = 2000, 12.0


def ring(x: Tensor | None = None) -> Truth:
    """z ~ N(0, I_2) and x ~ N(g(z), 0.1^2 I), g(z) = z / 10 + z / |z|; data x (N, 2), 12 by default.

    In polar coordinates the angle integrates to a Bessel function, with r = |z|, R = r / 10 + 1 and s = 0.1:
    p(x) = integral over r of r exp(-r^2 / 2) exp(-(|x| - R)^2 / (2 s^2)) i0e(|x| R / s^2) / (2 pi s^2).
    The guide is a Gaussian about a point in the direction of x, longer along it than across.

    Doersch (2016), Tutorial on variational autoencoders, figure 2.
    """
    model = _Ring()
    x = given_or_drawn(x, model, torch.ones(12, 2, dtype=torch.float64))
    return Truth(
        name="ring",
        model=model,
        guide=_RadialGuide(),
        x=x,
        log_prob=_log_prob(x),
        latent="continuous",
        exact_guide=None,
        source="polar coordinates: the angle in closed form, the radius by Simpson's rule on 2,000 intervals",
    )


def _log_prob(x: Tensor) -> Tensor:
    """log p(x), (N,), by Simpson's rule over the radius."""
    step = _MOST_RADIUS / _NUM_CELLS
    r = step * torch.arange(1, _NUM_CELLS, dtype=torch.float64, device=x.device)[:, None]  # r = 0 has no mass
    simpson = torch.full_like(r, 2 * step / 3)
    simpson[::2] *= 2
    radius, size = r / 10 + 1, x.norm(dim=-1)
    exponent = -0.5 * r.square() - 0.5 * (size - radius).square() / 0.01
    density = simpson.log() + r.log() + exponent + torch.special.i0e(size * radius / 0.01).log()
    return density.logsumexp(0) - math.log(2 * math.pi * 0.01)


class _Ring(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(0.1), dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        pyro.module("model", self)
        zero = torch.zeros(2, dtype=x.dtype, device=x.device)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zero, torch.ones_like(zero)).to_event(1))
            loc = z / 10 + z / z.norm(dim=-1, keepdim=True)
            pyro.sample("x", dist.Normal(loc, self.log_scale.exp()).to_event(1), obs=x)


class _RadialGuide(nn.Module):
    """q(z | x) = N(distance u, along^2 u u' + across^2 (I - u u')) with u = x / |x|."""

    def __init__(self) -> None:
        super().__init__()
        self.distance = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.log_scales = nn.Parameter(torch.tensor([0.75, 0.3], dtype=torch.float64).log())

    def forward(self, x: Tensor) -> None:
        pyro.module("guide", self)
        along, across = (2 * self.log_scales).exp()
        with pyro.plate("data", len(x)):
            direction = x / x.norm(dim=-1, keepdim=True)
            outer = direction[..., :, None] * direction[..., None, :]
            covariance = (along - across) * outer + across * torch.eye(2, dtype=x.dtype, device=x.device)
            pyro.sample("z", dist.MultivariateNormal(self.distance * direction, covariance))
