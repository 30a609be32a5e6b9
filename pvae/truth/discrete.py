"""Discrete truths, summed up over every state of their latents in plain torch."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pvae.truth.truth import Truth, given_or_drawn

__all__ = ["gaussian_mixture", "sigmoid_belief_net"]


def gaussian_mixture(x: Tensor | None = None) -> Truth:
    """y one of 4 components, x | y ~ N(loc_y, scale_y^2 I) in the plane; data x (N, 2), 12 by default.

    The guide is the posterior with every distance to a component halved.
    """
    model = _Mixture()
    x = given_or_drawn(x, model, torch.zeros(12, 2, dtype=torch.float64))
    with torch.no_grad():
        log_prob = (model.logits.log_softmax(-1) + model.log_density(x)).logsumexp(-1)
    return Truth(
        name="Gaussian mixture",
        model=model,
        guide=_Responsibilities(0.5),
        x=x,
        log_prob=log_prob,
        latent="discrete",
        exact_guide=_Responsibilities(1.0),
        source="logsumexp over the 4 components",
    )


def sigmoid_belief_net(x: Tensor | None = None) -> Truth:
    """Binary units 4 -> 6 -> 8 observed ones, each layer Bernoulli of the one above; data x (N, 8), 12 by default.

    The guide is a Bernoulli per unit, its logits linear in x. Neal (1992), Connectionist learning of belief networks.
    """
    model = _BeliefNet()
    x = given_or_drawn(x, model, torch.zeros(12, 8, dtype=torch.float64))
    with torch.no_grad():
        log_prob = model.log_prob(x)
    return Truth(
        name="sigmoid belief net",
        model=model,
        guide=_Units(model),
        x=x,
        log_prob=log_prob,
        latent="discrete",
        exact_guide=None,
        source="logsumexp over the 2^10 states of both layers",
    )


class _Mixture(nn.Module):
    """Weights softmax(logits), means loc (4, 2), scales exp(log_scale) (4,)."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log())
        self.loc = nn.Parameter(torch.tensor([[0.0, 0], [2, 1], [-1, 2], [1, -2]], dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor([0.5, 1.0, 0.7, 1.5], dtype=torch.float64).log())

    def log_density(self, x: Tensor) -> Tensor:
        """log N(x; loc_y, scale_y^2 I) for each component, (..., 4)."""
        squares = (x[..., None, :] - self.loc).square().sum(-1)
        return -0.5 * squares * (-2 * self.log_scale).exp() - 2 * self.log_scale - math.log(2 * math.pi)

    def forward(self, x: Tensor) -> None:
        pyro.module("model", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            pyro.sample("x", dist.Normal(self.loc[y], self.log_scale[y].exp()[..., None]).to_event(1), obs=x)


class _Responsibilities(nn.Module):
    """q(y | x) in proportion to p(y) p(x | y)^sharpness; 1 gives the posterior."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.mixture = _Mixture()
        self.sharpness = nn.Parameter(torch.tensor(sharpness, dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            logits = self.mixture.logits + self.sharpness * self.mixture.log_density(x)
            pyro.sample("y", dist.Categorical(logits=logits))


class _BeliefNet(nn.Module):
    """h2 ~ Bernoulli, h1 | h2 and x | h1 Bernoulli of linear logits; weights from a fixed seed."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def fixed(*shape: int, spread: float) -> nn.Parameter:
            return nn.Parameter(spread * torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.top = fixed(4, spread=0.5)
        self.middle_weight, self.middle = fixed(4, 6, spread=1.0), fixed(6, spread=0.5)
        self.bottom_weight, self.bottom = fixed(6, 8, spread=1.0), fixed(8, spread=0.5)

    def forward(self, x: Tensor) -> None:
        pyro.module("model", self)
        with pyro.plate("data", len(x)):
            h2 = pyro.sample("h2", dist.Bernoulli(logits=self.top).to_event(1))
            h1 = pyro.sample("h1", dist.Bernoulli(logits=h2 @ self.middle_weight + self.middle).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=h1 @ self.bottom_weight + self.bottom).to_event(1), obs=x)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), (N,): the lower layer summed over all states of the upper one, then over its own."""
        upper, lower = (_all_bits(size, x) for size in (4, 6))
        log_upper = _log_bits(upper, self.top)
        log_lower = _log_bits(lower[:, None], upper @ self.middle_weight + self.middle)
        log_x = _log_bits(x[:, None], lower @ self.bottom_weight + self.bottom)
        return (log_x + (log_lower + log_upper).logsumexp(1)).logsumexp(1)


class _Units(nn.Module):
    """q(h1, h2 | x): independent Bernoullis, reading the net backwards."""

    def __init__(self, model: _BeliefNet) -> None:
        super().__init__()
        # Contiguous, for Pyro's param store would train copies of anything else.
        down, up = model.bottom_weight.detach(), model.middle_weight.detach()
        self.lower_weight = nn.Parameter(0.3 * down.T.contiguous())
        self.lower = nn.Parameter(model.middle.detach() - 0.15 * down.sum(1))
        self.upper_weight = nn.Parameter((0.1 * down.T @ up.T).contiguous())
        self.upper = nn.Parameter(model.top.detach() - 0.05 * (up @ down).sum(1))

    def forward(self, x: Tensor) -> None:
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            pyro.sample("h2", dist.Bernoulli(logits=x @ self.upper_weight + self.upper).to_event(1))
            pyro.sample("h1", dist.Bernoulli(logits=x @ self.lower_weight + self.lower).to_event(1))


def _all_bits(size: int, like: Tensor) -> Tensor:
    bits = torch.arange(2**size, device=like.device)[:, None] >> torch.arange(size, device=like.device)
    return (bits % 2).to(like)


def _log_bits(bits: Tensor, logits: Tensor) -> Tensor:
    """log Bernoulli(bits; logits), summed over the last dim."""
    return logsigmoid((2 * bits - 1) * logits).sum(-1)
