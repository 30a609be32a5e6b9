"""Fresh draws of a model's prior beside those of the guide, for objectives that compare the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pvae.pair.pair import Pair
from pvae.pair.pair_run import PairRun
from pvae.pair.sites import require_latents

__all__ = ["as_vectors", "draw_prior"]


def draw_prior(run: PairRun, model: Any) -> Tensor:
    """As many fresh draws of the prior as there are data, (B, dims)."""
    require_latents(run.latents, "there are no draws to compare with the prior's, use ELBO")
    if len(run.latents) > 1 or run.states is not None:
        # A site may depend on those before it, whose values in the run are the guide's.
        return as_vectors(Pair(model, in_own_store=False).run(run.batch, 1, layout=run.layout).latents)
    (name,) = run.latents
    fn = run.model[name]["fn"]
    draws = fn.rsample() if fn.has_rsample else fn.sample()
    return as_vectors({name: run.layout.collect(name, draws, 1)})


def as_vectors(latents: Mapping[str, Tensor]) -> Tensor:
    """All sites (1, B, ...) side by side, (B, dims)."""
    return torch.cat([z[0].flatten(1) if z.dim() > 2 else z[0][:, None] for z in latents.values()], 1)
