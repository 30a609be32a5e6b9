"""Draws from a model, codes of data, and reconstructions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pvae.data.batches import Batches
from pvae.pair.contexts import in_one_line
from pvae.pair.entry import entry
from pvae.pair.layout import Layout, place_of
from pvae.pair.pair import Pair
from pvae.pair.sites import Batch, Site, plate_named, random_sites
from pvae.support.arguments import GUIDE, MODEL, check_pair, check_seed
from pvae.support.refusals import built, flag, whole

__all__ = ["encode", "reconstruct", "sample"]


@entry
def sample(
    model: Any,
    num: int,
    *,
    like: Tensor | tuple[Tensor, ...] | None = None,
    mean: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Draw `num` data with their latents from the model.

    Args:
        model: any model within the contract.
        num: how many.
        like: one batch (B, ...) to take shapes, and what is conditioned on, from; its data are used in turn. May be
            left out for models that know their `x_shape`.
        mean: give the mean of each observed site (where its distribution has one) instead of a draw.
        seed: of the draws.

    Returns: site name -> (num, ...), latent and observed sites alike.
    Raises: ValueError for `num` < 1, or a missing `like`.
    """
    num, mean, seed = whole("num", num, usual=100), flag("mean", mean), check_seed(seed)
    built("model", model, usual=MODEL)
    if like is None:
        shape = getattr(model, "x_shape", None)
        if shape is None:
            raise ValueError(f"{type(model).__name__} does not tell the shape of its data; give like=a batch")
        like = torch.zeros(1, *shape, device="cpu")
    rows = torch.arange(num, device="cpu")
    batch = tuple(part[rows % len(part)] for part in _whole(like).example())
    source = Batches(batch, num)
    pair = Pair(model)
    with pair.evaluated(source, seed=seed):
        layout = pair.look(source.example())
        with in_one_line(source.example()):
            trace = poutine.trace(poutine.uncondition(model)).get_trace(*source.example())
    observed = {name for name, site in trace.nodes.items() if site.get("infer", {}).get("was_observed")}
    return {
        name: _by_datum(layout, site, _mean(site) if mean and name in observed else site["value"])
        for name, site in random_sites(trace).items()
    }


@entry
def reconstruct(
    model: Any, guide: Any, x: Tensor | tuple[Tensor, ...], *, mean: bool = True, seed: int = 0
) -> dict[str, Tensor]:
    """Encode x, then decode: p(x | z) at one draw z of the guide per datum.

    Returns: name of each observed site -> its mean (or with `mean=False` a draw), (B, ...).
    """
    check_pair(model, guide)
    mean, seed = flag("mean", mean), check_seed(seed)
    source = _whole(x)
    pair = Pair(model, guide)
    with pair.evaluated(source, seed=seed), in_one_line(source.example()):
        run = pair.run(source.example(), 1)
        if summed := run.draw_summed():
            run = pair.run(source.example(), 1, given=run.latents | summed)
        return {
            name: _by_datum(run.layout, site, _mean(site) if mean else site["fn"].sample())
            for name, site in run.model.items()
            if site["is_observed"]
        }


@entry
def encode(
    guide: Any, x: Tensor | tuple[Tensor, ...], *, num_samples: int | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """The latent code of each datum: the mean of the guide, or draws from it.

    Returns: site name -> (B, ...), or (num_samples, B, ...). A site whose distribution has no mean gives a draw.
    """
    if num_samples is not None:
        num_samples = whole("num_samples", num_samples, usual=10)
    built("guide", guide, usual=GUIDE)
    seed = check_seed(seed)
    source = _whole(x)
    pair = Pair(guide)
    with pair.evaluated(source, seed=seed), in_one_line(source.example()):
        layout = pair.look(source.example())
        looks = [_latents(guide, source.example()) for _ in range(num_samples or 1)]
    if num_samples is None:
        return {name: _by_datum(layout, site, _mean(site)) for name, site in looks[0].items()}
    return {
        name: torch.stack([_by_datum(layout, sites[name], sites[name]["value"]) for sites in looks])
        for name in looks[0]
    }


def _latents(guide: Any, batch: Batch) -> dict[str, Site]:
    sites = random_sites(poutine.trace(guide).get_trace(*batch))
    return {name: site for name, site in sites.items() if not site["is_observed"]}


def _by_datum(layout: Layout, site: Site, value: Tensor) -> Tensor:
    """A value of a site with the data first, (B, ...), wherever its data plate stands."""
    name = site["name"]
    place = place_of(site, plate_named({name: site}, layout.model_plate))
    return replace(layout, places={name: place}).collect(name, value, 1)[0]


def _whole(x: Tensor | tuple[Tensor, ...]) -> Batches:
    """The data as one batch."""
    return Batches(x, None)


def _mean(site: Site) -> Tensor:
    """The mean of a site's distribution, its mode where a mean means nothing (categories), else the draw itself."""
    for statistic in ("mean", "mode"):
        try:
            value = getattr(site["fn"], statistic)
        except NotImplementedError:
            continue
        if torch.isfinite(value).all():
            return value
    return site["value"]
