"""The losses of a run: kept on the device while they come in, read together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Ledger"]

_MOST_PENDING, _MOST_BYTES = 50, 256 * 2**20


class Ledger:
    """Takes the numbers of each step, and reads many at once, so that a GPU need not wait for any.

    They are the loss, the norm of the gradients, and the loss to report.

    Attributes:
        losses: the loss of each step that was read, nats per datum.
        reports: what the history reports in its place, where the KL counts in full.
        sizes: how many data each of them is a mean over.
        broken: 1 from the first step on that was not finite, else 0; a float32 scalar on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.losses: list[float] = []
        self.reports: list[float] = []
        self.sizes: list[int] = []
        self.broken = torch.zeros((), device=device)
        self._pending: list[tuple[Tensor, tuple[Tensor, ...]]] = []

    def add(self, pulse: Tensor, batch: tuple[Tensor, ...]) -> bool:
        """Take a step's numbers, and the batch until they are read; says whether to read now."""
        pulse = pulse.clone()
        # inf - inf and nan - nan are nan, which no number equals: half as many kernels as `isfinite` takes.
        torch.maximum(self.broken, (pulse - pulse).ne(0).any(), out=self.broken)
        self._pending.append((pulse, batch))
        size = sum(part.numel() * part.element_size() for part in batch)
        return len(self._pending) >= _MOST_PENDING or size * len(self._pending) >= _MOST_BYTES

    def read(self) -> tuple[int, float, float, tuple[Tensor, ...]] | None:
        """Read what is pending; the first step that was not finite: its number, loss, norm and batch."""
        if not self._pending:
            return None
        pending, self._pending = self._pending, []
        pulses = torch.stack([pulse for pulse, _ in pending]).tolist()
        for (loss, norm, report), (_, batch) in zip(pulses, pending, strict=True):
            if not math.isfinite(loss + norm):
                return len(self.losses) + 1, loss, norm, batch
            self.note(loss, report, len(batch[0]))
        return None

    def note(self, loss: float, report: float, num_data: int) -> None:
        """Take numbers that were read already."""
        self.losses.append(loss)
        self.reports.append(report)
        self.sizes.append(num_data)

    def mean(self, first: int) -> float:
        """Mean of what is reported, per datum, from step `first` (counted from 0) on."""
        pairs = list(zip(self.reports[first:], self.sizes[first:], strict=True))
        return sum(report * size for report, size in pairs) / sum(size for _, size in pairs)
