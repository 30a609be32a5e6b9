"""Reweighted wake-sleep: model and guide each ascend a target of their own."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from pvae.objectives.gradient import value_with_gradient
from pvae.objectives.means import PowerMean
from pvae.objectives.objective import Objective
from pvae.pair.contexts import called_modules, seeded
from pvae.pair.layout import Layout
from pvae.pair.pair import Pair
from pvae.pair.pair_run import PairRun
from pvae.pair.simulate import Simulator
from pvae.pair.sites import Batch
from pvae.support.refusals import choice

__all__ = ["ReweightedWakeSleep"]


class ReweightedWakeSleep(Objective):
    """The model ascends the importance-weighted bound, the guide the likelihood of latents: discrete ones train, too.

    With normalised weights v_k of K draws from the guide, the gradients are

        model    sum_k v_k d log p(x, z_k)
        guide    wake: sum_k v_k d log q(z_k | x), towards min KL(p(z | x) || q(z | x)) on the data,
                 sleep: d log q(z' | x') at a latent and a datum that the model dreams of.

    The value is that of IWAE(K). The wake gradients are biased by O(1 / K), and no single function has them all.

    Args:
        num_samples: K.
        phase: what trains the guide: "wake", "sleep" or "both" (the sum).

    Raises: ValueError for K < 1, or an unknown phase; for "sleep", if the model observes no part of the batch as it is.

    Bornschein and Bengio (2015), Reweighted Wake-Sleep.
    """

    always_split = True
    needs_pathwise = False

    def __init__(self, num_samples: int = 10, *, phase: Literal["wake", "sleep", "both"] = "wake") -> None:
        super().__init__(num_samples)
        self.num_samples, self.phase = self.num_particles, choice("phase", phase, ("wake", "sleep", "both"))
        self._dreams: tuple[Any, Any, Simulator, Pair, Layout] | None = None

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """log 1/K sum_k exp(log w_k), (B,)."""
        parts = run.scaled_log_weights()
        log_joint = parts.log_likelihood + kl_weight * parts.log_prior
        log_weights = (log_joint - kl_weight * parts.log_guide).detach()
        mean = PowerMean()
        weights = mean.weights(log_weights)
        surrogate = (weights * log_joint).sum(0)
        if self.phase != "sleep":
            surrogate = surrogate + (weights * parts.log_guide).sum(0)
        if self.phase != "wake" and run.guide and torch.is_grad_enabled():
            surrogate = surrogate + self._dreamt(run.batch)
        return value_with_gradient(mean.value(log_weights), surrogate)

    def _dreamt(self, batch: Batch) -> Tensor:
        """log q(z' | x') of latents and data drawn from the model, (B,)."""
        assert self._pair is not None
        assert self._pair.guide is not None
        model, guide = self._pair.model, self._pair.guide
        if self._dreams is None or self._dreams[:2] != (model, guide):
            alone = Pair(guide, in_own_store=False)
            with torch.no_grad(), seeded(0, batch[0].device), called_modules():
                self._dreams = model, guide, Simulator(model, batch), alone, alone.layout(batch, 1)
        _, _, simulator, alone, layout = self._dreams
        dream = simulator(batch)
        return alone.run(dream.batch, 1, layout=layout, given=dream.latents).log_weights().log_prior[0]
