"""Hamiltonian Monte Carlo between a prior and a posterior, every chain of every datum at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Point", "transition"]

# A trajectory of one fixed length may come back to where it began; of random length it does not.
_SHORTEST, _LONGEST = 0.8, 1.2


class Point(NamedTuple):
    """A position (K, B, D), its log prior and log likelihood (K, B) in nats, and their gradients (K, B, D)."""

    position: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    prior_slope: Tensor
    likelihood_slope: Tensor

    def log_density(self, beta: float) -> Tensor:
        """log p(z) + beta log p(x | z), (K, B)."""
        return torch.add(self.log_prior, self.log_likelihood, alpha=beta)

    def slope(self, beta: float) -> Tensor:
        """The gradient of `log_density`, (K, B, D)."""
        return torch.add(self.prior_slope, self.likelihood_slope, alpha=beta)


def transition(
    target: Callable[[Tensor], Point], start: Point, beta: float, step: Tensor, num_leapfrog: int
) -> tuple[Point, Tensor]:
    """One step of every chain that leaves p(z) p(x | z)^beta as it is, and the probability of each to move, (K, B).

    A momentum p ~ N(0, I) is drawn afresh, and H = |p|^2 / 2 - log_density followed by leapfrogs from there. The end
    is taken with probability min(1, exp(H_start - H_end)), never where its density is not finite. Each chain's step
    size is drawn between 0.8 and 1.2 times `step`, whatever its position, so the transition stays reversible.

    Args:
        target: the densities at a position (K, B, D).
        start: where the chains are.
        beta: the inverse temperature.
        step: leapfrog step size of each datum, (B,).
        num_leapfrog: leapfrogs, each of one evaluation.

    Duane, Kennedy, Pendleton and Roweth (1987); Neal (2011), MCMC using Hamiltonian dynamics.
    """
    at_start, position = start.log_density(beta), start.position
    jitter = torch.rand_like(at_start) * (_LONGEST - _SHORTEST) + _SHORTEST
    step = (step * jitter)[..., None]
    momentum = torch.randn_like(position)
    kinetic = momentum.square().sum(-1) / 2
    end, momentum = start, torch.addcmul(momentum, step, start.slope(beta), value=0.5)
    for leapfrog in range(1, num_leapfrog + 1):
        end = target(torch.addcmul(end.position, step, momentum))
        momentum = torch.addcmul(momentum, step, end.slope(beta), value=1.0 if leapfrog < num_leapfrog else 0.5)
    at_end = end.log_density(beta)
    gain = at_end - momentum.square().sum(-1) / 2 - (at_start - kinetic)
    # A comparison with nan is false.
    taken = (torch.rand_like(gain).log() < gain) & at_end.isfinite()
    probability = torch.where(at_end.isfinite(), gain.clamp(max=0).exp(), 0.0).nan_to_num(0.0)
    return Point(*(_choose(taken, new, old) for new, old in zip(end, start, strict=True))), probability


def _choose(taken: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(taken if new.dim() == taken.dim() else taken[..., None], new, old)
