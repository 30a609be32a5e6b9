"""Log likelihoods per dimension in bits, as image models are reported."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pvae.support.refusals import shown, whole

__all__ = ["bits_per_dim"]

# Beyond it, a whole number is none of the floats.
_MOST_NATS = 2**53
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
    whole("num_dims", num_dims, usual="the number of values in one datum")
    # Of any size: log p(x) may be -inf.
    is_number = isinstance(nats, (int, float, np.number)) and not isinstance(nats, (bool, complex, np.complexfloating))
    is_array = isinstance(nats, np.ndarray) and nats.dtype.kind in "fiu"
    if isinstance(nats, Tensor):
        is_array = not nats.is_complex() and nats.dtype != torch.bool
    if not (is_number or is_array) or (isinstance(nats, int) and abs(nats) > _MOST_NATS):
        raise ValueError(f"nats must be a number or a tensor of them, got {shown(nats)}; give for example result.mean")
    return -nats / (num_dims * math.log(2))
