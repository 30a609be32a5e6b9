"""Intensities in [0, 1] become binary data: drawn afresh, drawn once, or cut at a half."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pvae.data.dataset import DataSet
from pvae.data.kinds import Binarization, check_binarization
from pvae.support.refusals import instance, whole

__all__ = ["binarized"]


def binarized(dataset: DataSet, how: Binarization | None, seed: int = 0) -> DataSet:
    """The data set, binarized: "dynamic" at each `observe`, "static" once by `seed`, "threshold" as x > 0.5.

    None leaves the data as they are, and so does "threshold" on data that are binary already.
    Raises ValueError for an unknown `how`, for a draw on binary data, and for kinds without intensities.
    """
    instance("dataset", dataset, DataSet, what="a pvae.data.DataSet", usual="pvae.data.load('digits')")
    check_binarization(how)
    if whole("seed", seed, 0, usual=0) >= 2**32:
        raise ValueError(f"seed must be below 2**32, got {seed}; try 0")
    if how is None or (how == "threshold" and dataset.kind == "binary"):
        return dataset
    if dataset.kind == "binary":
        raise ValueError(
            f"data set {dataset.name!r} is already binary, expected intensities to draw from for "
            f"binarize={how!r}, got 0s and 1s: leave binarize out"
        )
    if dataset.kind != "unit":
        raise ValueError(
            f"binarize={how!r} needs intensities in [0, 1] (kind 'unit'), got kind {dataset.kind!r} in "
            f"data set {dataset.name!r}: rescale the data to [0, 1] with kind='unit', or leave binarize out"
        )
    if how == "dynamic":
        return replace(dataset, binarize="dynamic")
    if how == "threshold":
        return _as_binary(dataset, how, lambda x: (x > 0.5).to(x.dtype))
    # numpy promises that RandomState's stream never changes; torch promises nothing across releases.
    random = np.random.RandomState(seed)
    return _as_binary(dataset, how, lambda x: _draw(x, random))


def _as_binary(dataset: DataSet, how: Binarization, change: Callable[[Tensor], Tensor]) -> DataSet:
    train = change(dataset.train)
    valid, test = (x if x is None else change(x) for x in (dataset.valid, dataset.test))
    return replace(dataset, train=train, valid=valid, test=test, kind="binary", binarize=how)


def _draw(intensities: Tensor, random: np.random.RandomState) -> Tensor:
    # In blocks, because a float64 uniform for every pixel of MNIST at once takes 350 MB.
    blocks = [
        torch.from_numpy(random.random_sample(tuple(block.shape))) < block.cpu() for block in intensities.split(4096)
    ]
    return torch.cat(blocks).to(intensities)
