"""What each datum carries beside itself: labels to condition on, masks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pvae.data.kinds import as_dense, check_finite
from pvae.support.batch import Given

__all__ = ["Parts", "as_beside", "one_hot_labels"]

Parts = tuple[Tensor, ...]


def as_beside(beside: Mapping[str, Given], splits: Mapping[str, Tensor], where: str) -> dict[str, tuple[Tensor, ...]]:
    """The parts beside the data of every split, as tuples.

    Raises ValueError unless every split, and no other, has as many parts as train, each with a row per datum and of
    the shape and dtype of train's, all finite.
    """
    if beside.keys() != splits.keys():
        raise ValueError(
            f"{where}: what stands beside the data must be given for {', '.join(splits)}, got it for "
            f"{', '.join(beside) or 'none'}: give those splits, all of them"
        )
    stored = {
        split: tuple(as_dense(part, f"{where}: a part beside {split}") for part in _as_tuple(parts))
        for split, parts in beside.items()
    }
    for split, parts in stored.items():
        if len(parts) != len(stored["train"]) or not parts:
            raise ValueError(
                f"{where}: {split} must have at least one part beside it, as many as train, got {len(parts)} and "
                f"{len(stored['train'])}: give every split the same parts"
            )
        for part, like in zip(parts, stored["train"], strict=True):
            _check_part(part, like, len(splits[split]), f"{where}: a part beside {split}")
    return stored


def one_hot_labels(labels: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Parts]:
    """Labels 0 ... C - 1, (N,) by split, as one-hot rows (N, C), C being one more than the largest of all."""
    num_classes = 1 + max(int(values.max()) for values in labels.values())
    return {split: (one_hot(values, num_classes).to(dtype),) for split, values in labels.items()}


def _as_tuple(parts: Given) -> tuple[Any, ...]:
    return parts if isinstance(parts, tuple) else (parts,)


def _check_part(part: Tensor, like: Tensor, num_data: int, where: str) -> None:
    if len(part) != num_data:
        raise ValueError(f"{where} must have a row for each of {num_data} data, got {len(part)}: give all of them")
    if part.shape[1:] != like.shape[1:] or part.dtype != like.dtype:
        raise ValueError(
            f"{where} must match train's {tuple(like.shape[1:])} of {like.dtype}, got {tuple(part.shape[1:])} of "
            f"{part.dtype}: reshape or convert it"
        )
    check_finite(part, where)
