"""Pareto smoothing of importance weights, and its k-hat: how heavy their tail is, per datum."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["khat", "khat_threshold", "smooth", "smooth_tail", "tail_length"]

_PRIOR_DRAWS, _PRIOR_SHAPE = 10, 0.5
_MIN_TAIL = 5


def tail_length(num_samples: int) -> int:
    """M = ceil(min(K / 5, 3 sqrt K)): how many of the largest weights the tail fit uses."""
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def khat_threshold(num_samples: int) -> float:
    """min(1 - 1 / log10 K, 0.7): above it the estimate and its error are not to be trusted at this K.

    Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling.
    """
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else -math.inf


def khat(tail: Tensor) -> Tensor:
    """Shape of the generalised Pareto distribution fitted to the largest weights, (B,).

    Args:
        tail: the M + 1 largest log weights per datum, (M + 1, B), in any order; the least is the cutoff.

    Returns: (B,) in float64. Equal weights give -inf (there is no tail: the guide is the posterior), fewer
    than 5 weights above the cutoff give inf or, where K is too small for a tail at all, nan.
    """
    return smooth_tail(tail)[1]


def smooth(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Pareto smoothed log weights (K, B), unnormalised, and their k-hat (B,), both in float64.

    Given log weights (K, B), the M largest of each datum become the quantiles (i - 1/2) / M of the generalised
    Pareto distribution fitted to them, cut off at the largest raw weight; the others stay as they are. This trades
    some bias for variance, so a mean of smoothed weights bounds nothing.

    Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling.
    """
    rows = min(tail_length(len(log_weights)) + 1, len(log_weights))
    tail, places = log_weights.topk(rows, dim=0)
    smoothed, shape = smooth_tail(tail)
    return log_weights.double().scatter(0, places, smoothed), shape


def smooth_tail(tail: Tensor) -> tuple[Tensor, Tensor]:
    """The largest log weights (M + 1, B), in any order, smoothed in place of each, and k-hat (B,), in float64.

    What has no tail to speak of (k-hat is not finite, see `khat`) stays as it is.
    """
    ordered, places = tail.double().sort(0)
    if len(tail) <= _MIN_TAIL:
        return tail.double(), torch.full_like(ordered[0], math.nan)
    scaled = ordered - ordered[-1]
    floor = math.log(torch.finfo(torch.float64).tiny)
    cutoff = scaled[0].clamp(min=floor)
    above = (scaled > cutoff).sum(0)
    shape = torch.full_like(cutoff, math.inf)
    resolution = 8 * torch.finfo(tail.dtype).eps * ordered.abs().amax(0).clamp(min=1)
    shape[ordered[-1] - ordered[0] <= resolution] = -math.inf
    for count in above.unique().tolist():
        columns = (above == count) & torch.isinf(shape) & (shape > 0)
        if count >= _MIN_TAIL and columns.any():
            least = cutoff[columns].exp()
            shape[columns], scale = _pareto_fit(scaled[-count:, columns].exp() - least)
            quantiles = (least + _pareto_quantiles(count, shape[columns], scale)).log().clamp(max=0)
            quantiles = quantiles + ordered[-1, columns]
            kept = shape[columns].isfinite()
            ordered[-count:, columns] = torch.where(kept, quantiles, ordered[-count:, columns])
    return ordered.scatter(0, places, ordered.clone()), shape


def _pareto_fit(exceedances: Tensor) -> tuple[Tensor, Tensor]:
    """Zhang and Stephens' (2009) quasi-Bayesian fit, columns sorted upwards: (n, B) -> shape and scale (B,)."""
    n = exceedances.shape[0]
    grid_size = 30 + int(math.sqrt(n))
    grid = torch.arange(1, grid_size + 1, dtype=torch.float64, device=exceedances.device)
    quartile = exceedances[int(n / 4 + 0.5) - 1]
    theta = 1 / exceedances[-1] + (1 - (grid_size / (grid - 0.5)).sqrt())[:, None] / (3 * quartile)
    shape = torch.stack([torch.log1p(-row * exceedances).mean(0) for row in theta])
    profile = n * ((-theta / shape).log() - shape - 1)
    posterior = profile.softmax(0)
    posterior = torch.where(posterior >= 10 * torch.finfo(torch.float64).eps, posterior, 0)
    theta_hat = (theta * posterior).sum(0) / posterior.sum(0)
    shape_hat = torch.log1p(-theta_hat * exceedances).mean(0)
    return (n * shape_hat + _PRIOR_DRAWS * _PRIOR_SHAPE) / (n + _PRIOR_DRAWS), -shape_hat / theta_hat


def _pareto_quantiles(n: int, shape: Tensor, scale: Tensor) -> Tensor:
    """Quantiles (i - 1/2) / n, i = 1 ... n, of generalised Pareto distributions that start at 0: (n, B)."""
    levels = (torch.arange(n, dtype=torch.float64, device=shape.device) + 0.5) / n
    exponential = -torch.log1p(-levels)[:, None]
    flat = shape.abs() < torch.finfo(torch.float64).eps
    safe = torch.where(flat, 1, shape)
    return scale * torch.where(flat, exponential, torch.expm1(safe * exponential) / safe)
