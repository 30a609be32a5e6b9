"""Every estimator of log p(x) on every truth that it serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from pvae import truth
from pvae.estimators import (
    AnnealedImportanceSampling,
    BidirectionalMonteCarlo,
    DefensiveMixture,
    Enumeration,
    ImportanceSampling,
    Jackknife,
    ParzenWindow,
    PriorSampling,
    Quadrature,
)
from pvae.estimators.annealing import Path
from pvae.estimators.log_marginal import Estimator, log_marginal
from pvae.estimators.unconstrained import UnconstrainedJoint
from pvae.selfcheck.rows import Check, Measured, apart, mean_of, of_data
from pvae.selfcheck.setting import Setting
from pvae.sites import Batch, latent_sites
from pvae.truth import Truth
from pvae.weights import log_weights

__all__ = ["checks"]

# Nats: of rules that end at 1e-9, and of sums that only round.
_EXACT, _ROUNDED = 1e-7, 1e-10
_BANDWIDTH = 0.7
_SIMULATED = 300


def checks(setting: Setting) -> Iterator[Check]:
    """One for each estimator and truth; the weights of a posterior, too, which are all p(x)."""
    for build in setting.builders:
        known = build()
        for name, estimator in _by_draws(known, setting.num_samples).items():
            yield Check("estimators", name, known.name, partial(_by_data, setting, known, estimator))
        if known.latent == "continuous":
            yield Check("estimators", "BidirectionalMonteCarlo(4)", known.name, partial(_both_bounds, setting, build))
        for exact in _without_draws(known):
            name = f"{type(exact).__name__}()"
            yield Check("estimators", name, known.name, partial(_exactly, setting, known, exact))
        if known.exact_guide is not None:
            yield Check("estimators", "weights of the posterior", known.name, partial(_constant, setting, known))
    known = truth.linear_gaussian()
    yield Check("estimators", f"ParzenWindow({setting.num_samples})", known.name, partial(_kernels, setting, known))


def _by_draws(known: Truth, num_samples: int) -> dict[str, Estimator]:
    eager: dict[str, Any] = {"step_mode": "eager"}
    found: dict[str, Estimator] = {
        f"ImportanceSampling({num_samples})": ImportanceSampling(num_samples, **eager),
        "ImportanceSampling(smooth=True)": ImportanceSampling(num_samples, smooth=True, **eager),
        f"PriorSampling({4 * num_samples})": PriorSampling(4 * num_samples, **eager),
        f"DefensiveMixture({num_samples})": DefensiveMixture(num_samples, **eager),
        "Jackknife(order=1)": Jackknife(num_samples, order=1, **eager),
        "Jackknife(order=2)": Jackknife(num_samples, order=2, **eager),
    }
    if known.latent == "continuous":
        found["AnnealedImportanceSampling(400)"] = AnnealedImportanceSampling(
            400, num_temperatures=20, num_leapfrog=3, step_mode="traced"
        )
    return found


def _without_draws(known: Truth) -> list[Estimator]:
    if known.latent == "discrete":
        return [Enumeration()]
    num_dims = sum(site.event_shape.numel() for site in latent_sites(known.model, known.x))
    return [Quadrature()] if num_dims <= 2 else []


def _estimate(setting: Setting, known: Truth, estimator: Estimator, guide: Any = None) -> Any:
    return log_marginal(
        known.model, guide, known.x, estimator, batch_size=len(known.x), device=setting.device, seed=setting.seed
    )


def _by_data(setting: Setting, known: Truth, estimator: Estimator) -> dict[str, Measured]:
    found = _estimate(setting, known, estimator, known.guide)
    errors = found.mc_standard_errors
    # To second order the log of a mean of weights is low by half its variance.
    bias = -0.5 * errors.square() if getattr(estimator, "averages_weights", False) else 0.0
    return {"log p(x)": of_data(found.values, known.log_prob, errors, bias)}


def _exactly(setting: Setting, known: Truth, estimator: Estimator) -> dict[str, Measured]:
    found = _estimate(setting, known, estimator)
    return {"log p(x)": apart(found.values, known.log_prob, _EXACT)}


def _constant(setting: Setting, known: Truth) -> dict[str, Measured]:
    assert known.exact_guide is not None
    model, guide = (part.to(setting.device) for part in (known.model, known.exact_guide))  # type: ignore[attr-defined]
    with torch.no_grad():
        weights = log_weights(model, guide, known.x.to(setting.device), 20).values
    return {"log p(x)": apart(weights.cpu(), known.log_prob, _ROUNDED)}


class _Recording(BidirectionalMonteCarlo):
    """Keeps the data that it draws."""

    batch: Batch

    def path(self, joint: UnconstrainedJoint, batch: Batch, batches_left: int, passes: int = 1) -> Path:
        """As ever."""
        self.batch = batch
        return super().path(joint, batch, batches_left, passes)


def _both_bounds(setting: Setting, build: Callable[..., Truth]) -> dict[str, Measured]:
    known = build()
    like = known.x.repeat(-(-_SIMULATED // len(known.x)), *(1,) * (known.x.dim() - 1))
    estimator = _Recording(4, num_temperatures=20, num_leapfrog=3, step_mode="traced")
    found = log_marginal(
        known.model, None, like, estimator, batch_size=len(like), device=setting.device, seed=setting.seed
    )
    assert found.upper_values is not None
    log_prob = build(x=estimator.batch[0].cpu()).log_prob
    # E[exp(lower)] = p(x) and E[exp(-upper)] = 1 / p(x): the mean of either ratio is 1.
    return {
        "e^(lower - log p)": mean_of((found.values - log_prob).exp(), 1.0),
        "e^(log p - upper)": mean_of((log_prob - found.upper_values).exp(), 1.0),
    }


def _kernels(setting: Setting, known: Truth) -> dict[str, Measured]:
    found = _estimate(setting, known, ParzenWindow(setting.num_samples, _BANDWIDTH))
    errors = found.mc_standard_errors
    smoothed: Any = deepcopy(known.model)
    with torch.no_grad():
        smoothed.cpu().log_scale.copy_(0.5 * ((2 * smoothed.log_scale).exp() + _BANDWIDTH**2).log())
        truth_of_kernels = smoothed.log_prob(known.x)
    smooth = of_data(found.values, truth_of_kernels, errors, -0.5 * errors.square())
    plain = of_data(found.values, known.log_prob, errors)
    return {"log density of x + noise": smooth, "log p(x)": replace(plain, if_far="not claimed")}
