"""The Renyi bounds, and the chi upper bound."""

from __future__ import annotations

import math

from torch import Tensor

from pvae.objectives.baselines import Baseline
from pvae.objectives.gradient import GradientName
from pvae.objectives.means import Blend, PowerMean
from pvae.objectives.objective import Objective
from pvae.pair.pair_run import PairRun
from pvae.support.refusals import number

__all__ = ["CUBO", "Renyi"]


class Renyi(Objective):
    """The Renyi bound, 1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha).

    alpha = 0 is IWAE(K), alpha = 1 the ELBO, alpha = -inf VR-max, which keeps the largest weight alone. For alpha >= 0
    it is a lower bound on log p(x) in expectation; for alpha < 0 it may lie above.

    Args:
        alpha: any number, infinite ones included.
        num_samples: K.
        gradient: as in `Objective`.
        baseline: as in `Objective`.

    Raises: ValueError for an alpha that is no number, or K < 1.

    Li and Turner (2016), Renyi Divergence Variational Inference.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        num_samples: int = 50,
        *,
        gradient: GradientName = "pathwise",
        baseline: Baseline | None = None,
    ) -> None:
        super().__init__(num_samples, gradient, baseline)
        is_infinite = isinstance(alpha, float) and math.isinf(alpha)
        self.alpha = alpha if is_infinite else number("alpha", alpha, usual="0 for IWAE, 1 for the ELBO")
        self.num_samples = self.num_particles

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """The bound, (B,)."""
        mean = Blend([(1.0, PowerMean(1 - self.alpha))], self.num_particles)
        return self.gradient.apply(run, kl_weight, mean)


class CUBO(Objective):
    """Minus the chi upper bound, -1/n log E_q[w^n] <= -log p(x): the guide brings the upper bound down.

    Its weights get lighter tails for it. The model gets no gradient, for an upper bound on log p(x) says nothing about
    where that is large. From K draws the upper bound is estimated too low, the more so the further the guide is off.

    Args:
        num_samples: K.
        order: n, at least 1; 2 is the chi-squared divergence.
        gradient: as in `Objective`.
        baseline: as in `Objective`.

    Raises: ValueError for an order below 1, or K < 1.

    Dieng, Tran, Ranganath, Paisley and Blei (2017), Variational Inference via chi Upper Bound Minimization.
    """

    always_split = True

    def __init__(
        self,
        num_samples: int = 50,
        *,
        order: float = 2.0,
        gradient: GradientName = "pathwise",
        baseline: Baseline | None = None,
    ) -> None:
        super().__init__(num_samples, gradient, baseline)
        self.order = number("order", order, least=1, usual="2, the chi-squared divergence")
        self.num_samples = self.num_particles

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """-1/n log 1/K sum_k w_k^n, (B,)."""
        mean = Blend([(-1.0, PowerMean(self.order))], self.num_particles)
        return self.gradient.apply(run, kl_weight, mean, trains_model=False)
