"""A pair whose log p(x) is known, and how it is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro import poutine
from torch import Tensor

from pvae.contexts import seeded
from pvae.store import private_store

__all__ = ["Truth", "draw"]


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


def draw(model: Callable[..., Any], like: Tensor) -> Tensor:
    """Data "x" from the model in the shape of `like`, the same at every call."""
    with seeded(0), private_store(model), torch.no_grad():
        drawn = poutine.trace(poutine.uncondition(model)).get_trace(like).nodes["x"]["value"]
    assert drawn is not None
    return drawn
