"""What likelihoods with a few numbers per value share: how a decoder's output is cut, and positive numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pvae.support.refusals import choice, number, widths

__all__ = ["PerValue", "Positive", "PositiveOption"]

PositiveOption = float | Literal["shared", "learned"]


class PerValue(nn.Module):
    """A likelihood of independent values, with `num_parameters` numbers of the decoder for each."""

    num_parameters = 1

    def parameter_shape(self, x_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the decoder's output: (*x_shape,), or (num_parameters, *x_shape) for more than one number."""
        return tuple(x_shape) if self.num_parameters == 1 else (self.num_parameters, *x_shape)

    def split(self, parameters: Tensor, x_shape: Sequence[int]) -> list[Tensor]:
        """The decoder's output (..., *parameter_shape) as its numbers, each (..., *x_shape)."""
        return [parameters] if self.num_parameters == 1 else [*parameters.unbind(-1 - len(x_shape))]


class Positive(nn.Module):
    """A positive number of a likelihood, such as a scale: fixed, learned once for all data, or the decoder's.

    Args:
        name: what it is called in errors.
        option: a number to hold it fixed; "shared" to learn it, the same for all data; "learned" to have the decoder
            give one per value.
        floor: the least that a learned one can be.
        x_shape: shape of one datum, to have "shared" learn one per entry of it instead of one for all.
        floor_name: what the floor is called in errors.

    Raises: ValueError for another word, or a number or floor that is not positive.
    """

    def __init__(
        self,
        name: str,
        option: PositiveOption,
        floor: float,
        x_shape: Sequence[int] = (),
        *,
        floor_name: str = "floor",
    ) -> None:
        super().__init__()
        if isinstance(option, str):
            self.option: float | str = choice(name, option, ("shared", "learned"))
        else:
            self.option = number(name, option, above=0, usual="1.0, 'shared' or 'learned'")
        self.floor = number(floor_name, floor, above=0, usual=1e-3)
        shape = widths("x_shape", x_shape, usual=(1, 28, 28))
        self.num_parameters = 1 if option == "learned" else 0
        if option == "shared":
            self.unconstrained = nn.Parameter(torch.full(shape, math.log(math.e - 1)))

    def forward(self, given: Sequence[Tensor], like: Tensor) -> Tensor:
        """The number, in the dtype of `like`: from what the decoder gave for it, which is nothing or one tensor."""
        if self.option == "learned":
            (raw,) = given
            return self.floor + softplus(raw)
        if self.option == "shared":
            return self.floor + softplus(self.unconstrained)
        return like.new_tensor(self.option)
