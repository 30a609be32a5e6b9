"""Estimators that draw data from the model: both bounds of bidirectional Monte Carlo, and kernels on samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from pvae.estimators import BidirectionalMonteCarlo, ParzenWindow
from pvae.estimators.density.annealing import Path
from pvae.estimators.density.unconstrained import UnconstrainedJoint
from pvae.estimators.log_marginal import log_marginal
from pvae.pair.sites import Batch
from pvae.selfcheck.rows import Check, Measured, mean_of, not_above, of_data
from pvae.selfcheck.setting import Setting
from pvae.truth import Truth, linear_gaussian

__all__ = ["checks"]

_SIMULATED, _CHAINS, _TEMPERATURES = 300, 4, 80
_BANDWIDTH = 0.7


def checks(setting: Setting) -> Iterator[Check]:
    """Bidirectional Monte Carlo on each truth of continuous latents, and kernels on one that stays Gaussian."""
    for build in setting.builders:
        known = build()
        if known.latent == "continuous":
            name = f"BidirectionalMonteCarlo({_CHAINS})"
            yield Check("estimators", name, known.name, partial(_both_bounds, setting, build))
    known = linear_gaussian()
    yield Check("estimators", f"ParzenWindow({setting.num_samples})", known.name, partial(_kernels, setting, known))


class _Recording(BidirectionalMonteCarlo):
    """Keeps the data that it draws."""

    batch: Batch

    def path(self, joint: UnconstrainedJoint, batch: Batch, batches_left: int, passes: int = 1) -> Path:
        """As ever."""
        self.batch = batch
        return super().path(joint, batch, batches_left, passes)


def _both_bounds(setting: Setting, build: Callable[..., Truth]) -> list[Measured]:
    known = build()
    like = known.x.repeat(-(-_SIMULATED // len(known.x)), *(1,) * (known.x.dim() - 1))
    estimator = _Recording(_CHAINS, num_temperatures=_TEMPERATURES, num_leapfrog=3, step_mode="traced")
    found = log_marginal(
        known.model, None, like, estimator, batch_size=len(like), device=setting.device, seed=setting.seed
    )
    assert found.upper_values is not None
    log_prob = build(x=estimator.batch[0].cpu()).log_prob
    below, above = found.values - log_prob, found.upper_values - log_prob
    bracket = not_above([below, torch.zeros_like(below), above], ["lower - log p", "0", "upper - log p"])
    if known.exact_guide is None:  # weights back from the posterior of the ring have no variance
        return [bracket]
    # E[exp(lower)] = p(x) and E[exp(-upper)] = 1 / p(x), so the mean of either ratio is 1.
    names = ["p_lower / p(x)", "p(x) / p_upper"]
    return [bracket, mean_of(torch.stack([below.exp(), (-above).exp()], 1), torch.ones(2), names)]


def _kernels(setting: Setting, known: Truth) -> list[Measured]:
    """A sample with noise of the bandwidth is a sample of the model with that much more noise."""
    smoothed: Any = deepcopy(known.model)
    with torch.no_grad():
        smoothed.log_scale.copy_(0.5 * ((2 * smoothed.log_scale).exp() + _BANDWIDTH**2).log())
        log_density = smoothed.log_prob(known.x)
    estimator = ParzenWindow(setting.num_samples, _BANDWIDTH)
    found = log_marginal(known.model, None, known.x, estimator, device=setting.device, seed=setting.seed)
    errors = found.mc_standard_errors
    of_kernels = of_data(found.values, log_density, errors, -0.5 * errors.square())
    of_model = of_data(found.values, known.log_prob, errors)
    return [
        replace(of_kernels, quantity="smoothed log p(x)"),
        replace(of_model, if_far="not claimed"),
    ]
