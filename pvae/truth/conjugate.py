"""Conjugate truths: coins of unknown bias, and counts of unknown rate."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pvae.truth.truth import Truth, given_or_drawn

__all__ = ["beta_bernoulli", "gamma_poisson"]

# A guide flatter than the posterior, so that its weights are bounded.
_FLATNESS = 0.8


def beta_bernoulli(x: Tensor | None = None) -> Truth:
    """z ~ Beta(2, 1.5) and n coins x ~ Bernoulli(z); data x (N, n) of zeros and ones, (12, 6) by default.

    The posterior is Beta(a + s, b + n - s) for s heads; the guide has 0.8 of both its parameters.
    """
    model = _Coins(2.0, 1.5)
    x = given_or_drawn(x, model, torch.zeros(12, 6, dtype=torch.float64), any_width=True)
    a, b = model.prior().detach()
    heads, tails = x.sum(-1), (1 - x).sum(-1)
    return Truth(
        name="Beta-Bernoulli",
        model=model,
        guide=_BetaGuide(model, _FLATNESS),
        x=x,
        log_prob=_log_beta(a + heads, b + tails) - _log_beta(a, b),
        latent="continuous",
        exact_guide=_BetaGuide(model, 1.0),
        source="log B(a + s, b + n - s) - log B(a, b)",
    )


def gamma_poisson(x: Tensor | None = None) -> Truth:
    """z ~ Gamma(3, rate 1.2) and n counts x ~ Poisson(z); data x (N, n), (12, 4) by default.

    The posterior is Gamma(a + s, b + n) for a sum s; the guide has 0.8 of both its parameters.
    """
    model = _Counts(3.0, 1.2)
    x = given_or_drawn(x, model, torch.zeros(12, 4, dtype=torch.float64), any_width=True)
    a, b = model.prior().detach()
    total, num_counts = x.sum(-1), x.shape[-1]
    log_prob = a * b.log() - a.lgamma() + (a + total).lgamma() - (a + total) * (b + num_counts).log()
    return Truth(
        name="Gamma-Poisson",
        model=model,
        guide=_GammaGuide(model, _FLATNESS),
        x=x,
        log_prob=log_prob - (x + 1).lgamma().sum(-1),
        latent="continuous",
        exact_guide=_GammaGuide(model, 1.0),
        source="log of b^a G(a + s) / (G(a) (b + n)^(a + s) prod x!)",
    )


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return a.lgamma() + b.lgamma() - (a + b).lgamma()


class _Conjugate(nn.Module):
    """A prior of two positive parameters, `log_prior` (2,) their logs."""

    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        self.log_prior = nn.Parameter(torch.tensor([first, second], dtype=torch.float64).log())

    def prior(self) -> Tensor:
        """Both parameters, (2,)."""
        return self.log_prior.exp()


class _Coins(_Conjugate):
    def forward(self, x: Tensor) -> None:
        pyro.module("model", self)
        a, b = self.prior()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(a, b))
            coin = dist.Bernoulli(probs=z[..., None].expand(*z.shape, x.shape[-1]))
            pyro.sample("x", coin.to_event(1), obs=x)


class _Counts(_Conjugate):
    def forward(self, x: Tensor) -> None:
        pyro.module("model", self)
        a, b = self.prior()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(a, b))
            count = dist.Poisson(z[..., None].expand(*z.shape, x.shape[-1]))
            pyro.sample("x", count.to_event(1), obs=x)


class _Tempered(nn.Module):
    """The family of the posterior, both parameters times a number; 1 gives the posterior itself."""

    def __init__(self, model: _Conjugate, sharpness: float) -> None:
        super().__init__()
        self.log_prior = nn.Parameter(model.log_prior.detach().clone())
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(sharpness), dtype=torch.float64))

    def prior(self) -> Tensor:
        """Both parameters before any data, (2,)."""
        return self.log_prior.exp()


class _BetaGuide(_Tempered):
    def forward(self, x: Tensor) -> None:
        pyro.module("guide", self)
        (a, b), sharpness = self.prior(), self.log_sharpness.exp()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Beta(sharpness * (a + x.sum(-1)), sharpness * (b + (1 - x).sum(-1))))


class _GammaGuide(_Tempered):
    def forward(self, x: Tensor) -> None:
        pyro.module("guide", self)
        (a, b), sharpness = self.prior(), self.log_sharpness.exp()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(sharpness * (a + x.sum(-1)), sharpness * (b + x.shape[-1])))
