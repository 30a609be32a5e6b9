"""Masks: which entries of the data are observed."""

from __future__ import annotations

import torch
from torch import Tensor

from pvae.support.refusals import instance, shown

__all__ = ["as_mask"]


def as_mask(observed: Tensor) -> Tensor:
    """A mask as bool, from bool or from 0 and 1.

    A mask that is not bool has its values looked at in every batch, so a pair that is given one runs eagerly.

    Raises: ValueError for anything between.
    """
    instance("observed", observed, Tensor, what="a tensor of True and False", usual="~x.isnan()")
    if observed.dtype == torch.bool:
        return observed
    if not bool(((observed == 0) | (observed == 1)).all()):
        raise ValueError(
            f"observed must hold True and False, or 1 and 0, got other values in {shown(observed)}; say of each entry "
            "whether it counts, for example ~x.isnan()"
        )
    return observed.bool()
