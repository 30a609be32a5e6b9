"""Which family fits which site, and how it is carried there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform, Transform

from pvae.guides.parts.amortized import constrained
from pvae.guides.parts.families import FAMILIES, NORMAL, Family
from pvae.guides.parts.placing import arrange, free_shape, in_plates, inner_shape
from pvae.pair.sites import LatentSite
from pvae.support.refusals import choice, instance, shown

__all__ = ["at_site", "match", "num_outputs", "sample_independently"]

_PLACES = {"real": "the reals", "positive": "a half-line", "interval": "an interval", "simplex": "a simplex"}


def match(sites: Sequence[LatentSite], family: str | Mapping[str, str]) -> tuple[Family, ...]:
    """The family of each site: one name for all, or names by site, the sites left out being normal.

    Raises: ValueError for a name that no family or site has, or a family that does not fit its site's support.
    """
    instance("family", family, (str, Mapping), what="a name, or names by site", usual="'normal' or {'rate': 'gamma'}")
    by_site = dict.fromkeys((site.name for site in sites), family) if isinstance(family, str) else dict(family)
    for name, word in by_site.items():
        if name not in {site.name for site in sites}:
            found = ", ".join(site.name for site in sites)
            raise ValueError(f"family names site {shown(name)}, the model's latent sites are {found}; use one of them")
        choice("family", word, list(FAMILIES))
    return tuple(_fitting(FAMILIES[by_site.get(site.name, "normal")], site) for site in sites)


def num_outputs(site: LatentSite, family: Family) -> int:
    """How many numbers of a datum the family takes at the site, its plates inside the data plate included."""
    draws = torch.Size(inner_shape(site)).numel() * _shape(site, family).numel()
    return len(family.numbers) * draws


def at_site(site: LatentSite, family: Family, rows: Tensor, min_scale: float) -> Any:
    """The distribution of the site from `rows` (B, n): each number of the family in turn for all latents."""
    shape, kind = _shape(site, family), _kind(site)
    raw = tuple(arrange(site, each, shape) for each in rows.chunk(len(family.numbers), -1))
    base = family.on(kind if kind in family.lives else family.lives[0], raw, min_scale)
    base = base.to_event(len(shape) - base.event_dim)
    if kind in family.lives:
        return _shifted(base, site)
    return constrained(base, site) if family is NORMAL else _carried(base, site.bijection)


def _fitting(family: Family, site: LatentSite) -> Family:
    kind = _kind(site)
    if _fits(family, kind):
        return family
    fitting = ", ".join(each for each in FAMILIES if _fits(FAMILIES[each], kind))
    lives = " or ".join(_PLACES[each] for each in family.lives)
    place = _PLACES.get(kind, f"another support, {_inner(site)}")
    reason = " and has tails too heavy to be carried elsewhere" if family.lives == ("real",) else ""
    raise ValueError(
        f"family '{family.name}' lives on {lives}{reason}, site '{site.name}' on {place}; use one of {fitting}"
    )


def _fits(family: Family, kind: str) -> bool:
    return kind in family.lives or family.carried


def _kind(site: LatentSite) -> str:
    support = _inner(site)
    if support is constraints.real or support is constraints.real_vector:
        return "real"
    if isinstance(support, (constraints.greater_than, constraints.greater_than_eq)):
        return "positive"
    if isinstance(support, (constraints.interval, constraints.half_open_interval)):
        return "interval"
    return "simplex" if support is constraints.simplex else "other"


def _inner(site: LatentSite) -> Any:
    support = site.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _shape(site: LatentSite, family: Family) -> torch.Size:
    """The shape of each number of one draw: a simplex has a number for every corner where a family lives on it."""
    return site.event_shape if _kind(site) == "simplex" and "simplex" in family.lives else free_shape(site)


def _shifted(base: Any, site: LatentSite) -> Any:
    """From the positive reals or (0, 1) to the half-line or interval of the site."""
    support = _inner(site)
    low = getattr(support, "lower_bound", 0.0)
    high = getattr(support, "upper_bound", low + 1.0)
    if all(isinstance(end, (int, float)) for end in (low, high)) and (low, high) == (0, 1):
        return base
    return _carried(base, AffineTransform(low, high - low))


def _carried(base: Any, bijection: Transform) -> Any:
    # What a draw came from is kept: where the bijection rounds to an end it would be lost.
    return dist.TransformedDistribution(base, [bijection.with_cache(1)], validate_args=False)


def sample_independently(
    sites: Sequence[LatentSite], numbers: Tensor, min_scale: float, families: Sequence[Family] | None = None
) -> None:
    """Sample all `sites` from independent latents: Gaussians carried to their supports, or of other families.

    Args:
        sites: the latent sites, in the order of the model.
        numbers: for each site in turn its family's numbers, each for all latents, side by side, (B, n): of Gaussians
            all locs, then all raw scales.
        min_scale: floor on each scale.
        families: that of each site; Gaussian by default.
    """
    families = (NORMAL,) * len(sites) if families is None else families
    parts = numbers.split([*map(num_outputs, sites, families)], -1)
    with in_plates(sites, len(numbers)) as inside:
        for site, family, part in zip(sites, families, parts, strict=True):
            with inside(site):
                pyro.sample(site.name, at_site(site, family, part, min_scale))
