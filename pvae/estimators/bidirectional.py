"""Bidirectional Monte Carlo: log p(x) between two bounds, on data drawn from the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pvae.estimators.annealed import AnnealedImportanceSampling
from pvae.estimators.density.unconstrained import UnconstrainedJoint
from pvae.estimators.weights.stream import Estimate
from pvae.pair.parameters import Parameters
from pvae.pair.simulate import simulate
from pvae.pair.sites import Batch

__all__ = ["BidirectionalMonteCarlo"]


class BidirectionalMonteCarlo(AnnealedImportanceSampling):
    """How good annealed importance sampling is for a model: E[lower] <= log p(x) <= E[upper], for x ~ p(x).

    In place of each datum it draws one from the model, whose latents are then an exact draw from the posterior. Chains
    from the prior give the lower bound, log 1/K sum_k exp(lw_k); chains from that draw, along the same path in reverse,
    the upper, -log 1/K sum_k exp(-lw_k). Of the data, only shapes and what the model conditions on are used.

    Arguments are those of `AnnealedImportanceSampling`; a datum takes 2 K chains. `LogMarginal.upper_values` holds the
    upper bounds, `LogMarginal.gap` what lies between.

    Raises: ValueError as its parent, and if an observed site holds no part of the batch as it is.

    Grosse, Ghahramani and Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte Carlo; Grosse,
    Ancha and Roy (2016), Measuring the reliability of MCMC inference with bidirectional Monte Carlo.
    """

    averages_weights = False
    simulates = True

    def start(self, model: Any, guide: Any, parameters: Parameters, num_batches: int) -> Callable[[Batch], Estimate]:
        """Both bounds of log p(x) per simulated datum, (B,), for one batch after another; the guide is not used."""
        joint = UnconstrainedJoint(model, parameters, self.step_mode)
        left = num_batches

        def estimate(batch: Batch) -> Estimate:
            nonlocal left
            left -= 1
            simulated = simulate(model, batch)
            path = self.path(joint, simulated.batch, left + 1, passes=2)
            return replace(path.forward(), upper=-path.reverse(simulated.latents).values)

        return estimate
