"""Data drawn from a model in place of those it was given, with the latents behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pvae.layout import read_layout
from pvae.sites import Batch, random_sites

__all__ = ["Simulated", "simulate"]


@dataclass(frozen=True)
class Simulated:
    """A batch in which the model's own draws stand for what it observes, and the latents, each (1, B, ...).

    The latents are exact draws from the posterior given that batch.
    """

    batch: Batch
    latents: dict[str, Tensor]


def simulate(model: Any, batch: Batch) -> Simulated:
    """Draw latents and data, one per datum of `batch`, from torch's global generator; call inside a store.

    Parts of the batch that the model conditions on stay as they are.

    Raises: ValueError if an observed site holds no part of the batch as it is (reshaped at most).
    """
    with torch.no_grad():
        trace = poutine.trace(poutine.uncondition(model)).get_trace(*batch)
        layout = read_layout(model, None, batch, 1)
    parts = list(batch)
    latents = {}
    for name, site in random_sites(trace).items():
        if site["infer"].get("was_observed"):
            index = _part(name, site["infer"]["obs"], batch)
            parts[index] = site["value"].to(batch[index].dtype).reshape(batch[index].shape)
        else:
            latents[name] = layout.collect(name, site["value"], 1)
    return Simulated(tuple(parts), latents)


def _part(name: str, observed: Tensor, batch: Batch) -> int:
    """Which part of the batch a site observes."""
    same = [
        index
        for index, part in enumerate(batch)
        if part.numel() == observed.numel() and torch.equal(part.reshape(-1), observed.reshape(-1).to(part.dtype))
    ]
    shared = [index for index in same if batch[index].data_ptr() == observed.data_ptr()]
    if not same:
        raise ValueError(
            f"site '{name}' observes something computed from the batch, so simulated data cannot take its place; "
            "observe one part of the batch as it is, reshaped at most"
        )
    return (shared or same)[0]
