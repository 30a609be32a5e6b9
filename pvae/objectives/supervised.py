"""A bound that teaches a guide's classifier the labels there are."""

from __future__ import annotations

from typing import Any

from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pvae.objectives.elbo import ELBO
from pvae.objectives.objective import Objective
from pvae.pair.pair_run import PairRun
from pvae.pair.sites import Batch
from pvae.support.refusals import instance, number

__all__ = ["Supervised"]


class Supervised(Objective):
    """A bound plus weight * log q(y | x), for each datum whose label y is known.

    What a model sees in part, `pyro.sample("y", ..., obs=y, obs_mask=...)`, are the sites "y_observed" and
    "y_unobserved"; the guide has the latter, and this asks how likely it finds what was seen of the former. A log
    probability is never above 0, so the bound stays one: estimates of log p(x) know nothing of the term. For a pair
    without such sites it is the bound alone.

    Args:
        objective: the bound; by default `ELBO()`, which sums over the labels that are missing.
        weight: of log q(y | x). Kingma et al. take 0.1 N / N_l for N data of which N_l have labels.

    Raises: ValueError for a negative weight, or something else than one of `pvae.objectives`.

    Kingma, Rezende, Mohamed and Welling (2014), Semi-supervised Learning with Deep Generative Models, equation 9.
    """

    def __init__(self, objective: Objective | None = None, weight: float = 1.0) -> None:
        objective = ELBO() if objective is None else objective
        instance("objective", objective, Objective, what="one of pvae.objectives, built", usual="ELBO()")
        super().__init__(objective.num_particles)
        self.objective, self.weight = objective, number("weight", weight, least=0, usual=1.0)
        self.gradient, self.needs_history = objective.gradient, objective.needs_history
        self.sums_out_guide = objective.sums_out_guide

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """The bound of `objective`, with that KL weight, plus weight * log q(y | x), (B,)."""
        bound = self.objective.reduce(run, kl_weight)
        if not any(name.endswith("_unobserved") for name in run.guide):
            return bound
        return bound + self.weight * run.average(_log_guide_at_observed(run))

    def prepare(self, model: Any, guide: Any, batch: Batch) -> Batch:
        """The batch that `objective` asks for."""
        return self.objective.prepare(model, guide, batch)

    @property
    def needs_pathwise(self) -> bool:
        """Whether `objective` needs every site of the guide to be reparameterised."""
        return self.objective.needs_pathwise

    def _run(self, model: Any, guide: Any, batch: Batch) -> PairRun:
        return self.objective._run(model, guide, batch)


def _log_guide_at_observed(run: PairRun) -> Tensor:
    """Sum of log q(y | ...) over labels that are known, (K, B); 0 where one is not.

    These are the values of the model's site "y_observed" under the guide's "y_unobserved", named as by `obs_mask`.
    """
    terms = []
    for site, plate in run.of_the_guide:
        name = site["name"]
        seen = run.model.get(f"{name.removesuffix('_unobserved')}_observed")
        if name.endswith("_unobserved") and seen is not None and seen["is_observed"]:
            terms.append((plate, scale_and_mask(site["fn"].log_prob(seen["value"]), mask=seen["mask"])))
    return run.total(terms)
