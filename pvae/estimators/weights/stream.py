"""A running summary of log weights: K may grow without limit, memory does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pvae.estimators.weights.psis import khat, smooth_tail, tail_length

__all__ = ["Estimate", "WeightStream", "estimate_from", "joined"]

# Rows are summed up many at a time: the search for the tail, above all, costs more per call than per row.
_LEAST_ROWS = 1024
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Estimate:
    """log p(x) of a batch, each (B,) in float64 on the CPU.

    `mc_standard_errors` is the delta-method error of `values` from K draws; `ess` is Kish's effective
    sample size; `khat` the Pareto shape of the weights' tail. `upper`, where there is one, bounds log p(x) from above.
    Where every weight is zero the value is -inf, its error inf and the ESS 0: the draws tell nothing.
    """

    values: Tensor
    mc_standard_errors: Tensor
    ess: Tensor
    khat: Tensor
    upper: Tensor | None = None

    def of_equal_weights(self, num_samples: int) -> Estimate:
        """The estimate where no latent was drawn: its K weights are equal but for rounding, so it has no error."""
        # A net that draws noise of its own, outside Pyro, shows in the weights.
        is_equal = self.ess > num_samples * (1 - _ROUNDING)
        return replace(
            self,
            mc_standard_errors=torch.where(is_equal, 0.0, self.mc_standard_errors),
            ess=torch.where(is_equal, float(num_samples), self.ess),
            khat=torch.where(is_equal, -math.inf, self.khat),
        )


def joined(parts: Sequence[Estimate]) -> Estimate:
    """The estimates of several batches as one, (N,)."""
    uppers = [part.upper for part in parts if part.upper is not None]
    return Estimate(
        values=torch.cat([part.values for part in parts]),
        mc_standard_errors=torch.cat([part.mc_standard_errors for part in parts]),
        ess=torch.cat([part.ess for part in parts]),
        khat=torch.cat([part.khat for part in parts]),
        upper=torch.cat(uppers) if uppers else None,
    )


class WeightStream:
    """Accumulates log weights chunk by chunk: log-mean-exp, first two moments, and the tail that k-hat needs.

    The sums are in float64, whatever the weights are; nothing waits for the device before `estimate`.

    Args:
        num_samples: K, how many rows will come in all.
        tail_of: the K of all strata together, which fixes the length of the tail buffer, 3 sqrt(K); by default
            `num_samples`, as of draws from one proposal.
        smooth: whether the estimate is that of the Pareto smoothed weights.
    """

    def __init__(self, num_samples: int, *, tail_of: int | None = None, smooth: bool = False) -> None:
        self.num_samples, self.smooth = num_samples, smooth
        self._tail_rows = tail_length(num_samples if tail_of is None else tail_of) + 1
        self._most_rows = max(_LEAST_ROWS, 4 * self._tail_rows)
        self._largest = self._sum = self._sum_of_squares = self._num_bad = torch.zeros((), device="cpu")
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

    def sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A log scale c, the sums of w / e^c and of its square, each (B,), and the largest log weights.

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
        return self._largest, self._sum, self._sum_of_squares, self._tail

    def estimate(self) -> Estimate:
        """What all rows say together.

        Raises: ValueError for weights that are nan or infinite.
        """
        if not self.smooth:
            return estimate_from([self])
        largest, total, squares, tail = self.sums()
        smoothed, shape = smooth_tail(tail)
        # Only the tail changes, and no smoothed weight exceeds the largest raw one, so the scale still fits.
        shift = torch.where(largest.isfinite(), largest, 0)
        raw, new = (tail.double() - shift).exp(), (smoothed - shift).exp()
        total = total + (new - raw).sum(0)
        squares = squares + (new.square() - raw.square()).sum(0)
        return _estimate([self.num_samples], largest, [total], [squares], shape)


def estimate_from(strata: Sequence[WeightStream]) -> Estimate:
    """What several streams say together: the log of the mean of all their weights, as one sum.

    The error is that of stratified draws, of which each stream holds a fixed number: only the scatter within a
    stream counts. ESS and k-hat are those of all weights in one heap.

    Raises: ValueError for weights that are nan or infinite.
    """
    parts = [stream.sums() for stream in strata]
    largest = torch.stack([part[0] for part in parts]).amax(0)
    scales = [torch.where(largest.isfinite(), part[0] - largest, 0).exp() for part in parts]
    tail = torch.cat([part[3] for part in parts])
    if len(parts) > 1:
        tail = tail.topk(min(max(len(part[3]) for part in parts), len(tail)), dim=0, sorted=False).values
    return _estimate(
        [stream.num_samples for stream in strata],
        largest,
        [part[1] * scale for part, scale in zip(parts, scales, strict=True)],
        [part[2] * scale.square() for part, scale in zip(parts, scales, strict=True)],
        khat(tail),
    )


def _estimate(
    counts: Sequence[int], largest: Tensor, sums: Sequence[Tensor], squares: Sequence[Tensor], shape: Tensor
) -> Estimate:
    total, total_squares, num_samples = sum(sums[1:], sums[0]), sum(squares[1:], squares[0]), sum(counts)
    variance = torch.zeros_like(total)
    for count, stratum_sum, stratum_squares in zip(counts, sums, squares, strict=True):
        spread = stratum_squares / count - (stratum_sum / count).square()
        each = spread.clamp(min=0) * count / (count - 1) if count > 1 else torch.full_like(spread, math.nan)
        variance = variance + count * each
    nothing = total == 0
    return Estimate(
        values=(largest + (total / num_samples).log()).cpu(),
        mc_standard_errors=(variance.sqrt() / total).masked_fill(nothing, math.inf).cpu(),
        ess=(total.square() / total_squares).masked_fill(nothing, 0.0).cpu(),
        khat=shape.cpu(),
    )
