"""The dimensions of a latent site: whether they are independent, and each one's KL and mean."""

from __future__ import annotations

import torch
from torch import Tensor

from pvae.pair.aggregate import factor
from pvae.pair.divergence import closed_form
from pvae.pair.pair_run import PairRun
from pvae.pair.sites import Site

__all__ = ["site_kl", "site_mean"]


def site_kl(run: PairRun, name: str) -> tuple[Tensor, bool]:
    """KL(q(z | x) || p(z)) of one site at each draw, (K, B, dims), and whether its dims were told apart.

    Closed form where there is one, else the sampled log q - log p. Dims that depend on each other give their
    joint KL, (K, B, 1).

    Raises: ValueError if sites are summed out.
    """
    run.require_all_drawn("the KL of each dimension")
    guide, prior = run.guide[name], run.model[name]
    q, p = factor(guide["fn"]), factor(prior["fn"])
    split = q is not None and p is not None
    if q is None or p is None:
        q, p = guide["fn"], prior["fn"]
    value, event_dim = guide["value"], 0 if split else guide["fn"].event_dim
    kl = closed_form(run, name, q, p)
    if kl is None:
        kl = q.log_prob(value) - p.log_prob(value)
    shape = value.shape[: value.dim() - event_dim]
    return _per_datum(run, name, kl.expand(shape).reshape(*shape, *(1,) * event_dim)), split


def site_mean(run: PairRun, name: str) -> Tensor:
    """E_q[z | x] of one site at each draw of the sites before it, (K, B, dims); the draw itself where unknown."""
    site: Site = run.guide[name]
    value = site["value"]
    try:
        mean = site["fn"].mean
        known = bool(torch.isfinite(mean).all())
    except NotImplementedError:
        known = False
    return _per_datum(run, name, mean.expand(value.shape) if known else value)


def _per_datum(run: PairRun, name: str, value: Tensor) -> Tensor:
    collected = run.layout.collect(name, value, run.num_samples)
    return collected.expand(run.num_samples, *collected.shape[1:]).flatten(2).double()
