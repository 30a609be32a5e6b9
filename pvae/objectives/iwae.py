"""The importance-weighted bound."""

from __future__ import annotations

from torch import Tensor

from pvae.objectives.baselines import Baseline
from pvae.objectives.gradient import GradientName
from pvae.objectives.means import Blend, PowerMean
from pvae.objectives.objective import Objective
from pvae.pair.pair_run import PairRun

__all__ = ["IWAE"]


class IWAE(Objective):
    """The importance-weighted bound, E log 1/K sum_k w_k, between the ELBO (K = 1) and log p(x) (K without limit).

    The log-mean-exp is per datum; the mean over data comes after it. A KL weight multiplies
    log p(z) - log q(z | x) inside the weights. With `gradient="score"` and the `LeaveOneOut` baseline this is VIMCO.

    Args:
        num_samples: K.
        gradient: as in `Objective`; "dreg" keeps the encoder's signal as K grows, which "pathwise" loses.
        baseline: as in `Objective`.

    Raises: ValueError for `num_samples` < 1.

    Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.
    """

    def __init__(
        self, num_samples: int = 50, *, gradient: GradientName = "pathwise", baseline: Baseline | None = None
    ) -> None:
        super().__init__(num_samples, gradient, baseline)
        self.num_samples = self.num_particles

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """log 1/K sum_k exp(log w_k), (B,)."""
        return self.gradient.apply(run, kl_weight, Blend([(1.0, PowerMean())], self.num_particles))
