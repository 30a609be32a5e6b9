"""The Pareto k-hat of importance weights: how heavy their tail is, per datum."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["khat", "khat_threshold", "tail_length"]

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
    if tail.shape[0] <= _MIN_TAIL:
        return torch.full(tail.shape[1:], math.nan, dtype=torch.float64, device=tail.device)
    ordered = tail.double().sort(0).values
    scaled = ordered - ordered[-1]
    floor = math.log(torch.finfo(torch.float64).tiny)
    cutoff = scaled[0].clamp(min=floor)
    above = (scaled > cutoff).sum(0)
    result = torch.full_like(cutoff, math.inf)
    resolution = 8 * torch.finfo(tail.dtype).eps * ordered.abs().amax(0).clamp(min=1)
    result[ordered[-1] - ordered[0] <= resolution] = -math.inf
    for count in above.unique().tolist():
        columns = (above == count) & torch.isinf(result) & (result > 0)
        if count >= _MIN_TAIL and columns.any():
            exceedances = scaled[-count:, columns].exp() - cutoff[columns].exp()
            result[columns] = _pareto_shape(exceedances)
    return result


def _pareto_shape(exceedances: Tensor) -> Tensor:
    """Zhang and Stephens' (2009) quasi-Bayesian fit, columns sorted upwards: (n, B) -> (B,)."""
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
    return (n * shape_hat + _PRIOR_DRAWS * _PRIOR_SHAPE) / (n + _PRIOR_DRAWS)
