"""Masks: which entries of the data are observed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pvae.support.refusals import instance, shown

__all__ = ["as_mask"]


def as_mask(observed: Tensor) -> Tensor:
    """A mask as bool, from bool or from 0 and 1.

    Raises: ValueError for anything between; not inside a graph, which cannot raise.
    """
    instance("observed", observed, Tensor, what="a tensor of True and False", usual="~x.isnan()")
    if observed.dtype == torch.bool:
        return observed
    if get_proxy_mode() is None and not bool(((observed == 0) | (observed == 1)).all()):
        raise ValueError(
            f"observed must hold True and False, or 1 and 0, got other values in {shown(observed)}; say of each entry "
            "whether it counts, for example ~x.isnan()"
        )
    return observed.bool()
