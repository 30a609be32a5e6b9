"""Data drawn from a model in place of those it was given, with the latents behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pvae.pair.look import look
from pvae.pair.sites import Batch, random_sites

__all__ = ["Simulated", "Simulator", "observed_parts", "simulate"]


@dataclass(frozen=True)
class Simulated:
    """A batch in which the model's own draws stand for what it observes, and the latents, each (1, B, ...).

    The latents are exact draws from the posterior given that batch.
    """

    batch: Batch
    latents: dict[str, Tensor]


class Simulator:
    """Draws latents and data from a model, one per datum of a batch, from torch's global generator.

    Parts of the batch that the model conditions on stay as they are.

    Args:
        model: any model within the contract.
        batch: an example, to look at the model with.

    Raises: ValueError if an observed site holds no part of the batch as it is (reshaped at most).
    """

    def __init__(self, model: Any, batch: Batch) -> None:
        self.model, self.parts = model, observed_parts(model, batch)
        self.layout = look(model, None, batch)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Simulated:
        """A draw for each datum of `batch`."""
        trace = poutine.trace(poutine.uncondition(self.model)).get_trace(*batch)
        parts, latents = list(batch), {}
        for name, site in random_sites(trace).items():
            if name in self.parts:
                part = parts[self.parts[name]]
                parts[self.parts[name]] = site["value"].to(part.dtype).reshape(part.shape)
            else:
                latents[name] = self.layout.collect(name, site["value"], 1)
        return Simulated(tuple(parts), latents)


def simulate(model: Any, batch: Batch) -> Simulated:
    """One draw of latents and data for each datum of `batch`, as by a `Simulator`."""
    return Simulator(model, batch)(batch)


def observed_parts(model: Any, batch: Batch) -> dict[str, int]:
    """Which part of the batch each observed site holds.

    Raises: ValueError if a site holds no part of it as it is (reshaped at most).
    """
    with torch.no_grad():
        sites = random_sites(poutine.trace(model).get_trace(*batch))
    return {name: _part(name, site["value"], batch) for name, site in sites.items() if site["is_observed"]}


def _part(name: str, observed: Tensor, batch: Batch) -> int:
    same = [
        index
        for index, part in enumerate(batch)
        if part.numel() == observed.numel() and torch.equal(part.reshape(-1), observed.reshape(-1).to(part.dtype))
    ]
    shared = [index for index in same if batch[index].data_ptr() == observed.data_ptr()]
    if not same:
        raise ValueError(
            f"site '{name}' observes something computed from the batch, so nothing can take its place; "
            "observe one part of the batch as it is, reshaped at most"
        )
    return (shared or same)[0]
