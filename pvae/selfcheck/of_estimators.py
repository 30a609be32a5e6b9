"""Every estimator of log p(x) on every truth that it serves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from pvae.estimators import (
    AnnealedImportanceSampling,
    DefensiveMixture,
    Enumeration,
    GuideMixture,
    ImportanceSampling,
    Jackknife,
    PriorSampling,
    Quadrature,
)
from pvae.estimators.log_marginal import Estimator, log_marginal
from pvae.pair.sites import latent_sites
from pvae.selfcheck.rows import Check, Measured, apart, of_data
from pvae.selfcheck.setting import Setting
from pvae.truth import Truth
from pvae.weights import log_weights

__all__ = ["checks"]

# Nats: of a rule that halves its cells until they are within 1e-9, and of sums that only round.
_BY_RULE, _ROUNDED = 1e-7, 1e-10
_CHAINS, _TEMPERATURES = 1000, 40


def checks(setting: Setting) -> Iterator[Check]:
    """One for each estimator and truth; the weights of a posterior, too, which are all p(x)."""
    for build in setting.builders:
        known = build()
        for name, estimator in _by_draws(known, setting.num_samples).items():
            yield Check("estimators", name, known.name, partial(_on_data, setting, known, estimator))
        for exact in _without_draws(known):
            name = f"{type(exact).__name__}()"
            yield Check("estimators", name, known.name, partial(_exactly, setting, known, exact))
        if known.exact_guide is not None:
            yield Check("estimators", "weights of the posterior", known.name, partial(_constant, setting, known))


def _by_draws(known: Truth, num_samples: int) -> dict[str, Estimator]:
    # Eager runs cost less than a graph for so few chunks.
    eager: dict[str, Any] = {"step_mode": "eager"}
    found: dict[str, Estimator] = {
        f"ImportanceSampling({num_samples})": ImportanceSampling(num_samples, **eager),
        "ImportanceSampling(smooth=True)": ImportanceSampling(num_samples, smooth=True, **eager),
        f"PriorSampling({4 * num_samples})": PriorSampling(4 * num_samples, **eager),
        f"DefensiveMixture({num_samples})": DefensiveMixture(num_samples, **eager),
        "Jackknife(order=1)": Jackknife(num_samples, order=1, **eager),
        "Jackknife(order=2)": Jackknife(num_samples, order=2, **eager),
    }
    if known.exact_guide is not None:
        found["GuideMixture(2)"] = GuideMixture([known.exact_guide], num_samples, **eager)
    if known.latent == "continuous":
        found[f"AnnealedImportanceSampling({_CHAINS})"] = AnnealedImportanceSampling(
            _CHAINS, num_temperatures=_TEMPERATURES, num_leapfrog=3, step_mode="traced"
        )
    return found


def _without_draws(known: Truth) -> list[Estimator]:
    if known.latent == "discrete":
        return [Enumeration()]
    num_dims = sum(site.event_shape.numel() for site in latent_sites(known.model, known.x))
    return [Quadrature()] if num_dims <= 2 else []


def _on_data(setting: Setting, known: Truth, estimator: Estimator) -> list[Measured]:
    found = log_marginal(known.model, known.guide, known.x, estimator, device=setting.device, seed=setting.seed)
    errors = found.mc_standard_errors
    # To second order the log of a mean of weights is low by half its variance.
    bias = -0.5 * errors.square() if getattr(estimator, "averages_weights", False) else 0.0
    return [of_data(found.values, known.log_prob, errors, bias)]


def _exactly(setting: Setting, known: Truth, estimator: Estimator) -> list[Measured]:
    found = log_marginal(known.model, None, known.x, estimator, device=setting.device)
    return [apart(found.values, known.log_prob, _BY_RULE, "log p(x)")]


def _constant(setting: Setting, known: Truth) -> list[Measured]:
    model, guide, x = setting.place(known.model, known.exact_guide, known.x)
    with torch.no_grad():
        weights = log_weights(model, guide, x, 20).values
    return [apart(weights.cpu(), known.log_prob, _ROUNDED, "each log weight")]
