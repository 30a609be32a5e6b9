"""Bounds that combine the ELBO and the importance-weighted bound, to keep the guide's gradient strong as K grows.

Rainforth, Kosiorek, Le, Maddison, Igl, Wood and Teh (2018), Tighter Variational Bounds are Not Necessarily Better.
"""

from __future__ import annotations

from torch import Tensor

from pvae.objectives.baselines import Baseline
from pvae.objectives.gradient import GradientName
from pvae.objectives.means import Blend, PowerMean
from pvae.objectives.objective import Objective
from pvae.pair.pair_run import PairRun
from pvae.support.refusals import number, whole

__all__ = ["CIWAE", "MIWAE", "PIWAE"]


class MIWAE(Objective):
    """The mean of M importance-weighted bounds of K particles each: 1/M sum_m log 1/K sum_k w_mk.

    MIWAE(1, K) is IWAE(K), MIWAE(M, 1) the ELBO from M particles.

    Args:
        num_averages: M.
        num_samples: K.
        gradient: as in `Objective`.
        baseline: as in `Objective`.

    Raises: ValueError for an M or K below 1.
    """

    def __init__(
        self,
        num_averages: int = 8,
        num_samples: int = 8,
        *,
        gradient: GradientName = "pathwise",
        baseline: Baseline | None = None,
    ) -> None:
        self.num_averages = whole("num_averages", num_averages, usual=8)
        self.num_samples = whole("num_samples", num_samples, usual=8)
        super().__init__(self.num_averages * self.num_samples, gradient, baseline)

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """1/M sum_m log 1/K sum_k exp(log w_mk), (B,)."""
        mean = Blend([(1.0, PowerMean(1.0, self.num_averages))], self.num_particles)
        return self.gradient.apply(run, kl_weight, mean)


class PIWAE(Objective):
    """The model ascends the bound of all M K particles, the guide the mean of M bounds of K: IWAE(M K) and MIWAE(M, K).

    The value is that of IWAE(M K).

    Args:
        num_averages: M.
        num_samples: K.
        gradient: of the guide, as in `Objective`.
        baseline: as in `Objective`.

    Raises: ValueError for an M or K below 1.
    """

    always_split = True

    def __init__(
        self,
        num_averages: int = 8,
        num_samples: int = 8,
        *,
        gradient: GradientName = "pathwise",
        baseline: Baseline | None = None,
    ) -> None:
        self.num_averages = whole("num_averages", num_averages, usual=8)
        self.num_samples = whole("num_samples", num_samples, usual=8)
        super().__init__(self.num_averages * self.num_samples, gradient, baseline)

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """log 1/(M K) sum_mk exp(log w_mk), (B,), with the guide's gradient of MIWAE."""
        of_guide = Blend([(1.0, PowerMean(1.0, self.num_averages))], self.num_particles)
        of_model = Blend([(1.0, PowerMean())], self.num_particles)
        return self.gradient.apply(run, kl_weight, of_guide, of_model)


class CIWAE(Objective):
    """A convex combination of the two bounds, beta ELBO + (1 - beta) IWAE(K), from the same K particles.

    Args:
        beta: the ELBO's share; CIWAE(1, K) is the ELBO, CIWAE(0, K) IWAE(K).
        num_samples: K.
        gradient: as in `Objective`.
        baseline: as in `Objective`.

    Raises: ValueError for a beta outside [0, 1], or K < 1.
    """

    def __init__(
        self,
        beta: float = 0.5,
        num_samples: int = 50,
        *,
        gradient: GradientName = "pathwise",
        baseline: Baseline | None = None,
    ) -> None:
        super().__init__(num_samples, gradient, baseline)
        self.beta = number("beta", beta, least=0, most=1, usual="0.5 as the ELBO's share")
        self.num_samples = self.num_particles

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """beta mean_k log w_k + (1 - beta) log mean_k exp(log w_k), (B,)."""
        mean = Blend([(self.beta, PowerMean(0.0)), (1 - self.beta, PowerMean())], self.num_particles)
        return self.gradient.apply(run, kl_weight, mean)
