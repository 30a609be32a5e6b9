"""What a net of the user's gives, looked at once before it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pvae.contexts import called_modules, running
from pvae.support.refusals import built, shown

__all__ = ["output_of", "require_one_per_datum"]


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


def require_one_per_datum(
    name: str, net: Callable[..., Tensor], batch: tuple[Tensor, ...], *shapes: tuple[str, ...]
) -> Callable[..., Tensor]:
    """The net. Raises ValueError unless it gives one number per datum, in one of these shapes."""
    found = tuple(output_of(name, net, batch, usual="pvae.nets.MLP(in_shape, (200,), 1)").shape)
    if found not in [tuple(len(batch[0]) if each == "B" else 1 for each in shape) for shape in shapes]:
        words = " or ".join(f"({', '.join(shape)}{',' * (len(shape) == 1)})" for shape in shapes)
        raise ValueError(f"{name} must give one number per datum, {words}, got {found}; end it in one")
    return net
