"""Round after round of draws, for those data whose estimate is not precise enough yet."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pvae.estimators.weights.stream import Estimate, joined
from pvae.pair.sites import Batch
from pvae.support.refusals import number, whole

__all__ = ["Rounds"]

# From an estimator, batches, their number and what to call them, to each batch with its estimate.
Draw = Callable[[Any, Iterable[Batch], int, str], Iterator[tuple[Batch, Estimate]]]


class Rounds:
    """Estimates of all data, (N,), which grow by rounds of K, 2 K, 4 K, ... draws where their error is too large.

    With rounds of n_r draws, of mean weight m_r and variance v_r of one weight, n draws in all, the pooled mean weight
    is m = sum n_r m_r / n and the pooled variance sum n_r (v_r + m_r^2) / n - m^2: those of all draws in one heap.

    Args:
        estimator: one whose value is the log of a mean of weights.
        target_se: in nats, for each datum.
        max_samples: draws per datum, at most.

    Attributes: `samples` draws that each datum got, (N,); `unfinished` indices of data above the target.

    Raises: ValueError for an estimator whose draws cannot be pooled, and for a target that cannot be met.
    """

    def __init__(self, estimator: Any, target_se: float, max_samples: int) -> None:
        self.target_se = number("target_se", target_se, above=0, usual="0.02 nats")
        if not getattr(estimator, "averages_weights", False):
            raise ValueError(
                f"target_se pools draws of several rounds, but the value of this {type(estimator).__name__} is not the "
                "log of a plain mean of weights; use ImportanceSampling, or leave target_se out"
            )
        # At least the draws of the first round.
        least = estimator.num_samples
        self.max_samples = whole(
            "max_samples", max_samples, least, usual="more, or give the estimator fewer num_samples"
        )
        self.estimator = estimator

    def run(self, first: Iterable[tuple[Batch, Estimate]], draw: Draw, batch_size: int) -> Estimate:
        """From the first round, one batch with its estimate after another, to what all rounds say, (N,).

        Rows that need more draws are kept as they were observed: binary data must not be drawn anew.
        """
        total: int = self.estimator.num_samples
        largest = count = total
        pooled, batch = self._open(first)
        moments, errors, shape = _moments(pooled, total), pooled.mc_standard_errors, pooled.khat
        self.samples = torch.full(shape.shape, total, device="cpu")
        rows = self._wide(errors)
        while len(rows) and (count := self._next(count, total)):
            fresh = self._more(draw, batch, batch_size, count)
            known, new = moments[:, rows] + math.log(total), _moments(fresh, count) + math.log(count)
            total += count
            moments[:, rows], self.samples[rows] = torch.logaddexp(known, new) - math.log(total), total
            if count >= largest:
                largest, shape[rows] = count, fresh.khat
            errors[rows] = _errors(moments[:, rows], total)
            still = self._wide(errors[rows])
            rows, batch = rows[still], tuple(part[still.to(part.device)] for part in batch)
        self.unfinished = rows
        return Estimate(
            values=moments[0],
            mc_standard_errors=errors,
            ess=(self.samples * (2 * moments[0] - moments[2]).exp()).masked_fill(moments[0] == -math.inf, 0.0),
            khat=shape,
        )

    def _open(self, first: Iterable[tuple[Batch, Estimate]]) -> tuple[Estimate, Batch]:
        """The first round's estimates, and the data that need more."""
        estimates, kept = [], []
        for batch, estimate in first:
            rows = self._wide(estimate.mc_standard_errors).to(batch[0].device)
            estimates.append(estimate)
            kept.append(tuple(part[rows] for part in batch))
        if len({tuple(part.shape[1:] for part in batch) for batch in kept}) > 1:
            raise ValueError(
                "target_se joins data of several batches, but they differ in shape; give data of one shape"
            )
        return joined(estimates), tuple(torch.cat(parts) for parts in zip(*kept, strict=True))

    def _more(self, draw: Draw, batch: Batch, batch_size: int, count: int) -> Estimate:
        estimator = copy.copy(self.estimator)
        estimator.num_samples = count
        batches = list(zip(*(part.split(batch_size) for part in batch), strict=True))
        what = f"log p(x), {count} more draws for {len(batch[0])} data"
        return joined([estimate for _, estimate in draw(estimator, batches, len(batches), what)])

    def _wide(self, errors: Tensor) -> Tensor:
        """Where the errors are above the target, or unknown."""
        return (~(errors <= self.target_se)).nonzero()[:, 0]

    def _next(self, count: int, total: int) -> int:
        """Draws of the next round: twice those of the last one, or all that are left; 0 to stop."""
        left = self.max_samples - total
        count = left if left < 2 * count + self.estimator.num_samples else 2 * count
        return count if count > 1 else 0  # a single draw has no error


def _moments(estimate: Estimate, count: int) -> Tensor:
    """Logs of the mean weight, of the mean square that the error tells, and of the one that the ESS tells: (3, N)."""
    by_error = 1 + estimate.mc_standard_errors.square() * (count - 1)
    by_ess = count / estimate.ess
    relative = torch.stack([torch.ones_like(by_ess), by_error, by_ess]).nan_to_num(nan=1.0)
    moments = torch.tensor([[1.0], [2.0], [2.0]], dtype=torch.float64, device="cpu") * estimate.values + relative.log()
    return moments.masked_fill(estimate.values == -math.inf, -math.inf)


def _errors(moments: Tensor, count: int) -> Tensor:
    relative_variance = torch.expm1(moments[1] - 2 * moments[0]).clamp(min=0)
    return (relative_variance / (count - 1)).sqrt().masked_fill(moments[0] == -math.inf, math.inf)
