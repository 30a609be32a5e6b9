"""Moments of repeated gradients, with errors that need no assumption about them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NUM_BLOCKS", "GradientStatistics", "Moments", "statistics"]

NUM_BLOCKS = 10


@dataclass(frozen=True)
class GradientStatistics:
    """The gradient of a group of parameters, from R repeats, with jackknife standard errors.

    Attributes:
        norm: Euclidean norm of the mean gradient.
        variance: trace of the covariance of one gradient.
        variance_error: its standard error.
        snr: |mean| / sd, averaged over the elements that vary; R repeats of pure noise give about sqrt(2 / (pi R)).
        snr_error: its standard error.
        bias: norm of (mean - reference); nan without a reference.
        bias_noise: the norm that draws alone would give it.
    """

    norm: float
    variance: float
    variance_error: float
    snr: float
    snr_error: float
    bias: float
    bias_noise: float


@dataclass(frozen=True)
class Moments:
    """Sums of gradients less the first one, and of their squares, by block of repeats, (blocks, P), float64."""

    first: Tensor
    sums: Tensor
    squares: Tensor
    counts: Tensor

    @property
    def mean(self) -> Tensor:
        """Of all repeats, (P,)."""
        return self.first + self.sums.sum(0) / self.counts.sum()

    @property
    def variance(self) -> Tensor:
        """Of one gradient, (P,)."""
        return _variance(self.sums.sum(0), self.squares.sum(0), self.counts.sum())


def _variance(sums: Tensor, squares: Tensor, count: Tensor) -> Tensor:
    return ((squares - sums.square() / count) / (count - 1)).clamp(min=0)


def statistics(
    moments: Moments, index: Tensor, bias: Tensor | None, squared_error_of_bias: Tensor | None
) -> GradientStatistics:
    """The statistics of the elements `index`; errors by leaving out one block of repeats at a time."""
    first, sums, squares = moments.first[index], moments.sums[:, index], moments.squares[:, index]
    counts = moments.counts

    def jackknife(statistic: Callable[[Tensor, Tensor], float]) -> tuple[float, float]:
        def of(s: Tensor, q: Tensor, n: Tensor) -> float:
            return statistic(first + s / n, _variance(s, q, n))

        whole = of(sums.sum(0), squares.sum(0), counts.sum())
        without = torch.tensor(
            [
                of(sums.sum(0) - s, squares.sum(0) - q, counts.sum() - n)
                for s, q, n in zip(sums, squares, counts, strict=True)
            ],
            dtype=torch.float64,
            device="cpu",
        )
        error = ((NUM_BLOCKS - 1) * without.var(correction=0)).sqrt().item()
        return whole, error

    def snr(mean: Tensor, variance: Tensor) -> float:
        varies = variance > 0
        return (mean.abs()[varies] / variance[varies].sqrt()).mean().item()

    variance, variance_error = jackknife(lambda _, variance: variance.sum().item())
    ratio, ratio_error = jackknife(snr)
    return GradientStatistics(
        norm=moments.mean[index].norm().item(),
        variance=variance,
        variance_error=variance_error,
        snr=ratio,
        snr_error=ratio_error,
        bias=math.nan if bias is None else bias[index].norm().item(),
        bias_noise=math.nan if squared_error_of_bias is None else squared_error_of_bias[index].sum().sqrt().item(),
    )
