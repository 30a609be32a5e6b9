"""The importance-weighted bound."""

from __future__ import annotations

import math

from torch import Tensor

from pvae.objectives.objective import Objective
from pvae.runs import PairRun

__all__ = ["IWAE"]


class IWAE(Objective):
    """The importance-weighted bound, E log 1/K sum_k w_k, between the ELBO (K = 1) and log p(x) (K without limit).

    The log-mean-exp is per datum; the mean over data comes after it. A KL weight multiplies
    log p(z) - log q(z | x) inside the weights.

    Raises: ValueError for `num_samples` < 1.

    Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.
    """

    def __init__(self, num_samples: int = 50) -> None:
        super().__init__(num_samples)

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """log 1/K sum_k exp(log w_k), (B,)."""
        weights = run.scaled_log_weights()
        values = weights.log_likelihood + kl_weight * (weights.log_prior - weights.log_guide)
        return values.logsumexp(0) - math.log(self.num_samples)
