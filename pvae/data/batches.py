"""Batches from any source of data: tensors that live on the device, or a `DataLoader` that streams them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from pvae.data.dataset import DataSet
from pvae.pair.contexts import seeded
from pvae.support.batch import Batch, Given, as_batch, require_finite
from pvae.support.refusals import whole

__all__ = ["Batches", "Data"]

Data = Given | DataSet | DataLoader[Any]

# Entries to look at in one go: few enough to stay in a processor's cache.
_AT_ONCE = 2**18


class Batches:
    """One source of data as batches: tuples of tensors, dim 0 being the data.

    Args:
        data: a tensor or array of numpy (N, ...), a tuple of them of equal N, a `DataSet` (of which `split` is taken),
            or a `DataLoader`, which keeps its own batch size and order.
        batch_size: data per batch, None for all; the last batch of an epoch is smaller if N asks for it, until
            `join_last`.
        split: "train", "valid" or "test".

    Raises: ValueError for data that are empty, not finite, of unequal length or not numbers, and for a stream that
    gives its data once only.
    """

    def __init__(self, data: Data, batch_size: int | None, split: str = "train") -> None:
        self._size = sys.maxsize if batch_size is None else whole("batch_size", batch_size, usual=100)
        self._dataset = data if isinstance(data, DataSet) else None
        self._loader = data if isinstance(data, DataLoader) else None
        self._split = split
        self._parts: Batch = ()
        self._first: Batch | None = None
        self._joins_last = False
        self._device = torch.device("cpu")
        self.reseed(0)
        if self._dataset is not None:
            self._parts = _parts(self._dataset, split)
        elif self._loader is None:
            self._parts = tuple(part.detach() for part in as_batch(data))  # type: ignore[arg-type]
        else:
            _require_new_passes(self._loader)

    @property
    def num_batches(self) -> int | None:
        """Batches in one epoch; None of a stream, which tells by its end alone."""
        if self._loader is None:
            return len(self._starts())
        if isinstance(self._loader.dataset, IterableDataset):
            return None
        try:
            return len(self._loader)
        except TypeError:  # a sampler of the user's may have no length
            return None

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

    def example(self) -> Batch:
        """The first batch, to look at the pair with; on the device, observed."""
        if self._first is None:
            # A DataLoader draws its order from torch's global generator, which a look must not change.
            with seeded(0):
                first = next(self.epoch())
            if self._loader is None:
                return first
            # Every pass of a stream may read files and start processes.
            self._first = first
        return tuple(part.to(self._device) for part in self._first)

    def in_blocks(self) -> Iterator[tuple[int, Batch]]:
        """All data as a model sees them, in blocks to look through, each with the number of its first datum.

        Of a `DataLoader` it is the first batch alone. Data that are drawn binary are rounded here, which is cheaper.
        """
        if self._loader is not None:
            yield 0, self.example()
            return
        rows = max(self._size, _AT_ONCE // max(part[0].numel() for part in self._parts))
        for start in range(0, len(self._parts[0]), rows):
            x, *beside = (part[start : start + rows] for part in self._parts)
            is_drawn = self._dataset is not None and self._dataset.binarize == "dynamic"
            yield start, (x.round() if is_drawn else x, *beside)

    def to(self, device: torch.device | str) -> None:
        """Move the data (or, for a `DataLoader`, each batch as it comes) to `device`."""
        self._device = torch.device(device)
        self._parts = tuple(part.to(self._device) for part in self._parts)
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        """Start the order of the data and the binarisation draws afresh from `seed`."""
        self._order = torch.Generator().manual_seed(seed)
        self._draws = torch.Generator(self._device).manual_seed(seed + 1)

    def epoch(self, shuffle: bool = False) -> Iterator[Batch]:
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

    def _streamed(self) -> Iterator[Batch]:
        assert self._loader is not None
        count = 0
        for given in self._loader:
            batch = as_batch(tuple(given) if isinstance(given, list) else given, finite=False)
            require_finite(batch, count)
            count += len(batch[0])
            yield tuple(part.detach().to(self._device, non_blocking=True) for part in batch)
        if not count:
            raise ValueError("the DataLoader gave no batch; expected at least one datum in every pass over it")


def _require_new_passes(loader: DataLoader[Any]) -> None:
    """Raise ValueError for a stream that goes on where the last look at it stopped."""
    if isinstance(loader.dataset, IterableDataset) and iter(loader.dataset) is iter(loader.dataset):
        raise ValueError(
            f"the stream {type(loader.dataset).__name__} must give its data anew at every pass, got one that goes on "
            "where it stopped; let its __iter__ begin anew, as a generator function does"
        )


def _parts(dataset: DataSet, split: str) -> Batch:
    if split not in dataset.splits:
        raise ValueError(f"data set '{dataset.name}' has no {split} split, only {list(dataset.splits)}; give one")
    return dataset.parts(split)
