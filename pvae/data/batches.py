"""Batches from any source of data: tensors that live on the device, or a `DataLoader` that streams them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pvae.contexts import seeded
from pvae.data.dataset import DataSet

__all__ = ["Batches", "Data"]

Data = Tensor | tuple[Tensor, ...] | DataSet | DataLoader[Any]


class Batches:
    """One source of data as batches: tuples of tensors, dim 0 being the data.

    Args:
        data: a tensor (N, ...), a tuple of tensors of equal N, a `DataSet` (of which `split` is taken),
            or a `DataLoader`, which keeps its own batch size and order.
        batch_size: data per batch; the last batch of an epoch is smaller if N asks for it, until `join_last`.
        split: "train", "valid" or "test".

    Raises: ValueError for data that are empty, not finite, of unequal length or not tensors.
    """

    def __init__(self, data: Data, batch_size: int, split: str = "train") -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}; try 100")
        self._dataset = data if isinstance(data, DataSet) else None
        self._loader = data if isinstance(data, DataLoader) else None
        self._split = split
        self._parts: tuple[Tensor, ...] = ()
        self._size = batch_size
        self._joins_last = False
        self._device = torch.device("cpu")
        self.reseed(0)
        if self._dataset is not None:
            self._parts = _parts(self._dataset, split)
        elif self._loader is None:
            parts = data if isinstance(data, tuple) else (data,)
            self._parts = tuple(_checked(part) for part in parts)
            lengths = {len(part) for part in self._parts}
            if len(lengths) != 1:
                raise ValueError(f"the parts of a batch hold {sorted(lengths)} data; give all the same length")

    def __len__(self) -> int:
        """Batches in one epoch."""
        return len(self._loader) if self._loader is not None else len(self._starts())

    @property
    def remainder(self) -> int:
        """How many data the last batch holds, if that is fewer than the others, or 1; else 0, as for a `DataLoader`."""
        if self._loader is not None or self._joins_last:
            return 0
        return 1 if self._size == 1 else len(self._parts[0]) % self._size

    def join_last(self) -> None:
        """From now on make one batch of the remainder and the batch before it, so that no batch is small."""
        self._joins_last = True

    @property
    def runs_user_code(self) -> bool:
        """Whether a function of the user's may run between batches."""
        return self._loader is not None

    def example(self) -> tuple[Tensor, ...]:
        """The first batch, to look at the pair with; on the device, observed."""
        # A DataLoader draws its order from torch's global generator, which a look must not change.
        with seeded(0):
            return next(self.epoch())

    def to(self, device: torch.device | str) -> None:
        """Move the data (or, for a `DataLoader`, each batch as it comes) to `device`."""
        self._device = torch.device(device)
        self._parts = tuple(part.to(self._device) for part in self._parts)
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        """Start the order of the data and the binarisation draws afresh from `seed`."""
        self._order = torch.Generator().manual_seed(seed)
        self._draws = torch.Generator(self._device).manual_seed(seed + 1)

    def epoch(self, shuffle: bool = False) -> Iterator[tuple[Tensor, ...]]:
        """Every datum once, in a fresh order if `shuffle`; grey data drawn binary if the data set says so."""
        if self._loader is not None:
            yield from self._streamed()
            return
        num_data = len(self._parts[0])
        order = torch.randperm(num_data, generator=self._order, device="cpu").to(self._device) if shuffle else None
        starts = self._starts()
        for start, end in zip(starts, [*starts[1:], num_data], strict=True):
            if order is None:
                batch = tuple(part[start:end] for part in self._parts)
            else:
                rows = order[start:end]
                batch = tuple(part.index_select(0, rows) for part in self._parts)
            if self._dataset is not None:
                batch = (self._dataset.observe(batch[0], self._draws), *batch[1:])
            yield batch

    def describe(self) -> dict[str, Any]:
        """What these data are, for the record of a result."""
        if self._dataset is not None:
            return {**self._dataset.describe(), "split": self._split}
        return {"name": None, "binarize": None, "shape": [list(part.shape[1:]) for part in self._parts]}

    def _starts(self) -> list[int]:
        """Where each batch starts."""
        num_data = len(self._parts[0])
        starts = list(range(0, num_data, self._size))
        return starts[:-1] if self._joins_last and num_data % self._size and len(starts) > 1 else starts

    def _streamed(self) -> Iterator[tuple[Tensor, ...]]:
        assert self._loader is not None
        empty = True
        for batch in self._loader:
            parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
            yield tuple(_checked(part).to(self._device, non_blocking=True) for part in parts)
            empty = False
        if empty:
            raise ValueError("the DataLoader gave no batch; expected at least one datum")


def _parts(dataset: DataSet, split: str) -> tuple[Tensor, ...]:
    if split not in dataset.splits:
        raise ValueError(f"data set '{dataset.name}' has no {split} split, only {list(dataset.splits)}; give one")
    return dataset.parts(split)


def _checked(part: Any) -> Tensor:
    if isinstance(part, np.ndarray):
        if part.dtype.kind not in "biuf":
            raise ValueError(f"data of dtype {part.dtype}; expected numbers: build one array with a numeric dtype")
        part = torch.as_tensor(part)
    if not isinstance(part, Tensor):
        raise ValueError(
            f"data must be a tensor, a tuple of tensors, a DataSet or a DataLoader of tensors, "
            f"got {type(part).__name__}; convert it with torch.as_tensor"
        )
    if part.is_complex() or part.is_quantized:
        raise ValueError(f"data of dtype {part.dtype}; expected real numbers: convert them first")
    if part.dim() == 0 or len(part) == 0:
        raise ValueError(f"empty data: shape {tuple(part.shape)}; expected at least one datum along dim 0")
    if part.is_floating_point():
        bad = ~torch.isfinite(part)
        if bad.any():
            row = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"data hold {int(bad.sum())} values that are nan or inf, the first in datum {row}; drop or impute "
                "them, or give (x, observed) = pvae.data.missing(x) to a model that takes both"
            )
    return part
