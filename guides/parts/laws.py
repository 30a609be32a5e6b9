"""What one site of a guide is drawn from, given numbers per datum, by the site's support; and its draws as features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from pvae.guides.parts.amortized import constrained
from pvae.guides.parts.placing import arrange_given, batch_shape, collect, free_shape, inner_shape
from pvae.guides.parts.straight_through import OneHot
from pvae.pair.sites import LatentSite

__all__ = ["Law", "Sampler", "bits", "categories", "gaussian", "law_of", "one_hots", "other_guide", "support_of"]

Distribution = Any


@dataclass(frozen=True)
class Law:
    """How to draw one site from numbers.

    Attributes:
        site: the site.
        shape: shape of the numbers of one draw.
        feature_shape: shape of one draw as features.
        family: from numbers (..., *shape) to the distribution of the site.
        features: from values (..., *event_shape) to features (..., *feature_shape).
    """

    site: LatentSite
    shape: torch.Size
    feature_shape: torch.Size
    family: Callable[[Tensor], Distribution]
    features: Callable[[Tensor], Tensor]

    @property
    def num_outputs(self) -> int:
        """Numbers per datum, the plates inside the data plate included."""
        return self.shape.numel() * torch.Size(inner_shape(self.site)).numel()

    @property
    def num_features(self) -> int:
        """Features per datum, likewise."""
        return self.feature_shape.numel() * torch.Size(inner_shape(self.site)).numel()


def bits(site: LatentSite, family: Callable[[Tensor], Distribution] | None = None) -> Law:
    """A binary site, from one logit per bit."""
    make = family or (lambda logits: dist.Bernoulli(logits=logits))
    shape = site.event_shape
    return Law(site, shape, shape, lambda logits: make(logits).to_event(len(shape)), lambda value: value)


def categories(site: LatentSite) -> Law:
    """A site of whole numbers from 0 up, from one logit per category; its features are one-hot."""
    site.require_fixed_support()
    support = support_of(site)
    upper = torch.as_tensor(support.upper_bound)
    if torch.as_tensor(support.lower_bound).ne(0).any():
        raise ValueError(f"site '{site.name}' has categories that do not start at 0; shift them in the model")
    if upper.min() != upper.max():
        raise ValueError(
            f"site '{site.name}' has entries with different numbers of categories, {int(upper.min()) + 1} to "
            f"{int(upper.max()) + 1}; make them a site each"
        )
    count, dims = int(upper.max()) + 1, len(site.event_shape)
    shape = torch.Size([*site.event_shape, count])
    return Law(
        site,
        shape,
        shape,
        lambda logits: dist.Categorical(logits=logits).to_event(dims),
        lambda value: value[..., None] == torch.arange(count, device=value.device),
    )


def one_hots(site: LatentSite, family: Callable[[Tensor], Distribution] | None = None) -> Law:
    """A site of one-hot vectors, from one logit per entry."""
    make = family or (lambda logits: OneHot(logits=logits))
    shape = site.event_shape
    return Law(site, shape, shape, lambda logits: make(logits).to_event(len(shape) - 1), lambda value: value)


def gaussian(site: LatentSite, min_scale: float) -> Law:
    """A continuous site: independent Gaussians carried to its support, whose features are unconstrained."""
    free, transform = free_shape(site), site.bijection

    def family(numbers: Tensor) -> Distribution:
        loc, raw = numbers.unbind(-1)
        return constrained(dist.Normal(loc, min_scale + softplus(raw)).to_event(len(free)), site)

    return Law(site, torch.Size([*free, 2]), free, family, transform.inv)


def law_of(site: LatentSite, min_scale: float) -> Law:
    """The law of a site by its support.

    Raises: ValueError for a discrete support that is not finite.
    """
    support = support_of(site)
    if support is constraints.boolean:
        return bits(site)
    if support is constraints.one_hot:
        return one_hots(site)
    if isinstance(support, constraints.integer_interval):
        return categories(site)
    if support.is_discrete:
        raise ValueError(
            f"site '{site.name}' is discrete without a finite support, and no guide draws such sites; make it finite, "
            "or write a guide of your own"
        )
    return gaussian(site, min_scale)


def other_guide(site: LatentSite) -> str:
    """Which guide to use for a site instead."""
    support = support_of(site)
    if not support.is_discrete:
        return "use MeanField, or Mixed if other sites are discrete"
    if support is constraints.boolean:
        return "use Bernoulli, or Mixed if other sites are not"
    return "use Categorical, or Mixed for several kinds of sites"


def support_of(site: LatentSite) -> Any:
    """The support of one entry of a site."""
    support = site.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


class Sampler:
    """Draws sites one after the other, from numbers that may depend on the draws before."""

    def __init__(self) -> None:
        # Batch dims of a draw that has particles, whose plate stands left of all others; 0 without such a plate.
        self._depth = 0

    def __call__(self, law: Law, numbers: Tensor) -> Tensor:
        """Sample a site inside its plates, from rows (B, n) or (K, B, n); its draw as features, (K, B, m)."""
        value = pyro.sample(law.site.name, law.family(arrange_given(law.site, numbers, law.shape, self._depth)))
        batch_dims = value.dim() - len(law.site.event_shape)
        if batch_dims > len(batch_shape(law.site, 1)):
            self._depth = batch_dims
        return collect(law.site, law.features(value), len(law.feature_shape)).to(numbers.dtype)
