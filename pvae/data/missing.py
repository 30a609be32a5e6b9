"""Data with missing entries, as the pair (x, observed) that models take."""

from __future__ import annotations

import torch
from torch import Tensor

from pvae.support.masks import as_mask

__all__ = ["missing"]


def missing(x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The batch (x, observed) of data with missing entries, which are set to 0: nothing can read what they held.

    Args:
        x: data (N, ...); entries that are nan are missing.
        observed: which entries are observed (bool or 0 and 1, in the shape of x), where nan does not say it all.

    Returns: x with 0 in place of what is missing, and the bool tensor of what is not.

    Raises: ValueError for an `observed` of another shape, or with other values.
    """
    known = ~x.isnan()
    if observed is not None:
        if observed.shape != x.shape:
            raise ValueError(f"observed must have the shape of x, {tuple(x.shape)}, got {tuple(observed.shape)}")
        known = known & as_mask(observed)
    return torch.where(known, x, 0), known
