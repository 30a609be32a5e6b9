"""The guide's density of every draw at every datum, and its mean over data: the aggregate posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution, Independent, IndependentTransform, TransformedDistribution

from pvae.pair.layout import Layout
from pvae.pair.pair import Pair
from pvae.pair.pair_run import PairRun
from pvae.pair.run import Stochastic
from pvae.pair.sites import Batch, Site, base_of

__all__ = [
    "factor",
    "information",
    "log_aggregate_posterior",
    "pairwise_log_factors",
    "pairwise_log_guide",
    "refuse_points",
]

# Values held at once by what is chunked: some tens of MB.
_VALUES_AT_ONCE = 2_000_000


def pairwise_log_guide(
    guide: Stochastic, latents: Mapping[str, Tensor], batch: Batch, layout: Layout | None = None
) -> Tensor:
    """log q(z_n | x_b) for every draw and every datum, (N, B), in nats; differentiable.

    All latent sites of the guide together make z, so flows and hierarchies are as good as Gaussians.

    Args:
        guide: the guide.
        latents: draws by site, each (N, ...).
        batch: data x_b, tensors (B, ...).
        layout: how to run the guide, to spare the look when called again and again.

    Raises: ValueError for a guide that draws from a point (Delta), which has no density.
    """
    # With no guide of its own the guide stands in for the model, so that its decoder need not run.
    pair = Pair(guide)
    layout = pair.layout(batch, 2) if layout is None else layout
    num_data = len(batch[0])
    given = {name: z[:, None].expand(len(z), num_data, *z.shape[1:]) for name, z in latents.items()}
    num_samples = len(next(iter(given.values())))
    run = pair.run(batch, num_samples, layout=layout, given=given)
    refuse_points(run.model)
    return run.log_weights().log_prior


def pairwise_log_factors(run: PairRun, name: str) -> Tensor:
    """log q(z_nd | x_b) of one site for every draw, datum and dimension, (B, B, dims), in nats; differentiable.

    The run is one of a single particle: its own n-th draw is that of the n-th datum. The site is to depend on no other.

    Raises: ValueError for a site that draws from a point (Delta), or whose dims depend on each other.
    """
    site = run.guide[name]
    refuse_points({name: site})
    fn = factor(site["fn"])
    if fn is None:
        raise ValueError(
            f"the guide draws '{name}' from {type(base_of(site['fn'])).__name__}, whose dimensions depend on each "
            "other; use MeanField, or write it as independent dimensions with to_event"
        )
    place = run.layout.places[name]
    data_dim = place.data_dim - place.event_dim
    draws = site["value"].movedim(data_dim, 0).unsqueeze(data_dim)
    log_probs: Tensor = fn.log_prob(draws).movedim(data_dim, 1)
    return log_probs.reshape(*log_probs.shape[:2], -1)


def log_aggregate_posterior(guide: Stochastic, latents: Mapping[str, Tensor], batches: Sequence[Batch]) -> Tensor:
    """log q(z_n) = log 1/M sum_m q(z_n | x_m) over the M data of all batches, (N,), float64, in nats.

    Where z_n was drawn from one of these data, that datum counts too, which keeps the mean of
    log q(z_n | x_n) - log q(z_n) between 0 and log M. Memory does not grow with N M.

    Raises: ValueError for a guide that draws from a point (Delta), which has no density.

    Hoffman and Johnson (2016), ELBO surgery: yet another way to carve up the variational evidence lower bound.
    """
    layout = Pair(guide).layout(batches[0], 2)
    num_draws = len(next(iter(latents.values())))
    num_data = sum(len(batch[0]) for batch in batches)
    width = sum(z[0].numel() for z in latents.values())
    if not layout.vectorizes:
        width += sum(part[0].numel() for part in batches[0])
    size = max(1, _VALUES_AT_ONCE // max(width * len(batches[0][0]), 1))
    rows = []
    for start in range(0, num_draws, size):
        part = {name: z[start : start + size] for name, z in latents.items()}
        columns = [pairwise_log_guide(guide, part, batch, layout).double().logsumexp(1) for batch in batches]
        rows.append(torch.stack(columns).logsumexp(0))
    return torch.cat(rows) - math.log(num_data)


def information(guide: Stochastic, batches: Sequence[Batch]) -> Tensor:
    """log q(z_n | x_n) - log q(z_n) from one draw per datum, (N,), whose mean is I(x; z), at most log N, in nats.

    Raises: ValueError for a guide that draws from a point (Delta), which has no density.
    """
    pair = Pair(guide)
    layout = pair.layout(batches[0], 1)
    runs = [pair.run(batch, 1, layout=layout) for batch in batches]
    refuse_points(runs[0].model)
    draws = {name: torch.cat([run.latents[name][0] for run in runs]) for name in runs[0].latents}
    own = torch.cat([run.log_weights().log_prior[0] for run in runs])
    return own.double() - log_aggregate_posterior(guide, draws, batches)


def factor(fn: Distribution) -> Distribution | None:
    """The distribution of each dimension by itself, its dims in the batch shape; None if they depend on each other."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if not isinstance(fn, TransformedDistribution):
        return None if fn.event_shape else fn
    base, transforms = factor(fn.base_dist), []
    for transform in fn.transforms:
        while isinstance(transform, IndependentTransform):
            transform = transform.base_transform
        transforms.append(transform)
    if base is None or any(t.domain.event_dim or t.codomain.event_dim for t in transforms):
        return None
    return TransformedDistribution(base, transforms)


def refuse_points(sites: Mapping[str, Site]) -> None:
    """Raise ValueError if a site of the guide is a point."""
    for name, site in sites.items():
        if isinstance(base_of(site["fn"]), Delta):
            raise ValueError(
                f"the guide draws '{name}' from a point (Delta), which has no density; train MeanField on the same "
                "model instead"
            )
