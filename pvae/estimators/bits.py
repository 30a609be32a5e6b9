"""Log likelihoods per dimension in bits, as image models are reported."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import Tensor

__all__ = ["bits_per_dim"]

Nats = TypeVar("Nats", float, Tensor)


def bits_per_dim(nats: Nats, num_dims: int) -> Nats:
    """-nats / (num_dims log 2): log p(x) of data with `num_dims` values, seen in bits per value; smaller is better.

    The view is of masses, as of `DiscretizedLogistic`. A density of data that were divided by 255 lacks log 256 nats
    per value to one of 8-bit levels, and is below a mass only if the levels were dequantised with uniform noise.

    Args:
        nats: log p(x), a number or a tensor of them.
        num_dims: values in one datum, such as 3 * 32 * 32.

    Raises: ValueError for less than one dimension.

    Theis, van den Oord and Bethge (2016), A Note on the Evaluation of Generative Models.
    """
    if num_dims < 1:
        raise ValueError(f"num_dims must be at least 1, got {num_dims}; give the number of values in one datum")
    return -nats / (num_dims * math.log(2))
