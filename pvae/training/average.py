"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pvae.support.refusals import number

__all__ = ["WeightAverage"]


class WeightAverage:
    """avg <- decay * avg + (1 - decay) * weights, with the decay capped at (1 + t) / (10 + t) early on.

    Raises: ValueError unless 0 < decay < 1.
    """

    def __init__(self, leaves: Sequence[Tensor], decay: float) -> None:
        self.decay = number("ema", decay, above=0, below=1, usual=0.999)
        self.leaves = [leaf.detach() for leaf in leaves]
        self.averages = [leaf.clone() for leaf in self.leaves]
        self._updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        self._updates += 1
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_(self.averages, self.leaves, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in the place of the weights inside."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def adopt(self) -> None:
        """Make the averages the weights for good."""
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        held = [leaf.clone() for leaf in self.leaves]
        torch._foreach_copy_(self.leaves, self.averages)
        torch._foreach_copy_(self.averages, held)
