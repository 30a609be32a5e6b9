"""Values outside a distribution's support: they weigh zero, log p = -inf, whatever torch makes of them there.

Outside its support a log_prob of torch's raises with validation on and gives some number with it off.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import ComposeTransform, IndependentTransform, Transform

from pvae.pair.supports import (
    Image,
    Unreachable,
    bounds_of,
    ends,
    entry,
    is_carried,
    onto,
    support_of,
    unwrapped,
)

__all__ = ["Guard", "density_of", "guarding", "inside", "may_leave", "outside"]

Site = Any


class Guard(Messenger):
    """Note where values of some sites lie outside their support; `None` guards every latent site.

    A latent value from there is replaced by one inside before the model goes on with it, for a parameter of another
    distribution that is computed from it may be none; an observed value, and one that was given to a guide, stays, and
    only what is scored is replaced. The site remembers both: "outside", one flag per event, and "scored".

    Args:
        names: the sites to guard.
        replaces: whether latents go on as the value inside.
    """

    def __init__(self, names: Collection[str] | None = None, *, replaces: bool = True) -> None:
        super().__init__()
        self.names, self.replaces = names, replaces

    def _pyro_post_sample(self, msg: Any) -> None:
        is_named = not msg["is_observed"] if self.names is None else msg["name"] in self.names
        if not is_named or isinstance(msg["fn"], _Subsample):
            return
        support = support_of(msg["fn"], around=msg["is_observed"])
        if not _can_leave(support):
            return
        is_inside = inside(support, msg["value"])
        if is_inside is None:
            return
        msg["outside"] = ~is_inside & _kept_by(msg["fn"], ~is_inside)
        msg["scored"] = _moved_inside(support, msg["value"], ~is_inside)
        if self.replaces and not msg["is_observed"]:
            # What a mask leaves out weighs nothing, wherever it lies, and the model goes on with it.
            msg["value"] = _moved_inside(support, msg["value"], _counted(msg, msg["outside"]))


def outside(site: Site) -> Tensor | None:
    """Which events of a site lie outside its support, and count by its masks; None where no check tells."""
    support, value = support_of(site["fn"], around=site["is_observed"]), site["value"]
    if entry(support) is constraints.real or isinstance(entry(support), Unreachable):
        return None
    is_inside = inside(support, value)
    if is_inside is None:
        is_inside = site["fn"].support.check(value)
    return _counted(site, ~is_inside & _kept_by(site["fn"], ~is_inside))


def _counted(site: Site, events: Tensor) -> Tensor:
    return events if site["mask"] is None else events & _as_mask(site["mask"], events)


def guarding(names: Collection[str], *, replaces: bool = True) -> AbstractContextManager[Any]:
    """A guard of these sites; nothing at all without any."""
    return Guard(names, replaces=replaces) if names else nullcontext()


def density_of(site: Site) -> Tensor:
    """The log density of a site at its value: -inf where a guard found the value outside the support."""
    if "outside" not in site:
        log_prob: Tensor = site["fn"].log_prob(site["value"])
        return log_prob
    return torch.where(site["outside"], -math.inf, site["fn"].log_prob(site["scored"]))


def _kept_by(distribution: Any, like: Tensor) -> Tensor:
    """Which events count by the distribution's own `mask`: all of those that have an entry which does."""
    kept, events = _as_mask(True, like), 0
    while distribution is not None:
        mask = getattr(distribution, "_mask", None)
        if mask is not None:
            mask = _as_mask(mask, like)
            kept = kept & (mask.reshape(*mask.shape[: mask.dim() - events], -1).any(-1) if mask.dim() else mask)
        events += getattr(distribution, "reinterpreted_batch_ndims", 0)
        distribution = getattr(distribution, "base_dist", None)
    return kept


def _as_mask(mask: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(mask, device=like.device)


def _can_leave(support: constraints.Constraint) -> bool:
    """Whether there is any value outside."""
    inner = entry(support)
    return inner is not constraints.real and not isinstance(inner, Unreachable)


def may_leave(site: Site, guide_site: Site | None) -> bool:
    """Whether a site of a model has to be guarded, as far as one run tells: its value may lie outside its support.

    An observed value may where the bounds are tensors, for these may follow latents; a latent where the guide's
    distribution reaches further. What the model draws itself lies inside.
    """
    support = support_of(site["fn"], around=site["is_observed"])
    if not _can_leave(support):
        return False
    if site["is_observed"]:
        return any(isinstance(bound, Tensor) for bound in bounds_of(support))
    return guide_site is not None and not _reaches_only(guide_site["fn"], support)


def _reaches_only(distribution: Any, support: constraints.Constraint) -> bool:
    """Whether every draw lies in the support, in any run.

    Bounds that are tensors may move, so only two that hold the same values are taken to move together.
    """
    own, drawn = support_of(distribution), _range_of(distribution)
    whole = ends(support)
    if whole is None or drawn is None:
        return type(entry(own)) is type(entry(support)) and not isinstance(entry(support), Image)
    if own.is_discrete != support.is_discrete:
        return False
    return _no_less(drawn[0], whole[0]) and _no_less(whole[1], drawn[1])


def _range_of(distribution: Any) -> tuple[Any, Any] | None:
    """The ends of an entry of a draw; those of a carried distribution are where its transforms take its base's."""
    distribution = unwrapped(distribution)
    transforms = getattr(distribution, "transforms", [])
    if not is_carried(distribution) or any(each.domain.event_dim or not each.bijective for each in transforms):
        return ends(support_of(distribution))
    between = _range_of(distribution.base_dist)
    if between is None:
        return None
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in between)
    for each in transforms:
        low, high = each(low), each(high)
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    is_fixed = not any(isinstance(number, Tensor) for each in transforms for number in _numbers(each))
    if is_fixed and not any(isinstance(end, Tensor) for end in between):
        return low.item(), high.item()
    return low, high


def _numbers(transform: Transform) -> list[Any]:
    """What a transform holds: where these are tensors, another run may have others."""
    if isinstance(transform, ComposeTransform):
        return [number for part in transform.parts for number in _numbers(part)]
    if isinstance(transform, IndependentTransform):
        return _numbers(transform.base_transform)
    if isinstance(transform, nn.Module):
        return [*transform.parameters()]
    return [*vars(transform).values()]


def _no_less(bound: Any, other: Any) -> bool:
    if isinstance(bound, Tensor) and isinstance(other, Tensor):
        return bound is other or (bound.shape == other.shape and torch.equal(bound, other))
    if isinstance(bound, Tensor) or isinstance(other, Tensor):
        return False
    return bool(bound >= other)


def inside(support: constraints.Constraint, value: Tensor) -> Tensor | None:
    """Whether each event lies in the support; None for a support that no check of its values tells by.

    A value that is not a number is not outside: it is refused as such.
    """
    if isinstance(support, constraints.independent):
        each, count = inside(support.base_constraint, value), support.reinterpreted_batch_ndims
        return None if each is None else each.reshape(*each.shape[: each.dim() - count], -1).all(-1)
    if isinstance(support, Image):
        before = support.transform.inv(value)
        found = inside(support.base, before)
        if found is None:
            return None
        # No number leads to a value beyond what the transform reaches.
        return (found & ~_is_nan(before, support.base.event_dim)) | _is_nan(value, support.event_dim)
    if support is constraints.simplex:
        # The sum of many floats is off 1 by more than torch allows.
        slack = max(1e-6, 4 * value.shape[-1] * torch.finfo(value.dtype).eps)
        return ((value >= 0).all(-1) & ((value.sum(-1) - 1).abs() < slack)) | _is_nan(value, 1)
    if support is constraints.one_hot:
        return support.check(value)
    return None if ends(support) is None else support.check(value) | value.isnan()


def _is_nan(value: Tensor, event_dim: int) -> Tensor:
    """Whether an event holds what is no number."""
    return value.isnan().reshape(*value.shape[: value.dim() - event_dim], -1).any(-1)


def _moved_inside(support: constraints.Constraint, value: Tensor, outside: Tensor) -> Tensor:
    """The value, or where it is outside one inside: gradients of a density are no numbers elsewhere."""
    shape = torch.Size([*outside.shape, *value.shape[value.dim() - support.event_dim :]])
    safe = _some_value(support, shape, value).to(value.dtype)
    return torch.where(outside.reshape((*outside.shape, *(1,) * support.event_dim)), safe, value)


def _some_value(support: constraints.Constraint, shape: torch.Size, like: Tensor) -> Tensor:
    inner = entry(support)
    if inner is constraints.one_hot:
        return like.new_zeros(shape).index_fill(-1, torch.zeros(1, dtype=torch.long, device=like.device), 1)
    if inner.is_discrete:
        bounds = ends(inner)
        low = 0 if bounds is None else bounds[0]
        return torch.zeros(shape, dtype=like.dtype, device=like.device) + torch.as_tensor(low).to(like)
    transform = onto("", "", support)
    return transform(like.new_zeros(transform.inverse_shape(shape)))
