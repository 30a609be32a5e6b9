"""Log likelihoods per dimension in bits, as image models are reported."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import Tensor

__all__ = ["bits_per_dim"]

Nats = TypeVar("Nats", float, Tensor)


def bits_per_dim(nats: Nats, num_dims: int) -> Nats:
    """-nats / (num_dims log 2): log p(x) of data with `num_dims` values, seen in bits per value; smaller is better.

    It is meant for masses, as of `DiscretizedLogistic`. From a density of 8-bit levels with uniform noise on them,
    divided by 256, take off log 256 nats per value first; the bits are then on average no fewer than those of the mass
    that it implies.

    Args:
        nats: log p(x), a number or a tensor of them.
        num_dims: values in one datum, such as 3 * 32 * 32.

    Raises: ValueError for less than one dimension.

    Theis, van den Oord and Bethge (2016), A Note on the Evaluation of Generative Models.
    """
    if num_dims < 1:
        raise ValueError(f"num_dims must be at least 1, got {num_dims}; give the number of values in one datum")
    return -nats / (num_dims * math.log(2))
