"""The one line that a model says of a batch of another shape than it was built for."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["require_shape"]


def require_shape(model: Any, name: str, part: Tensor, shape: tuple[int, ...], fix: str) -> None:
    """Raise ValueError, with the fix, unless a part of the batch is (B, *shape)."""
    if tuple(part.shape[1:]) != shape:
        raise ValueError(
            f"{type(model).__name__} expects {name} of shape ({', '.join(map(str, ('B', *shape)))}), got "
            f"{tuple(part.shape)}; {fix}"
        )
