"""What several public functions ask of the same arguments, in the words of `pvae.support.refusals`."""

from __future__ import annotations

import numbers
from typing import Any

from pvae.support.refusals import built, shown

__all__ = ["GUIDE", "MODEL", "check_pair", "check_seed"]

# What to give for a model and for a guide.
MODEL, GUIDE = "pvae.models.VAE(x_shape, latent_dim)", "pvae.guides.MeanField(model, batch)"


def check_pair(model: Any, guide: Any) -> None:
    """Raise ValueError unless both of a pair can be called on a batch; a guide may be None."""
    built("model", model, usual=MODEL)
    if guide is not None:
        built("guide", guide, usual=GUIDE)


def check_seed(seed: Any, name: str = "seed") -> int:
    """The seed as an int. Raises ValueError for what torch's generators do not take."""
    is_whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not is_whole or not -(2**63) <= seed < 2**63:
        raise ValueError(f"{name} must be a whole number that 64 bits hold, got {shown(seed)}; try 0")
    return int(seed)
