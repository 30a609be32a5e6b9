"""Importance sampling from several guides of one model as one mixture."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pvae.estimators.importance import require_density
from pvae.estimators.weights.chunks import Chunks, StepMode, check_chunks
from pvae.estimators.weights.stream import Estimate, WeightStream, estimate_from
from pvae.pair.contexts import evaluation
from pvae.pair.layout import Layout
from pvae.pair.pair import Pair
from pvae.pair.pair_run import PairRun
from pvae.pair.parameters import Parameters
from pvae.pair.sites import Batch
from pvae.support.arguments import GUIDE
from pvae.support.refusals import built, shown

__all__ = ["GuideMixture"]


class GuideMixture:
    """Proposals from m(z) = 1/M sum_m q_m(z | x), the guide's and its companions': log 1/K sum_k p(x, z_k) / m(z_k).

    Each guide gives the same number of draws, up to one, and every draw is weighed by the whole mixture (the balance
    heuristic): what one guide misses another may cover. Low in expectation. Every guide is asked for the density of
    every draw, so a draw costs M times as much guide.

    The Monte-Carlo error counts the scatter within each guide's draws; ESS and k-hat are those of all K weights.

    Args:
        others: the guides beside the one that `log_marginal` is given; None stands for the prior.
        num_samples: K, at least one draw per guide, honoured exactly.
        chunk_size: as in `ImportanceSampling`, for each guide.
        step_mode: as in `ImportanceSampling`.

    Raises: ValueError without another guide, for too few draws, and as `ImportanceSampling`; for a guide with auxiliary
    draws, under which the draws of another have no density, when it runs.

    Veach and Guibas (1995), Optimally combining sampling techniques; Owen and Zhou (2000).
    """

    bound = "lower"
    averages_weights = True

    def __init__(
        self,
        others: Sequence[Any],
        num_samples: int = 1000,
        *,
        chunk_size: int | None = None,
        step_mode: StepMode = "auto",
    ) -> None:
        self.num_samples = num_samples = check_chunks(num_samples, chunk_size, step_mode)
        if not isinstance(others, (list, tuple, nn.ModuleList)) or not len(others):
            raise ValueError(
                f"others must be guides of the same model, got {shown(others)}; give a list of at least one"
            )
        for other in others:
            if other is not None:
                built("each of others", other, usual=GUIDE)
        if num_samples < len(others) + 1:
            raise ValueError(f"{len(others) + 1} guides need as many draws, got num_samples {num_samples}")
        self.others = tuple(others)
        self.chunk_size, self.step_mode = chunk_size, step_mode

    def counts(self) -> list[int]:
        """How many draws the guide and each of the others give, K in all."""
        num_guides = 1 + len(self.others)
        return [len(range(first, self.num_samples, num_guides)) for first in range(num_guides)]

    def start(self, model: Any, guide: Any, parameters: Parameters, num_batches: int) -> Callable[[Batch], Estimate]:
        """An estimate of log p(x) per datum, (B,), for one batch after another."""
        for other in self.others:
            if isinstance(other, nn.Module):
                other.to(parameters.device)
        pairs, counts = [Pair(model, each) for each in (guide, *self.others)], self.counts()
        shares = [count / self.num_samples for count in counts]
        strata = [
            Chunks(_FromOne(pairs, shares, index), count, self.chunk_size, self.step_mode, parameters, num_batches)
            for index, count in enumerate(counts)
        ]
        modules = [part for other in self.others if isinstance(other, nn.Module) for part in other.modules()]

        def estimate(batch: Batch) -> Estimate:
            streams = [WeightStream(count, tail_of=self.num_samples) for count in counts]
            with evaluation(modules):
                for chunks, stream in zip(strata, streams, strict=True):
                    chunks(batch, stream.update)
            return strata[0].conclude(estimate_from(streams), self.num_samples)

        return estimate


class _FromOne:
    """Draws from one of the guides, or from the prior where it is None, weighed by the mixture of all."""

    def __init__(self, pairs: Sequence[Pair], shares: Sequence[float], index: int) -> None:
        self.pairs, self.shares, self.index = pairs, shares, index

    def layout(self, batch: Batch, num_samples: int) -> Layout:
        """How to run the pair of the guide that draws with that many particles."""
        return [pair.layout(batch, num_samples) for pair in self.pairs][self.index]

    def weigh(self, batch: Batch, num_samples: int) -> Tensor:
        """Log weights of fresh draws, (num_samples, B)."""
        run = self.pairs[self.index].run(batch, num_samples)
        require_density(run)
        own, latents = run.log_weights(), run.latents
        self._require_the_same_draws(run, latents)
        log_guides = []
        for index, pair in enumerate(self.pairs):
            if index == self.index:
                log_guide = own.log_guide
            elif pair.guide is None:
                log_guide = own.log_prior
            else:
                there = pair.run(batch, num_samples, given=latents)
                self._require_the_same_draws(there, latents)
                log_guide = there.log_weights().log_guide
            # Where nothing is drawn, a density of 1 is a zero of torch's default dtype.
            log_guides.append(math.log(self.shares[index]) + log_guide.to(own.log_likelihood.dtype))
        return own.log_likelihood + own.log_prior - functools.reduce(torch.logaddexp, log_guides)

    @staticmethod
    def _require_the_same_draws(run: PairRun, latents: Mapping[str, Tensor]) -> None:
        if extra := sorted(set(run.guide) - set(latents)):
            raise ValueError(
                f"the guide draws {extra} that the model does not have, so a draw from elsewhere has no density under "
                "it; estimate with ImportanceSampling"
            )
