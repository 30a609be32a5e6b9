"""A pair whose log p(x) is known, and how it is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro import poutine
from torch import Tensor

from pvae.pair.contexts import seeded
from pvae.pair.pair import Pair
from pvae.support.refusals import shown

__all__ = ["Truth", "draw", "given_or_drawn"]


@dataclass(frozen=True, eq=False)
class Truth:
    """A model, data, and the answer.

    Attributes:
        name: what to call it in a table.
        model: a Pyro model of the data, in float64; its numbers are parameters, so it moves to a device as nets do.
        guide: a sensible guide that is not the posterior; its weights have a finite variance.
        x: data, (N, ...).
        log_prob: exact log p(x), (N,), in nats and float64, for the parameters as they were built.
        latent: "continuous" (then the guide is reparameterised) or "discrete".
        exact_guide: the posterior p(z | x) as a guide, where it is known.
        source: where the answer comes from, in a line.
    """

    name: str
    model: Callable[..., Any]
    guide: Callable[..., Any]
    x: Tensor
    log_prob: Tensor
    latent: Literal["continuous", "discrete"]
    exact_guide: Callable[..., Any] | None
    source: str


def given_or_drawn(x: Tensor | None, model: Callable[..., Any], like: Tensor, *, any_width: bool = False) -> Tensor:
    """The data that were given, else drawn ones in the shape of `like`.

    Raises: ValueError for what is no float64 tensor in the shape of `like`, whose last dim is free with `any_width`, or
        is not finite.
    """
    if x is None:
        return draw(model, like)
    is_like = isinstance(x, Tensor) and x.dtype == like.dtype and x.dim() == like.dim() and x.numel() > 0
    is_like = is_like and (any_width or x.shape[1:] == like.shape[1:])
    if not is_like or not bool(x.isfinite().all()):
        shape = "N, n" if any_width else ", ".join(["N", *map(str, like.shape[1:])])
        raise ValueError(f"x must be finite float64 data ({shape}), got {shown(x)}; give a tensor, or leave it out")
    return x


def draw(model: Callable[..., Any], like: Tensor) -> Tensor:
    """Data "x" from the model in the shape of `like`, the same at every call."""
    with seeded(0), Pair(model).inside(), torch.no_grad():
        drawn = poutine.trace(poutine.uncondition(model)).get_trace(like).nodes["x"]["value"]
    assert drawn is not None
    return drawn
