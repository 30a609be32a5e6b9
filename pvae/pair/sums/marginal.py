"""Summing discrete latents out of log weights: log sum_y p(x, z, y) at each draw of the other latents z."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pvae.pair.sites import Batch
from pvae.pair.sums.states import States
from pvae.support.refusals import ContractError

__all__ = ["conditional", "draw_state", "repeated", "sum_out"]

_MOST_STATES = 65536


def repeated(latents: Mapping[str, Tensor], states: States, num_samples: int, batch: Batch) -> dict[str, Tensor]:
    """Every draw of `latents`, each (K, B, ...), at every joint state: values (S K, B, ...), one state after the other.

    Raises: ValueError for too many joint states.
    """
    count = states.count
    if count > _MOST_STATES:
        raise ContractError(
            f"the enumerated sites {sorted(states.tables)} have {states.count_in_words} joint states, more than "
            f"{_MOST_STATES}",
            "let a guide such as Bernoulli or Categorical draw some of them, or write plates whose "
            "entries depend on no other entry, each of which is then summed by itself",
        )
    numbers = torch.arange(count, device=batch[0].device)
    values = states.values(numbers.repeat_interleave(num_samples), len(batch[0]))
    return values | {name: value.repeat(count, *(1,) * (value.dim() - 1)) for name, value in latents.items()}


def sum_out(log_likelihood: Tensor, log_prior: Tensor, num_states: int) -> tuple[Tensor, Tensor]:
    """log p(x | z) and log p(z), each (K, B), from log p(x | z, y) and log p(z, y), each (S K, B)."""
    log_prior = log_prior.unflatten(0, (num_states, -1))
    log_joint = (log_prior + log_likelihood.unflatten(0, (num_states, -1))).logsumexp(0)
    log_prior = log_prior.logsumexp(0)
    return conditional(log_joint, log_prior), log_prior


def conditional(log_joint: Tensor, log_prior: Tensor) -> Tensor:
    """log p(x | z) from log p(x, z) and log p(z): where z is impossible, 0, so that log p(x, z) stays -inf."""
    return torch.where(log_prior == -math.inf, 0.0, log_joint - log_prior)


def draw_state(log_joint: Tensor, num_states: int) -> Tensor:
    """A state for each draw and datum from p(y | x, z), (K, B), given log p(x, z, y), (S K, B)."""
    logits = log_joint.unflatten(0, (num_states, -1)).movedim(0, -1)
    return torch.distributions.Categorical(logits=logits, validate_args=False).sample()
