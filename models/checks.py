"""What models ask of their parts and of their data, with one line for what is not so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pvae.support.refusals import built, shown

__all__ = ["check_part", "check_shape", "likelihood_or", "part_or"]


def check_shape(model: Any, x: Tensor) -> None:
    """Raise ValueError unless x has the shape (B, *model.x_shape)."""
    check_part(model, "a batch", x, model.x_shape, "reshape the data or build the model with their shape")


def check_part(model: Any, name: str, part: Tensor, shape: tuple[int, ...], fix: str) -> None:
    """Raise ValueError, with the fix, unless a part of the batch has the shape (B, *shape)."""
    if tuple(part.shape[1:]) != shape:
        expected = ", ".join(map(str, ("B", *shape)))
        raise ValueError(f"{type(model).__name__} expects {name} of shape ({expected}), got {tuple(part.shape)}; {fix}")


def part_or(name: str, given: Any, default: Callable[[], nn.Module], *, usual: str) -> Any:
    """A part of a model as it was given, or the default. Raises ValueError for what cannot be called."""
    return default() if given is None else built(name, given, usual=usual)


def likelihood_or(given: Any, default: Callable[[], nn.Module]) -> Any:
    """The likelihood that was given, or the default. Raises ValueError for what tells no `parameter_shape`."""
    likelihood = part_or("likelihood", given, default, usual="pvae.models.likelihoods.Bernoulli()")
    if not callable(getattr(likelihood, "parameter_shape", None)):
        raise ValueError(
            f"likelihood must be one of pvae.models.likelihoods, or a module with a parameter_shape as theirs, got "
            f"{shown(likelihood)}; give for example Bernoulli()"
        )
    return likelihood
