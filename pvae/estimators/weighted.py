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

        sqrt(sum_k w_k^2 (f_k - mean)^2) / sum_k w_k: Owen (2013), Monte Carlo theory, methods and examples, section 9.2.
        """
        total, squares, first, of_squares, second = self._sums
        total = _like(total, first)
        mean = first / total
        variance = second - 2 * mean * of_squares + mean.square() * _like(squares, first)
        error = variance.clamp(min=0).sqrt() / total
        return self._centre + mean, error if self._num_samples > 1 else torch.full_like(error, math.nan)


class Picks:
    """M of the draws that come chunk by chunk, each picked by itself in proportion to the weights, with replacement.

    The largest of log w_k plus Gumbel noise is such a pick (Gumbel 1954), and a largest value needs no total: what is
    kept does not grow with K.

    Args:
        num: M.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self.values: dict[str, Tensor] = {}
        self._best = torch.zeros(())

    def update(self, log_weights: Tensor, draws: Mapping[str, Tensor]) -> None:
        """Take a chunk: log weights (k, B) and draws by name, each (k, B, ...); `values` are then (M, B, ...)."""
        noise = torch.empty(self.num, *log_weights.shape, device=log_weights.device, dtype=log_weights.dtype)
        best, index = (log_weights - noise.exponential_().log()).max(1)
        columns = torch.arange(log_weights.shape[1], device=log_weights.device)
        picked = {name: value[index, columns] for name, value in draws.items()}
        if not self.values:
            self.values, self._best = picked, best
            return
        better = best > self._best
        self.values = {name: torch.where(_like(better, new), new, self.values[name]) for name, new in picked.items()}
        self._best = torch.maximum(best, self._best)


def _like(x: Tensor, values: Tensor) -> Tensor:
    """Dims of size 1 at the end of x, up to those of `values`."""
    return x.reshape(*x.shape, *(1,) * (values.dim() - x.dim()))


def _dot(weights: Tensor, values: Tensor) -> Tensor:
    """sum_k w_k f_k: (k, B), (k, B, ...) -> (B, ...)."""
    return torch.einsum("kb,kb...->b...", weights, values)
