"""How a diagnosis looks at a pair: data beside it, nets in evaluation mode, seeded, without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pvae.data.batches import Batches, Data
from pvae.data.supports import require_support
from pvae.pair.pair import Pair
from pvae.pair.parameters import Parameters
from pvae.pair.sites import Batch
from pvae.support.arguments import check_pair, check_seed
from pvae.support.refusals import whole

__all__ = ["looking", "rows_at_once", "take"]

# Values held at once by what is chunked: some tens of MB.
_VALUES_AT_ONCE = 2_000_000


@contextmanager
def looking(
    model: Any, guide: Any, data: Data, batch_size: int, device: torch.device | str | None, seed: int
) -> Iterator[tuple[Parameters, Batches]]:
    """The parameters of a pair and its data on one device, in a random state and mode of their own."""
    check_pair(model, guide)
    seed, batch_size = check_seed(seed), whole("batch_size", batch_size, usual=100)
    source = Batches(data, batch_size, split="test")
    with Pair(model, guide).evaluated(source, device, seed) as parameters:
        require_support(model, source, guide)
        source.reseed(seed)
        yield parameters, source


def take(source: Batches, num_data: int) -> list[Batch]:
    """Batches of at most `num_data` data, drawn without replacement (a `DataLoader` gives its first)."""
    batches: list[Batch] = []
    left = num_data
    for batch in source.epoch(shuffle=True):
        batches.append(tuple(part[:left] for part in batch))
        left -= len(batches[-1][0])
        if left == 0:
            break
    return batches


def rows_at_once(width: int) -> int:
    """How many rows of `width` values to hold at once."""
    return max(1, _VALUES_AT_ONCE // max(width, 1))
