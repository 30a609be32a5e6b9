"""Importance sampling from guide and prior as one mixture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pvae.estimators.guide_mixture import GuideMixture
from pvae.estimators.weights.chunks import StepMode, check_chunks
from pvae.estimators.weights.stream import Estimate
from pvae.pair.parameters import Parameters
from pvae.pair.sites import Batch
from pvae.support.refusals import number

__all__ = ["DefensiveMixture"]


class DefensiveMixture(GuideMixture):
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

    def __init__(
        self,
        num_samples: int = 1000,
        *,
        guide_share: float = 0.5,
        chunk_size: int | None = None,
        step_mode: StepMode = "auto",
    ) -> None:
        check_chunks(num_samples, chunk_size, step_mode)
        if num_samples < 2:
            raise ValueError("DefensiveMixture needs num_samples of at least 2, one draw from each, got 1; try 1000")
        super().__init__([None], num_samples, chunk_size=chunk_size, step_mode=step_mode)
        usual = "0.5, or ImportanceSampling or PriorSampling for one proposal alone"
        self.guide_share = number("guide_share", guide_share, above=0, below=1, usual=usual)

    def counts(self) -> list[int]:
        """How many draws the guide and the prior give, K in all."""
        from_guide = min(max(round(self.guide_share * self.num_samples), 1), self.num_samples - 1)
        return [from_guide, self.num_samples - from_guide]

    def start(self, model: Any, guide: Any, parameters: Parameters, num_batches: int) -> Callable[[Batch], Estimate]:
        """An estimate of log p(x) per datum, (B,), for one batch after another.

        Raises: ValueError without a guide.
        """
        if guide is None:
            raise ValueError("DefensiveMixture draws from a guide and the prior, got no guide; use PriorSampling")
        return super().start(model, guide, parameters, num_batches)
