"""The evidence lower bound."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from pvae.objectives.objective import Objective
from pvae.runs import PairRun

__all__ = ["ELBO"]


class ELBO(Objective):
    """The evidence lower bound, E_q[log p(x | z)] - KL(q(z | x) || p(z)) <= log p(x), from K particles.

    With `kl="sampled"` the KL is the mean of log q - log p over the same draws, equal to `Trace_ELBO`;
    with `kl="analytic"` each site uses the closed form where torch knows one, equal to `TraceMeanField_ELBO`.
    A `beta` other than 1 weighs the KL for good (Higgins et al. 2017); beta 0 with a `Delta` guide is the plain
    autoencoder.

    Raises: ValueError for `num_samples` < 1, an unknown `kl`, or a negative `beta`.

    Kingma and Welling (2014), Auto-Encoding Variational Bayes.
    """

    def __init__(
        self, num_samples: int = 1, *, kl: Literal["sampled", "analytic"] = "sampled", beta: float = 1.0
    ) -> None:
        super().__init__(num_samples)
        if kl not in ("sampled", "analytic"):
            raise ValueError(f"kl must be 'sampled' or 'analytic', got {kl!r}")
        if not beta >= 0:
            raise ValueError(f"beta must be at least 0, got {beta!r}; 1 gives a bound on log p(x)")
        self.kl = kl
        self.beta = beta

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """E_q[log p(x | z)] - kl_weight * beta * KL, (B,)."""
        weights = run.scaled_log_weights()
        kl = run.kl() if self.kl == "analytic" else weights.log_guide - weights.log_prior
        return (weights.log_likelihood - kl_weight * self.beta * kl).mean(0)
