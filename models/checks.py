"""What models ask of their sizes and of their data, with one line for what is not so."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["check_part", "check_shape", "check_size"]


def check_shape(model: Any, x: Tensor) -> None:
    """Raise ValueError unless x has the shape (B, *model.x_shape)."""
    check_part(model, "a batch", x, model.x_shape, "reshape the data or build the model with their shape")


def check_part(model: Any, name: str, part: Tensor, shape: tuple[int, ...], fix: str) -> None:
    """Raise ValueError, with the fix, unless a part of the batch has the shape (B, *shape)."""
    if tuple(part.shape[1:]) != shape:
        expected = ", ".join(map(str, ("B", *shape)))
        raise ValueError(f"{type(model).__name__} expects {name} of shape ({expected}), got {tuple(part.shape)}; {fix}")


def check_size(name: str, size: object, least: int = 1) -> None:
    """Raise ValueError unless a size is a whole number of at least `least`."""
    if not isinstance(size, int) or size < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {size!r}; try 8")
