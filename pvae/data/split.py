"""Fixed splits: the same rows in train, valid and test on every machine, always."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["fixed_split", "split_indices", "tenths"]


def tenths(num: int, where: str) -> tuple[int, int, int]:
    """The sizes of an 80/10/10 split of `num` rows. Raises ValueError below three rows."""
    if num < 3:
        raise ValueError(
            f"{where} must hold at least 3 rows to be split 80/10/10, got {num}: "
            "give more rows, or an .npz with the arrays train, valid and test"
        )
    tenth = max(1, num // 10)
    return num - 2 * tenth, tenth, tenth


def split_indices(sizes: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The rows, (n,) int64, of train, valid and test, from a permutation that depends on the sizes alone."""
    # RandomState, not default_rng: numpy promises that its stream never changes, so a published split stays.
    order = torch.from_numpy(np.random.RandomState(0).permutation(sum(sizes)).astype(np.int64))
    train, valid, test = torch.split(order, list(sizes))
    return train, valid, test


def fixed_split(values: Tensor, sizes: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of `values` (N, *shape) as train, valid and test of these sizes, which add up to N."""
    train, valid, test = split_indices(sizes)
    return values[train], values[valid], values[test]
