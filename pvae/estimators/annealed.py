"""Annealed importance sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch

from pvae.estimators.density.annealing import Path, Schedule, temperatures
from pvae.estimators.density.step_sizes import PILOT_TRANSITIONS, tuned_steps
from pvae.estimators.density.unconstrained import UnconstrainedJoint
from pvae.estimators.weights.chunks import StepMode, check_chunks, rows_at_once
from pvae.estimators.weights.stream import Estimate
from pvae.pair.parameters import Parameters
from pvae.pair.sites import Batch
from pvae.support.refusals import choice, number, whole

__all__ = ["AnnealedImportanceSampling"]


class AnnealedImportanceSampling:
    """Chains from the prior to the posterior: log p(x) ~= log 1/K sum_k exp(lw_k), low in expectation; needs no guide.

    lw = sum_t (beta_t - beta_(t-1)) log p(x | z_(t-1)), where z_0 is drawn from p(z) and z_t by a step of Hamiltonian
    Monte Carlo that leaves p(z) p(x | z)^beta_t as it is, on unconstrained space. The step size of each datum at each
    temperature is tuned on other chains, then frozen. With one temperature it is `PriorSampling`.

    Args:
        num_samples: K, chains per datum, honoured exactly.
        num_temperatures: T, how many steps beta takes from 0 to 1.
        num_leapfrog: leapfrogs of a transition; an estimate takes about K T num_leapfrog gradients per datum.
        schedule: beta_t "linear", or "sigmoidal": closer at both ends.
        step_size: of a leapfrog, for every datum and temperature; by default tuned to take about 65% of proposals.
        chunk_size: chains at once, at most; by default what fits the cache or the GPU.
        step_mode: as in `pvae.fit`; "auto" traces and compiles an evaluation by the clock.
            Modes agree to rounding, which a chain may amplify: give "traced" to repeat numbers to the last digit.

    Raises: ValueError for sizes that are not positive and unknown words; in use, for latents that are discrete or on a
    support that no bijection leads to.

    Neal (2001), Annealed importance sampling; Wu, Burda, Salakhutdinov and Grosse (2017), On the quantitative analysis
    of decoder-based generative models.
    """

    bound = "lower"
    averages_weights = True

    def __init__(
        self,
        num_samples: int = 16,
        *,
        num_temperatures: int = 1000,
        num_leapfrog: int = 10,
        schedule: Schedule = "linear",
        step_size: float | None = None,
        chunk_size: int | None = None,
        step_mode: StepMode = "auto",
    ) -> None:
        self.num_samples = num_samples = check_chunks(num_samples, chunk_size, step_mode)
        self.num_temperatures = whole("num_temperatures", num_temperatures, usual=1000)
        self.num_leapfrog = whole("num_leapfrog", num_leapfrog, usual=10)
        if step_size is not None:
            step_size = number("step_size", step_size, above=0, usual="0.1, or leave it out to have it tuned")
        choice("schedule", schedule, get_args(Schedule))
        self.schedule, self.step_size, self.chunk_size, self.step_mode = schedule, step_size, chunk_size, step_mode

    def start(self, model: Any, guide: Any, parameters: Parameters, num_batches: int) -> Callable[[Batch], Estimate]:
        """An estimate of log p(x) per datum, (B,), for one batch after another; the guide is not used."""
        joint = UnconstrainedJoint(model, parameters, self.step_mode)
        left = num_batches

        def estimate(batch: Batch) -> Estimate:
            nonlocal left
            left -= 1
            return self.path(joint, batch, left + 1).forward()

        return estimate

    def path(self, joint: UnconstrainedJoint, batch: Batch, batches_left: int, passes: int = 1) -> Path:
        """The path for a batch, its step sizes tuned; `passes` tells how often chains will go along it."""
        most = self.chunk_size or max(1, rows_at_once(batch) // len(batch[0]))
        count = math.ceil(self.num_samples / min(most, self.num_samples))
        # Chunks of one size need one graph; what the last one draws beyond K is left out.
        chunk = math.ceil(self.num_samples / count)
        betas = temperatures(self.num_temperatures, self.schedule)
        transitions = passes * count * self.num_temperatures + (PILOT_TRANSITIONS if self.step_size is None else 0)
        joint.calls_left = batches_left * transitions * self.num_leapfrog
        if self.step_size is None:
            steps = tuned_steps(partial(joint.point, batch), joint.locate(batch, chunk), betas, self.num_leapfrog)
        else:
            steps = torch.full((len(betas), len(batch[0])), self.step_size, device=batch[0].device)
        return Path(joint, batch, self.num_samples, chunk, betas, steps, self.num_leapfrog)
