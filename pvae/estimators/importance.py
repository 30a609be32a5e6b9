"""Importance sampling from the guide, and from the prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.distributions import Delta
from torch import Tensor

from pvae.estimators.weights.chunks import Chunks, StepMode, check_chunks
from pvae.estimators.weights.stream import Estimate, WeightStream
from pvae.pair.layout import Layout
from pvae.pair.pair import Pair
from pvae.pair.pair_run import PairRun
from pvae.pair.parameters import Parameters
from pvae.pair.sites import Batch, base_of
from pvae.support.refusals import flag

__all__ = ["GuideProposal", "ImportanceSampling", "PriorSampling", "require_density"]


class ImportanceSampling:
    """Proposals from the guide: log p(x) ~= log 1/K sum_k p(x, z_k) / q(z_k | x), low in expectation.

    The guide's nets run once per datum; K goes through in chunks, whose weights are summed up in float64.

    Args:
        num_samples: K, honoured exactly whatever the chunks.
        chunk_size: particles at once, at most; by default what fits the cache or the GPU. It bounds memory and changes
            which random numbers are drawn, never how many weights count.
        step_mode: as in `pvae.fit`; "auto" traces and compiles the chunk where the run is long enough to pay for it.
        smooth: replace the largest weights by quantiles of a generalised Pareto distribution fitted to them
            (`pvae.estimators.weights.psis.smooth`): steadier where k-hat is high, but biased, so no bound.

    Attributes: `bound` "lower", or "none" for smoothed weights; `averages_weights`, whether the value is the log of
    a plain mean of weights, which further draws may join.

    Raises: ValueError for sizes below 1 and an unknown mode.

    Burda, Grosse and Salakhutdinov (2016), section 5; Vehtari et al. (2024), Pareto smoothed importance sampling.
    """

    def __init__(
        self,
        num_samples: int = 1000,
        *,
        chunk_size: int | None = None,
        step_mode: StepMode = "auto",
        smooth: bool = False,
    ) -> None:
        self.num_samples = num_samples = check_chunks(num_samples, chunk_size, step_mode)
        self.chunk_size, self.step_mode, smooth = chunk_size, step_mode, flag("smooth", smooth)
        self.smooth, self.averages_weights = smooth, not smooth
        self.bound = "none" if smooth else "lower"

    def start(self, model: Any, guide: Any, parameters: Parameters, num_batches: int) -> Callable[[Batch], Estimate]:
        """An estimate of log p(x) per datum, (B,), for one batch after another."""
        chunks = Chunks(
            GuideProposal(model, guide), self.num_samples, self.chunk_size, self.step_mode, parameters, num_batches
        )

        def estimate(batch: Batch) -> Estimate:
            stream = WeightStream(self.num_samples, smooth=self.smooth)
            chunks(batch, stream.update)
            return chunks.conclude(stream.estimate(), self.num_samples)

        return estimate


class PriorSampling(ImportanceSampling):
    """Proposals from the prior: log p(x) ~= log 1/K sum_k p(x | z_k); needs no guide.

    Unbiased for p(x), a lower bound for log p(x) in expectation, and hopeless once the posterior is far
    from the prior: the k-hat of each datum shows it.
    """

    def start(self, model: Any, guide: Any, parameters: Parameters, num_batches: int) -> Callable[[Batch], Estimate]:
        """An estimate of log p(x) per datum, (B,), for one batch after another; the guide is not used."""
        return super().start(model, None, parameters, num_batches)


class GuideProposal:
    """Draws from the guide, or from the prior where it is None, with weights p(x, z) / q(z | x)."""

    def __init__(self, model: Any, guide: Any) -> None:
        self.pair = Pair(model, guide)

    def layout(self, batch: Batch, num_samples: int) -> Layout:
        """How to run the pair with that many particles."""
        return self.pair.layout(batch, num_samples)

    def weigh(self, batch: Batch, num_samples: int) -> Tensor:
        """Log weights of fresh draws, (num_samples, B)."""
        run = self.pair.run(batch, num_samples)
        require_density(run)
        return run.log_weights().values


def require_density(run: PairRun) -> None:
    """Raise ValueError for a guide that draws from a point."""
    for name, site in run.guide.items():
        if isinstance(base_of(site["fn"]), Delta):
            raise ValueError(
                f"the guide draws '{name}' from a point (Delta), whose weights estimate nothing; train "
                "MeanField on the same model, or estimate with PriorSampling"
            )
