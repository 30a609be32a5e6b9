"""Data with missing entries, as the pair (x, observed) that models take."""

from __future__ import annotations

import torch
from torch import Tensor

from pvae.support.batch import Part, as_part
from pvae.support.masks import as_mask

__all__ = ["missing"]


def missing(x: Part, observed: Part | None = None) -> tuple[Tensor, Tensor]:
    """The batch (x, observed) of data with missing entries, which are set to 0: nothing can read what they held.

    Args:
        x: data (N, ...), a tensor or array of numpy; entries that are nan are missing.
        observed: which entries are observed (bool or 0 and 1, in the shape of x), where nan does not say it all.

    Returns: x with 0 in place of what is missing, and the bool tensor of what is not.

    Raises: ValueError for data that are no tensor, and an `observed` of another shape or other values.
    """
    x = as_part(x)
    known = ~x.isnan()
    if observed is not None:
        observed = as_mask(as_part(observed))
        if observed.shape != x.shape:
            raise ValueError(
                f"observed must have the shape of x, {tuple(x.shape)}, got {tuple(observed.shape)}; give one entry for "
                "each of x"
            )
        known = known & observed
    return torch.where(known, x, 0), known
