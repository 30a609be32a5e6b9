"""The losses of a run: kept on the device while they come in, read together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Ledger"]

_MOST_PENDING, _MOST_BYTES = 50, 256 * 2**20


class Ledger:
    """Takes the (loss, gradient norm) of each step, and reads many at once, so that a GPU need not wait for any.

    Attributes:
        losses: the loss of each step that was read, nats per datum.
        sizes: how many data each of them is a mean over.
        broken: 1 from the first step on that was not finite, else 0; a float32 scalar on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.losses: list[float] = []
        self.sizes: list[int] = []
        self.broken = torch.zeros((), device=device)
        self._pending: list[tuple[Tensor, tuple[Tensor, ...]]] = []

    def add(self, pulse: Tensor, batch: tuple[Tensor, ...]) -> bool:
        """Take a step's numbers, and the batch until they are read; says whether to read now."""
        pulse = pulse.clone()
        torch.maximum(self.broken, (~pulse.isfinite()).any().to(self.broken.dtype), out=self.broken)
        self._pending.append((pulse, batch))
        size = sum(part.numel() * part.element_size() for part in batch)
        return len(self._pending) >= _MOST_PENDING or size * len(self._pending) >= _MOST_BYTES

    def read(self) -> tuple[int, float, float, tuple[Tensor, ...]] | None:
        """Read what is pending; the first step that was not finite: its number, loss, norm and batch."""
        if not self._pending:
            return None
        pending, self._pending = self._pending, []
        for (loss, norm), (_, batch) in zip(torch.stack([p for p, _ in pending]).tolist(), pending, strict=True):
            if not math.isfinite(loss + norm):
                return len(self.losses) + 1, loss, norm, batch
            self.note(loss, len(batch[0]))
        return None

    def note(self, loss: float, num_data: int) -> None:
        """Take a loss that was read already."""
        self.losses.append(loss)
        self.sizes.append(num_data)

    def mean(self, first: int) -> float:
        """Mean loss per datum from step `first` (counted from 0) on."""
        pairs = list(zip(self.losses[first:], self.sizes[first:], strict=True))
        return sum(loss * size for loss, size in pairs) / sum(size for _, size in pairs)
