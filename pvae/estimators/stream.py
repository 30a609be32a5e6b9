"""A running summary of log weights: K may grow without limit, memory does not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pvae.estimators.psis import khat, tail_length

__all__ = ["Estimate", "WeightStream"]

# Rows are summed up many at a time: the search for the tail, above all, costs more per call than per row.
_LEAST_ROWS = 1024


@dataclass(frozen=True)
class Estimate:
    """log p(x) of a batch, each (B,) in float64 on the CPU.

    `mc_standard_errors` is the delta-method error of `values` from K draws; `ess` is Kish's effective
    sample size; `khat` the Pareto shape of the weights' tail.
    """

    values: Tensor
    mc_standard_errors: Tensor
    ess: Tensor
    khat: Tensor
    upper: Tensor | None = None


class WeightStream:
    """Accumulates log weights chunk by chunk: log-mean-exp, first two moments, and the tail that k-hat needs.

    The sums are in float64, whatever the weights are; nothing waits for the device before `estimate`.

    Args:
        num_samples: K, how many rows will come in all; it fixes the length of the tail buffer, 3 sqrt(K).
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self._tail_rows = tail_length(num_samples) + 1
        self._most_rows = max(_LEAST_ROWS, 4 * self._tail_rows)
        self._largest = self._sum = self._sum_of_squares = self._num_bad = torch.zeros(())
        self._tail: Tensor | None = None
        self._pending: list[Tensor] = []
        self._seen = 0

    def update(self, log_weights: Tensor) -> None:
        """Take a chunk of shape (k, B)."""
        self._pending.append(log_weights)
        self._seen += len(log_weights)
        if sum(map(len, self._pending)) >= self._most_rows:
            self._sum_up()

    def _sum_up(self) -> None:
        rows = torch.cat(self._pending)
        self._pending = []
        chunk = rows.double()
        if self._tail is None:
            zeros = torch.zeros_like(chunk[0])
            self._largest, self._sum, self._sum_of_squares, self._num_bad = zeros - math.inf, zeros, zeros, zeros
        largest = torch.maximum(self._largest, chunk.amax(0))
        shift = torch.where(largest.isfinite(), largest, 0)
        rescale = (self._largest - shift).exp()
        weights = (chunk - shift).exp()
        self._sum = self._sum * rescale + weights.sum(0)
        self._sum_of_squares = self._sum_of_squares * rescale.square() + weights.square().sum(0)
        # -inf is an honest zero weight.
        self._num_bad = self._num_bad + (chunk.isnan() | chunk.isposinf()).sum(0)
        self._largest = largest
        rows = rows if self._tail is None else torch.cat([self._tail, rows])
        self._tail = rows.topk(min(self._tail_rows, len(rows)), dim=0, sorted=False).values

    def estimate(self) -> Estimate:
        """What all rows say together.

        Raises: ValueError for weights that are nan or infinite.
        """
        if self._seen != self.num_samples:
            raise RuntimeError(f"{self.num_samples} draws were announced, {self._seen} came")
        if self._pending:
            self._sum_up()
        assert self._tail is not None
        if num_bad := int(self._num_bad.sum()):
            raise ValueError(
                f"{num_bad} of {self._seen * len(self._num_bad)} log weights are not finite; look at the pair with "
                "pvae.check, and keep scales away from 0"
            )
        mean = self._sum / self._seen
        relative_variance = (self._sum_of_squares / self._seen / mean.square() - 1).clamp(min=0)
        error = (relative_variance / max(self._seen - 1, 1)).sqrt()
        return Estimate(
            values=(self._largest + mean.log()).cpu(),
            mc_standard_errors=(error if self._seen > 1 else torch.full_like(error, math.nan)).cpu(),
            ess=(self._sum.square() / self._sum_of_squares).cpu(),
            khat=khat(self._tail).cpu(),
        )
