"""The KL of each latent site from its prior, in closed form where there is one.

Example: a guide draws h1 (K, B, 3) and then h2 (K, B, 2), the model h2 and then h1 given h2. The KL of h2 is in closed
form. That of h1 is sampled, log q - log p at the draws: its prior p(h1 | h2) moves with the h1 that h2 was drawn from,
and the closed form is that of a fixed one.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pvae.pair.pair_run import PairRun
from pvae.pair.scores import Placed

__all__ = ["closed_form", "kl_of_sites"]


def kl_of_sites(run: PairRun, *, analytic: bool) -> dict[str, Tensor]:
    """KL(q(z | x) || p(z)) of each latent site, (K, B): log q - log p at the draws, or in closed form.

    A site that has no closed form contributes its sampled one, as in `TraceMeanField_ELBO`.

    Raises: ValueError if sites are summed out.
    """
    run.require_all_drawn("the KL")
    placed = run.placed(run.guide | run.reverse) or [each for each in run.of_the_model if not each[0]["is_observed"]]
    return {each[0]["name"]: run.total([(each[1], _term(run, each, analytic))]) for each in placed}


def closed_form(run: PairRun, name: str, q: Any, p: Any) -> Tensor | None:
    """KL(q || p) of each of two broadcast batches of distributions at a site, in nats; None where it has to be sampled.

    That is where torch knows no closed form, and where the guide draws the site before what it depends on in the model.
    """
    if not _follows(run, name):
        return None
    if q.batch_shape != p.batch_shape:  # torch takes those of two Bernoullis, among others, to be equal
        common = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
        q, p = q.expand(common), p.expand(common)
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def _term(run: PairRun, placed: Placed, analytic: bool) -> Tensor:
    site, name = placed[0], placed[0]["name"]
    if name not in run.model:
        return run.scaled_log_prob(placed)
    prior = run.model[name], run.model_plate
    if analytic and (divergence := closed_form(run, name, site["fn"], prior[0]["fn"])) is not None:
        return run.common.inside(placed, scale_and_mask(divergence, mask=site["mask"]))
    return run.scaled_log_prob(placed) - run.scaled_log_prob(prior)


def _follows(run: PairRun, name: str) -> bool:
    """Whether the guide, too, draws all sites before this one that the model does."""
    drawn = [*itertools.takewhile(lambda each: each != name, run.guide)]
    before = itertools.takewhile(lambda each: each != name, run.model)
    return not run.guide or all(each in drawn for each in before if each in run.guide)
