"""Data with missing entries, as the pair (x, observed) that models take."""

from __future__ import annotations

import torch
from torch import Tensor

from pvae.support.refusals import instance

__all__ = ["missing"]


def missing(x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The batch (x, observed) of data with missing entries, which are set to 0: nothing can read what they held.

    Args:
        x: data (N, ...); entries that are nan are missing.
        observed: which entries are observed (bool or 0 and 1, in the shape of x), where nan does not say it all.

    Returns: x with 0 in place of what is missing, and the bool tensor of what is not.

    Raises: ValueError for data that are no tensor, and an `observed` of another shape or other values.
    """
    instance("x", x, Tensor, what="a tensor", usual="torch.as_tensor(x)")
    known = ~x.isnan()
    if observed is not None:
        instance("observed", observed, Tensor, what="a tensor in the shape of x, or None", usual="~x.isnan()")
        if observed.shape != x.shape:
            raise ValueError(
                f"observed must have the shape of x, {tuple(x.shape)}, got {tuple(observed.shape)}; give one entry for "
                "each of x"
            )
        if ((observed != 0) & (observed != 1)).any():
            raise ValueError("observed must be True and False, or 1 and 0, got other values; give observed > 0.5")
        known = known & observed.bool()
    return torch.where(known, x, 0), known
