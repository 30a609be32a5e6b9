"""Gaussian truths: a linear-Gaussian model, and proposals for N(0, 1) whose errors are known in closed form."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pvae.guides.exact import Exact
from pvae.models.linear_gaussian import LinearGaussian
from pvae.pair.contexts import seeded
from pvae.support.refusals import number
from pvae.truth.truth import Truth, given_or_drawn

__all__ = ["linear_gaussian", "scaled_gaussian", "shifted_gaussian"]


def linear_gaussian(x: Tensor | None = None) -> Truth:
    """Probabilistic PCA with D = 6, L = 3 and a W whose columns are not orthogonal; data x (N, 6), 12 by default.

    The guide is a diagonal Gaussian about a linear map of x, both a little off.
    """
    with seeded(0):
        model = LinearGaussian(6, 3).double()
        with torch.no_grad():
            model.loc.normal_()
            model.log_scale.fill_(math.log(0.7))
    x = given_or_drawn(x, model, torch.zeros(12, 6, dtype=torch.float64))
    with torch.no_grad():
        return Truth(
            name="linear Gaussian",
            model=model,
            guide=_LinearGuide(model),
            x=x,
            log_prob=model.log_prob(x),
            latent="continuous",
            exact_guide=Exact(model),
            source="log N(x; mu, W W' + s2 I), Tipping and Bishop (1999)",
        )


def shifted_gaussian(shift: float = 0.5, x: Tensor | None = None) -> Truth:
    """z ~ N(0, 1) and x ~ N(0, 1) apart from it, with the guide N(shift, 1); data x (N,), 8 by default.

    The ELBO is shift^2 / 2 below log p(x), IWAE about (exp(shift^2) - 1) / (2 K).
    """
    shift = number("shift", shift, usual=0.5)
    return _apart(f"N({shift:g}, 1) for N(0, 1)", _Normal(shift, 1.0), x)


def scaled_gaussian(scale: float = 0.9, x: Tensor | None = None) -> Truth:
    """z ~ N(0, 1) and x ~ N(0, 1) apart from it, with the guide N(0, scale^2); data x (N,), 8 by default.

    For a scale below 1 the weights have a tail of Pareto shape 1 - scale^2, and infinite variance below sqrt(1/2).
    """
    scale = number("scale", scale, above=0, usual=0.9)
    return _apart(f"N(0, {scale:g}^2) for N(0, 1)", _Normal(0.0, scale), x)


def _apart(name: str, guide: nn.Module, x: Tensor | None) -> Truth:
    model = _Apart()
    x = given_or_drawn(x, model, torch.zeros(8, dtype=torch.float64))
    return Truth(
        name=name,
        model=model,
        guide=guide,
        x=x,
        log_prob=-0.5 * (x.square() + math.log(2 * math.pi)),
        latent="continuous",
        exact_guide=_Normal(0.0, 1.0),
        source="log N(x; 0, 1), as x does not depend on z",
    )


class _LinearGuide(nn.Module):
    """q(z | x) = N(z; A x + c, diag(scale^2)), near the posterior of a linear-Gaussian model."""

    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        rows = torch.eye(model.x_dim, dtype=torch.float64)
        origin = model.posterior(torch.zeros_like(rows[:1]))
        self.weight = nn.Parameter(0.95 * (model.posterior(rows).loc - origin.loc).detach())
        self.bias = nn.Parameter(origin.loc[0].detach() + 0.05)
        self.log_scale = nn.Parameter((1.1 * origin.variance[0].sqrt()).log().detach())

    def forward(self, x: Tensor) -> None:
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.weight + self.bias, self.log_scale.exp()).to_event(1))


class _Apart(nn.Module):
    """z ~ N(0, 1), x ~ N(loc, 1), apart from each other."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        pyro.module("model", self)
        one = torch.ones_like(self.loc)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(one), one))
            pyro.sample("x", dist.Normal(self.loc, one), obs=x)


class _Normal(nn.Module):
    """q(z) = N(z; loc, scale^2), whatever x is."""

    def __init__(self, loc: float, scale: float) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(loc, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()))
