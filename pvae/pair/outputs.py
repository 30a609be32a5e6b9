"""What a net of the user's gives, looked at once before it is used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pvae.pair.contexts import called_modules, running
from pvae.support.refusals import built, shown

__all__ = ["output_of", "require_shape"]


def output_of(name: str, net: Any, batch: tuple[Tensor, ...], *, usual: str) -> Tensor:
    """What a net gives for a batch, in evaluation mode, so that a look at it changes no batch statistics.

    Raises: ValueError for what cannot be called on the batch, or gives no tensor.
    """
    built(name, net, usual=usual)
    with torch.no_grad(), called_modules(), running(name, batch):
        output = net(*batch)
    if not isinstance(output, Tensor):
        raise ValueError(f"{name} must give a tensor for a batch, got {shown(output)}; give for example {usual}")
    return output


def require_shape(name: str, output: Any, *shapes: tuple[int, ...]) -> Tensor:
    """What a net gave. Raises ValueError unless it is a tensor in one of these shapes."""
    if not isinstance(output, Tensor) or tuple(output.shape) not in shapes:
        words = " or ".join(map(str, shapes))
        raise ValueError(f"{name} must give a tensor {words}, got {shown(output)}; end it in as many numbers per datum")
    return output
