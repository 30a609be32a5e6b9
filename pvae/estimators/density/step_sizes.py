"""Step sizes of Hamiltonian chains along a path of temperatures, tuned on draws that count for nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pvae.estimators.density.hmc import Point, transition

__all__ = ["PILOT_TRANSITIONS", "tuned_steps"]

_ACCEPTANCE = 0.65
# Likelihoods narrow a posterior most while beta is small, so the temperatures tried are closest there: (j / 10)^4.
_KNOTS, _POWER, _ROUNDS = 10, 4, 10
PILOT_TRANSITIONS = _KNOTS * _ROUNDS


def tuned_steps(target: Callable[[Tensor], Point], start: Point, betas: Sequence[float], num_leapfrog: int) -> Tensor:
    """The step size of each datum at each inverse temperature, (T, B), at which about 65% of proposals are taken.

    Chains from prior draws pass ten temperatures; at each, the log step follows the acceptance of its datum's chains
    (Robbins and Monro, 1951). Between them it is interpolated. What is found here is to be used as it is: a step that
    goes on adapting to the chain that is weighed makes its weights wrong.

    Beskos, Pillai, Roberts, Sanz-Serna and Stuart (2013), Optimal tuning of the hybrid Monte Carlo algorithm.
    """
    num_data, width = start.position.shape[1:]
    log_step = start.log_prior.new_full((num_data,), math.log(0.5) - math.log(width) / 4)
    point, tuned = start, []
    for knot in range(1, _KNOTS + 1):
        tried = []
        for _ in range(_ROUNDS):
            point, probability = transition(target, point, (knot / _KNOTS) ** _POWER, log_step.exp(), num_leapfrog)
            log_step = log_step + probability.mean(0) - _ACCEPTANCE
            tried.append(log_step)
        tuned.append(torch.stack(tried[_ROUNDS // 2 :]).mean(0))
    return _interpolate(torch.stack(tuned), betas).exp()


def _interpolate(tuned: Tensor, betas: Sequence[float]) -> Tensor:
    """Values at `betas`, linear in beta^(1/4) between the knots: (knots, B) -> (T, B)."""
    place = tuned.new_tensor(betas) ** (1 / _POWER) * _KNOTS - 1
    place = place.clamp(0, _KNOTS - 1)
    below = place.floor().clamp(max=_KNOTS - 2).long()
    return torch.lerp(tuned[below], tuned[below + 1], (place - below)[:, None])
