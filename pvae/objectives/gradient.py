"""Gradients of a bound from one run of a pair, cut at its draws: weights on three kinds of terms.

With log weights log w_k = log p(x, z_k) - log q(z_k | x) and z_k = z(phi, noise), every estimator of the gradient is

    sum_k a_k d log p(x, z_k) / d theta           parameters of the model, a prior that shares the guide's included
  + sum_k b_k d log w_k / d z_k  d z_k / d phi    through the draws
  + sum_k c_k d log q(z_k | x) / d phi            the score function, at fixed z_k

and only the weights a, b, c, each (K, B), tell them apart.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pvae.objectives.baselines import Baseline
from pvae.objectives.means import Advantages, Blend
from pvae.pair.pair_run import PairRun
from pvae.support.refusals import choice, instance

__all__ = ["Gradient", "GradientName", "attach_draws", "sites_by_score", "value_with_gradient"]

GradientName = Literal["pathwise", "stl", "dreg", "score", "mixed"]


@dataclass(frozen=True)
class Gradient:
    """How a bound that is made of log weights is differentiated with respect to the guide.

    - "pathwise": through the draws and the parameters of log q, the plain reparameterised gradient.
    - "stl": through the draws alone. Unbiased for the ELBO, 0 at the exact posterior; biased for IWAE with K > 1.
      Roeder, Wu and Duvenaud (2017), Sticking the Landing.
    - "dreg": "stl" with weights that keep it unbiased (w_k^2 for IWAE). Tucker, Lawson, Gu and Maddison (2019),
      Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives.
    - "score": the score function of every site, with a baseline; discrete sites train, too.
    - "mixed": the score function where a site has no pathwise gradient, "pathwise" elsewhere.

    Raises: ValueError for another name, or a baseline where there is no score function.
    """

    name: GradientName = "pathwise"
    baseline: Baseline | None = None

    def __post_init__(self) -> None:
        choice("gradient", self.name, get_args(GradientName))
        if self.baseline is not None:
            instance(
                "baseline",
                self.baseline,
                Baseline,
                what="one of pvae.objectives.baselines, built",
                usual="LeaveOneOut()",
            )
        if self.baseline is not None and self.name not in ("score", "mixed"):
            raise ValueError(f"a baseline serves the score function, gradient is {self.name!r}; use gradient='score'")

    def apply(
        self,
        run: PairRun,
        kl_weight: float | Tensor,
        of_guide: Blend,
        of_model: Blend | None = None,
        *,
        trains_model: bool = True,
    ) -> Tensor:
        """The bound per datum, (B,), which carries this gradient.

        Args:
            run: one run of the pair; a split one unless the pathwise gradient of one bound is all there is to it.
            kl_weight: factor of log p(z) - log q(z | x) in each log weight.
            of_guide: from log weights to the bound that the guide ascends.
            of_model: the bound that the model ascends and that is reported, if that is another.
            trains_model: whether the model gets a gradient at all.
        """
        parts = run.scaled_log_weights()
        log_joint = parts.log_likelihood + kl_weight * parts.log_prior
        log_weights = log_joint - kl_weight * parts.log_guide
        of_model = of_guide if of_model is None else of_model
        if not run.drawn or not torch.is_grad_enabled():
            return of_model.value(log_weights)
        values = log_weights.detach()
        weights = of_guide.weights(values)
        slopes = of_guide.slopes(values) if self.name == "dreg" else 0.0
        surrogate = (of_model.weights(values) * log_joint).sum(0) if trains_model else log_joint.new_zeros(run.num_data)
        by_score = sites_by_score(run, self.name)
        surrogate = surrogate + attach_draws(run, (weights - kl_weight * slopes) * log_weights, by_score)
        if by_score:
            surrogate = surrogate + self._score(run, kl_weight, of_guide, values, by_score)
        elif self.name in ("pathwise", "mixed"):
            surrogate = surrogate - (kl_weight * weights * parts.log_guide).sum(0)
        return value_with_gradient(of_model.value(values), surrogate)

    def _score(
        self, run: PairRun, kl_weight: float | Tensor, mean: Blend, values: Tensor, names: Collection[str]
    ) -> Tensor:
        advantages = Advantages(mean.signals(values), 1.0, 0.0)
        if self.baseline is not None:
            if self.baseline.needs_others and run.num_samples == 1:
                raise ValueError(
                    f"{type(self.baseline).__name__} compares a draw with the others, and num_samples is 1; "
                    "use at least 2, or the RunningMean baseline"
                )
            advantages = self.baseline(advantages.values, lambda: mean.signals_without(values), run.batch)
        log_guide = run.log_guide_of(names)
        score = advantages.scale * (advantages.values - kl_weight * mean.varying_weights(values)) * log_guide
        rest = [name for name in run.guide if name not in names]
        if rest:
            score = score - kl_weight * mean.weights(values) * run.log_guide_of(rest)
        return score.sum(0) - advantages.loss


def sites_by_score(run: PairRun, name: str) -> list[str]:
    """The guide's sites whose gradient is that of the score function."""
    if name == "score":
        return list(run.guide)
    return [site for site in run.guide if name == "mixed" and not run.guide[site]["fn"].has_rsample]


def value_with_gradient(value: Tensor, surrogate: Tensor) -> Tensor:
    """The value, with the gradient of the surrogate."""
    return value.detach() + (surrogate - surrogate.detach())


def attach_draws(run: PairRun, total: Tensor, without: Collection[str] = ()) -> Tensor:
    """What has the gradient of `total`, a function of the leaves of a split run, through the draws, (B,).

    A draw may depend on those before it, so the pull on each is passed on to them, last draw first.
    The history of `total` is kept; the result's value means nothing.
    """
    names = [name for name, drawn in run.drawn.items() if drawn.requires_grad and name not in without]
    surrogate = total.new_zeros(run.num_data)
    if not names or not total.requires_grad:
        return surrogate
    leaves = [run.guide[name]["value"] for name in names]
    pulls = list(torch.autograd.grad(total.sum(), leaves, retain_graph=True, allow_unused=True))
    for index in reversed(range(len(names))):
        pull = pulls[index]
        if pull is None:
            continue
        drawn = run.drawn[names[index]]
        earlier = (
            torch.autograd.grad(drawn, leaves[:index], pull, retain_graph=True, allow_unused=True) if index else ()
        )
        for position, more in enumerate(earlier):
            if more is not None:
                before = pulls[position]
                pulls[position] = more if before is None else before + more
        pulled = run.layout.collect(names[index], pull * drawn, run.num_samples)
        surrogate = surrogate + pulled.transpose(0, 1).flatten(1).sum(1)
    return surrogate
