"""Missing entries: the density of the observed entries of a datum alone."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent

from pvae.support.masks import as_mask

__all__ = ["observed_only"]


def observed_only(
    distribution: dist.TorchDistribution, x: Tensor, observed: Tensor
) -> tuple[dist.TorchDistribution, Tensor]:
    """log p(x_obs | z) = sum over observed d of log p(x_d | z), for entries that are independent given z.

    In a model: `likelihood, x = observed_only(likelihood, x, observed)`, then `pyro.sample("x", likelihood, obs=x)`.
    Draws, mean and support of the result are those of all entries.

    Args:
        distribution: p(x | z), its event being one datum.
        x: data (B, *x_shape); entries that are missing may hold anything, nan included.
        observed: which entries count, bool or 0 and 1, in the shape of x.

    Returns: the distribution, and x with values inside the support where entries are missing: masks do not keep
    what is not a number out of gradients.

    Raises: ValueError for an `observed` of another shape or with other values, or a distribution whose entries depend
    on each other given z.

    Little and Rubin (2019), Statistical Analysis with Missing Data; Mattei and Frellsen (2019), MIWAE.
    """
    if observed.shape != x.shape:
        raise ValueError(
            f"observed must have the shape of x, {tuple(x.shape)}, got {tuple(observed.shape)}; say of each entry "
            "whether it counts"
        )
    entries, event_dim = distribution, distribution.event_dim
    while isinstance(entries, Independent):
        entries = entries.base_dist
    if entries.event_shape:
        raise ValueError(
            f"entries can be missing where they are independent given z, which those of {type(entries).__name__} are "
            "not; choose a likelihood of single entries, such as Gaussian()"
        )
    observed = as_mask(observed)
    return _Observed(entries, observed).to_event(event_dim), torch.where(observed, x, _inside(entries, x))


class _Observed(dist.MaskedDistribution):
    """A masked distribution that knows its mode, as its mean."""

    @property
    def mode(self) -> Tensor:
        return self.base_dist.mode


def _inside(entries: dist.TorchDistribution, x: Tensor) -> Tensor:
    """A value in the support of each entry; 1/2 where it can be, as densities may be infinite at 0 and at 1."""
    support: Any = entries.support
    value = torch.zeros_like(x)
    for candidate in (1.0, 0.5):
        trial = torch.full_like(x, candidate)
        value = torch.where(support.check(trial), trial, value)
    return value
