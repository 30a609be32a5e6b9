"""Values outside a distribution's support: they weigh zero, log p = -inf, whatever torch makes of them there.

Outside its support a log_prob of torch's raises with validation on and gives some number with it off.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import constraints

from pvae.supports import Image, Unreachable, ends, entry, onto, support_of

__all__ = ["Guard", "can_leave", "inside", "is_within", "log_prob_of"]

Site = Any


class Guard(Messenger):
    """Note where values of some sites lie outside their support; `None` guards every site.

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
        if isinstance(msg["fn"], _Subsample) or not (self.names is None or msg["name"] in self.names):
            return
        support = support_of(msg["fn"], around=msg["is_observed"])
        if not can_leave(support):
            return
        is_inside = inside(support, msg["value"])
        if is_inside is None:
            return
        msg["outside"], msg["scored"] = ~is_inside, _moved_inside(support, msg["value"], ~is_inside)
        if self.replaces and not msg["is_observed"]:
            msg["value"] = msg["scored"]


def log_prob_of(site: Site) -> Tensor:
    """The log density of a site at its value: -inf where a guard found the value outside the support."""
    if "outside" not in site:
        log_prob: Tensor = site["fn"].log_prob(site["value"])
        return log_prob
    return torch.where(site["outside"], -math.inf, site["fn"].log_prob(site["scored"]))


def can_leave(support: constraints.Constraint) -> bool:
    """Whether there is any value outside."""
    inner = entry(support)
    return inner is not constraints.real and inner is not constraints.real_vector and not isinstance(inner, Unreachable)


def is_within(inner: constraints.Constraint, outer: constraints.Constraint) -> bool:
    """Whether every value of one support lies in the other, in any run, as far as the two tell.

    Bounds that are tensors may move, so only two that hold the same values are taken to move together.
    """
    if not can_leave(outer):
        return True
    own, whole = ends(inner), ends(outer)
    if own is None or whole is None:
        return type(entry(inner)) is type(entry(outer)) and not isinstance(entry(outer), Image)
    if inner.is_discrete != outer.is_discrete:
        return False
    return _no_less(own[0], whole[0]) and _no_less(whole[1], own[1])


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
        return inside(support.base, support.transform.inv(value))
    if support is constraints.simplex:
        # The sum of many floats is off 1 by more than torch allows.
        slack = max(1e-6, 4 * value.shape[-1] * torch.finfo(value.dtype).eps)
        return (value >= 0).all(-1) & ((value.sum(-1) - 1).abs() < slack) | value.isnan().any(-1)
    if support is constraints.one_hot:
        return support.check(value)
    return None if ends(support) is None else support.check(value) | value.isnan()


def _moved_inside(support: constraints.Constraint, value: Tensor, outside: Tensor) -> Tensor:
    """The value, or where it is outside one inside: gradients of a density are no numbers elsewhere."""
    shape = torch.Size([*outside.shape, *value.shape[value.dim() - support.event_dim :]])
    safe = _some_value(support, shape, value)
    return torch.where(outside.reshape(*outside.shape, *(1,) * support.event_dim), safe, value)


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
