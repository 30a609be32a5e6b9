"""Importance sampling from guide and prior as one mixture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pvae.estimators.importance import require_density
from pvae.estimators.weights.chunks import Chunks, StepMode, check_chunks
from pvae.estimators.weights.stream import Estimate, WeightStream, estimate_from
from pvae.pair.layout import Layout
from pvae.pair.pair import Pair
from pvae.pair.pair_run import LogWeights
from pvae.pair.parameters import Parameters
from pvae.pair.sites import Batch
from pvae.support.refusals import number

__all__ = ["DefensiveMixture"]


class DefensiveMixture:
    """Proposals from m(z) = a q(z | x) + (1 - a) p(z): log p(x) ~= log 1/K sum_k p(x, z_k) / m(z_k).

    A fixed number of the K draws comes from each of the two, and every draw is weighed by the whole mixture (the
    balance heuristic). So no weight exceeds p(x | z) / (1 - a): a guide too narrow for the posterior can no longer
    make the weights' tail heavy, at the price of 1 / a times the draws where the guide is good. Low in expectation.

    The Monte-Carlo error counts the scatter within guide draws and within prior draws, each about its own mean, as is
    right for fixed numbers of both; ESS and k-hat are those of all K weights together, and ESS is low by design.

    Args:
        num_samples: K, at least 2, honoured exactly.
        guide_share: a, strictly between 0 and 1, rounded to whole draws, at least one from each.
        chunk_size: as in `ImportanceSampling`, for each of the two.
        step_mode: as in `ImportanceSampling`.

    Raises: ValueError for K below 2, a share outside (0, 1), a chunk size below 1 and an unknown mode; for a guide
    with auxiliary draws, or with a point (Delta) among them, when it runs.

    Hesterberg (1995), Weighted average importance sampling and defensive mixture distributions; Owen and Zhou (2000),
    Safe and effective importance sampling.
    """

    bound = "lower"
    averages_weights = True

    def __init__(
        self,
        num_samples: int = 1000,
        *,
        guide_share: float = 0.5,
        chunk_size: int | None = None,
        step_mode: StepMode = "auto",
    ) -> None:
        self.num_samples = num_samples = check_chunks(num_samples, chunk_size, step_mode)
        if num_samples < 2:
            raise ValueError("DefensiveMixture needs num_samples of at least 2, one draw from each, got 1; try 1000")
        usual = "0.5, or ImportanceSampling or PriorSampling for one proposal alone"
        self.guide_share = number("guide_share", guide_share, above=0, below=1, usual=usual)
        self.chunk_size, self.step_mode = chunk_size, step_mode

    def start(self, model: Any, guide: Any, parameters: Parameters, num_batches: int) -> Callable[[Batch], Estimate]:
        """An estimate of log p(x) per datum, (B,), for one batch after another.

        Raises: ValueError without a guide.
        """
        if guide is None:
            raise ValueError("DefensiveMixture draws from a guide and the prior, got no guide; use PriorSampling")
        from_guide = min(max(round(self.guide_share * self.num_samples), 1), self.num_samples - 1)
        counts = from_guide, self.num_samples - from_guide
        share = from_guide / self.num_samples
        strata = [
            Chunks(proposal, count, self.chunk_size, self.step_mode, parameters, num_batches)
            for proposal, count in zip(
                (_FromGuide(model, guide, share), _FromPrior(model, guide, share)), counts, strict=True
            )
        ]

        def estimate(batch: Batch) -> Estimate:
            streams = [WeightStream(count, tail_of=self.num_samples) for count in counts]
            for chunks, stream in zip(strata, streams, strict=True):
                chunks(batch, stream.update)
            return strata[0].conclude(estimate_from(streams), self.num_samples)

        return estimate


class _FromGuide:
    """Draws from the guide, weighed by the mixture."""

    def __init__(self, model: Any, guide: Any, guide_share: float) -> None:
        self.pair, self.prior, self.guide_share = Pair(model, guide), Pair(model), guide_share

    def layout(self, batch: Batch, num_samples: int) -> Layout:
        """How to run the pair with that many particles."""
        return self.pair.layout(batch, num_samples)

    def weigh(self, batch: Batch, num_samples: int) -> Tensor:
        """Log weights of fresh draws, (num_samples, B)."""
        run = self.pair.run(batch, num_samples)
        require_density(run)
        if extra := sorted(set(run.guide) - set(run.latents)):
            raise ValueError(
                f"the guide draws {extra} that the model does not have, so a draw from the prior has no density under "
                "it; estimate with ImportanceSampling"
            )
        return self._by_mixture(run.log_weights())

    def _by_mixture(self, parts: LogWeights) -> Tensor:
        guide = math.log(self.guide_share) + parts.log_guide
        prior = math.log1p(-self.guide_share) + parts.log_prior
        return parts.log_likelihood + parts.log_prior - torch.logaddexp(guide, prior)


class _FromPrior(_FromGuide):
    """Draws from the prior, weighed by the mixture."""

    def weigh(self, batch: Batch, num_samples: int) -> Tensor:
        """Log weights of fresh draws, (num_samples, B)."""
        drawn = self.prior.run(batch, num_samples, layout=self.layout(batch, num_samples)).latents
        return self._by_mixture(self.pair.run(batch, num_samples, given=drawn).log_weights())
