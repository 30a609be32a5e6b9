"""A running summary of log weights: K may grow without limit, memory does not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pvae.estimators.psis import khat, tail_length

__all__ = ["Estimate", "WeightStream"]


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


class WeightStream:
    """Accumulates log weights chunk by chunk: log-mean-exp, first two moments, and the tail that k-hat needs.

    Args:
        num_samples: K, how many rows will come in all; it fixes the length of the tail buffer.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self._tail_rows = tail_length(num_samples) + 1
        self._largest = self._sum = self._sum_of_squares = torch.zeros(())
        self._tail: Tensor | None = None
        self._seen = 0

    def update(self, log_weights: Tensor) -> None:
        """Take a chunk of shape (k, B)."""
        chunk = log_weights.double()
        peak = chunk.amax(0)
        peak = torch.where(peak.isfinite(), peak, 0)
        if self._tail is None:
            self._largest, self._sum, self._sum_of_squares = peak, torch.zeros_like(peak), torch.zeros_like(peak)
        largest = torch.maximum(self._largest, peak)
        rescale = (self._largest - largest).exp()
        weights = (chunk - largest).exp()
        self._sum = self._sum * rescale + weights.sum(0)
        self._sum_of_squares = self._sum_of_squares * rescale.square() + weights.square().sum(0)
        self._largest = largest
        rows = log_weights if self._tail is None else torch.cat([self._tail, log_weights])
        self._tail = rows.topk(min(self._tail_rows, len(rows)), dim=0, sorted=False).values
        self._seen += len(log_weights)

    def estimate(self) -> Estimate:
        """What all rows say together."""
        if self._tail is None or self._seen != self.num_samples:
            raise RuntimeError(f"{self.num_samples} draws were announced, {self._seen} came")
        mean = self._sum / self._seen
        relative_variance = (self._sum_of_squares / self._seen / mean.square() - 1).clamp(min=0)
        error = (relative_variance / max(self._seen - 1, 1)).sqrt()
        return Estimate(
            values=(self._largest + mean.log()).cpu(),
            mc_standard_errors=(error if self._seen > 1 else torch.full_like(error, math.nan)).cpu(),
            ess=(self._sum.square() / self._sum_of_squares).cpu(),
            khat=khat(self._tail).cpu(),
        )
