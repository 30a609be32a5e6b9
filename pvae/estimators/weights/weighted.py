"""What weighted draws say, chunk by chunk: means with their errors, and draws picked in proportion to the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["Picks", "WeightedMean"]


class WeightedMean:
    """sum_k w_k f_k / sum_k w_k of values that come chunk by chunk, and its standard error, in float64."""

    def __init__(self) -> None:
        self._largest: Tensor | None = None
        self._num_samples = 0

    def update(self, log_weights: Tensor, values: Tensor) -> None:
        """Take a chunk: log weights (k, B) and values (k, B, ...)."""
        log_weights, values = log_weights.double(), values.double()
        self._num_samples += len(values)
        if self._largest is None:
            self._largest = torch.full_like(log_weights[0], -math.inf)
            # First and second moments lose nothing to rounding when they are taken about a value of their size.
            self._centre = values.mean(0)
            self._sums = [torch.zeros_like(log_weights[0])] * 2 + [torch.zeros_like(values[0])] * 3
        largest = torch.maximum(self._largest, log_weights.amax(0))
        shift = torch.where(largest.isfinite(), largest, 0)
        weights, rescale = (log_weights - shift).exp(), (self._largest - shift).exp()
        squares, values = weights.square(), values - self._centre
        new = [
            weights.sum(0),
            squares.sum(0),
            _dot(weights, values),
            _dot(squares, values),
            _dot(squares, values.square()),
        ]
        powers = (rescale, rescale.square(), rescale, rescale.square(), rescale.square())
        self._sums = [_like(power, old) * old + add for power, old, add in zip(powers, self._sums, new, strict=True)]
        self._largest = largest

    def estimate(self) -> tuple[Tensor, Tensor]:
        """The mean (B, ...), and its delta-method standard error, nan for a single draw.

        sqrt(sum_k w_k^2 (f_k - mean)^2) / sum_k w_k: Owen (2013), Monte Carlo theory, methods and examples, chapter 9.
        """
        total, squares, first, of_squares, second = self._sums
        total = _like(total, first)
        mean = first / total
        variance = second - 2 * mean * of_squares + mean.square() * _like(squares, first)
        error = variance.clamp(min=0).sqrt() / total
        return self._centre + mean, error if self._num_samples > 1 else torch.full_like(error, math.nan)


class Picks:
    """M of the draws that come chunk by chunk, each picked by itself in proportion to the weights, with replacement.

    What is kept does not grow with K: a pick gives way to one of a new chunk with the chunk's share of all weights so
    far (Chao 1982, A general purpose unequal probability sampling plan).

    Args:
        num: M.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self.values: dict[str, Tensor] = {}
        self._log_total = torch.zeros((), device="cpu")

    def update(self, log_weights: Tensor, draws: Mapping[str, Tensor]) -> None:
        """Take a chunk: log weights (k, B) and draws by name, each (k, B, ...); `values` are then (M, B, ...)."""
        log_weights = log_weights.double().T.contiguous()
        largest = log_weights.amax(-1, keepdim=True)
        cumulative = (log_weights - torch.where(largest.isfinite(), largest, 0)).exp().cumsum(-1)
        uniform = torch.rand(len(log_weights), self.num, dtype=torch.float64, device=log_weights.device)
        index = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).T
        rows = index.clamp(max=log_weights.shape[1] - 1), torch.arange(len(log_weights), device=index.device)
        picked, log_total = {name: value[rows] for name, value in draws.items()}, log_weights.logsumexp(-1)
        if not self.values:
            self.values, self._log_total = picked, log_total
            return
        self._log_total = torch.logaddexp(self._log_total, log_total)
        new = torch.rand(index.shape, device=index.device).log() < log_total - self._log_total
        self.values = {name: torch.where(_like(new, value), value, self.values[name]) for name, value in picked.items()}


def _like(x: Tensor, values: Tensor) -> Tensor:
    """Dims of size 1 at the end of x, up to those of `values`."""
    return x.reshape(*x.shape, *(1,) * (values.dim() - x.dim()))


def _dot(weights: Tensor, values: Tensor) -> Tensor:
    """sum_k w_k f_k: (k, B), (k, B, ...) -> (B, ...)."""
    return torch.einsum("kb,kb...->b...", weights, values)
