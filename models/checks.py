"""What the models that take data of any shape check of a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["check_shape", "check_size"]


def check_shape(model: Any, x: Tensor) -> None:
    """Raise ValueError unless x has the shape (B, *model.x_shape)."""
    if tuple(x.shape[1:]) != model.x_shape:
        name, shape = type(model).__name__, ", ".join(map(str, model.x_shape))
        raise ValueError(
            f"{name} expects a batch of shape (B, {shape}), got {tuple(x.shape)}; reshape the data or build the model "
            "with their shape"
        )


def check_size(name: str, size: object, least: int = 1) -> None:
    """Raise ValueError unless a size is a whole number of at least `least`."""
    if not isinstance(size, int) or size < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {size!r}; try 8")
