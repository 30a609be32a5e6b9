"""log p(x, z) of a batch at latents of your choice, and the shape of what may be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro
import torch
from torch import Tensor

from pvae.pair.contexts import seeded
from pvae.pair.pair import Pair
from pvae.pair.sites import Batch, Site, require_latents

__all__ = ["Joint"]

_VALUES_AT_ONCE = 2_000_000
_LEAST_WIDTH = 32


class Joint:
    """A model on one batch, as a function of its latents.

    Args:
        model: the model.
        batch: the data.
        num_trials: draws of the trial run.
        sums_out: whether sites annotated to be enumerated are summed out, as in every run, or are latents like others.

    Attributes:
        sites: the latent sites of a trial run by name, each drawn many times over.
        shapes: shape of one datum's value of each: its plates inside the data plate, then the event.
        prior_draws: what that run drew, each (K, B, ...).
        rows_at_once: particles to evaluate at once, at most, for memory's sake.
    """

    def __init__(self, model: Any, batch: Batch, num_trials: int = 256, *, sums_out: bool = True) -> None:
        self.pair, self.batch = Pair(model), batch
        layout = self.pair.layout(batch, 2)
        self.layout = layout if sums_out else replace(layout, summed=None)
        width = max(_LEAST_WIDTH, *(part[0].numel() for part in batch))
        self.rows_at_once = max(1, _VALUES_AT_ONCE // (width * len(batch[0])))
        num_trials = max(2, min(num_trials, self.rows_at_once))
        with torch.no_grad(), seeded(0, batch[0].device), pyro.validation_enabled(False):
            run = self.pair.run(batch, num_trials, layout=self.layout)
        self.prior_draws = run.latents
        self.sites: dict[str, Site] = {name: run.model[name] for name in self.prior_draws}
        self.shapes = {name: draws.shape[2:] for name, draws in self.prior_draws.items()}
        require_latents(self.sites)

    def log_prob(self, latents: Mapping[str, Tensor]) -> Tensor:
        """log p(x, z), (K, B) in float64, for values (K, B, ...) of every latent site."""
        num_samples = len(next(iter(latents.values())))
        # A grid reaches the ends of a support, where Pyro's validation sees nothing but an error.
        with pyro.validation_enabled(False):
            weights = self.pair.run(self.batch, num_samples, layout=self.layout, given=latents).log_weights()
        return weights.log_likelihood.double() + weights.log_prior.double()
