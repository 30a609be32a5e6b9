"""What several public functions ask of the same arguments, in the words of `pvae.support.refusals`."""

from __future__ import annotations

import numbers
import os
from pathlib import Path
from typing import Any

from pvae.support.refusals import built, number, shown

__all__ = ["GUIDE", "MODEL", "check_min_scale", "check_pair", "check_seed", "path_of"]

# What to give for a model and for a guide.
MODEL, GUIDE = "pvae.models.VAE(x_shape, latent_dim)", "pvae.guides.MeanField(model, batch)"


def check_pair(model: Any, guide: Any) -> None:
    """Raise ValueError unless both of a pair can be called on a batch; a guide may be None."""
    built("model", model, usual=MODEL)
    if guide is not None:
        built("guide", guide, usual=GUIDE)


def check_min_scale(min_scale: Any) -> float:
    """The floor on a scale. Raises ValueError for one below 0, or so large that squares leave single precision."""
    return number("min_scale", min_scale, least=0, most=1e15, usual=1e-4)


def check_seed(seed: Any, name: str = "seed") -> int:
    """The seed as an int. Raises ValueError for what torch's generators do not take."""
    is_whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not is_whole or not -(2**63) <= seed < 2**63:
        raise ValueError(f"{name} must be a whole number that 64 bits hold, got {shown(seed)}; try 0")
    return int(seed)


def path_of(name: str, path: Any) -> Path:
    """The path of a folder. Raises ValueError for what is none, or is empty."""
    if not isinstance(path, (str, os.PathLike)) or not str(path) or "\0" in str(path):
        raise ValueError(f"{name} must be the path of a folder, got {shown(path)}; give for example 'runs/first'")
    return Path(path)
