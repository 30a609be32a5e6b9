"""The evidence lower bound."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from pvae.objectives.baselines import Baseline
from pvae.objectives.gradient import GradientName
from pvae.objectives.means import Blend, PowerMean
from pvae.objectives.objective import Objective
from pvae.pair.divergence import kl_of_sites
from pvae.pair.pair_run import PairRun
from pvae.support.refusals import choice, number

__all__ = ["ELBO"]


class ELBO(Objective):
    """The evidence lower bound, E_q[log p(x | z)] - KL(q(z | x) || p(z)) <= log p(x), from K particles.

    With `kl="sampled"` the KL is the mean of log q - log p over the same draws, equal to `Trace_ELBO`;
    with `kl="analytic"` each site uses the closed form where torch knows one, equal to `TraceMeanField_ELBO`.

    Sites of the guide with infer={"enumerate": "parallel"} are summed out, sum_y q(y | x) E_q(z | x, y)[...], from K
    draws of the others at each state y, unless `gradient` is one that draws them.

    Args:
        num_samples: K.
        kl: "sampled" or "analytic".
        beta: weighs the KL for good (Higgins et al. 2017); 0 with a `Delta` guide is the plain autoencoder.
        free_bits: the least KL of each latent site that is paid for, in nats, as a mean over the batch: a site below it
            feels no pull to its prior, max(free_bits, KL) (Kingma et al. 2016). The bound stays one.
        gradient: as in `Objective`; all but "pathwise" need the sampled KL.
        baseline: as in `Objective`.

    Raises: ValueError for `num_samples` < 1, an unknown `kl`, a negative `beta` or `free_bits`, or options that exclude
        each other.

    Kingma and Welling (2014), Auto-Encoding Variational Bayes.
    """

    sums_out_guide = True

    def __init__(
        self,
        num_samples: int = 1,
        *,
        kl: Literal["sampled", "analytic"] = "sampled",
        beta: float = 1.0,
        free_bits: float = 0.0,
        gradient: GradientName = "pathwise",
        baseline: Baseline | None = None,
    ) -> None:
        super().__init__(num_samples, gradient, baseline)
        choice("kl", kl, ("sampled", "analytic"))
        self.beta = number("beta", beta, least=0, usual="1, which gives a bound on log p(x)")
        self.free_bits = number("free_bits", free_bits, least=0, usual="0.5 nats per latent site")
        if gradient != "pathwise" and (kl == "analytic" or free_bits):
            raise ValueError(
                f"gradient {gradient!r} works on sampled log weights, got kl={kl!r} and free_bits={free_bits!r}; "
                "use kl='sampled' without free bits, or gradient='pathwise'"
            )
        self.num_samples, self.kl = self.num_particles, kl

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """E_q[log p(x | z)] - kl_weight * beta * KL, (B,)."""
        weight = kl_weight * self.beta
        if self.kl == "sampled" and not self.free_bits:
            if run.branches is None:
                return self.gradient.apply(run, weight, Blend([(1.0, PowerMean(0.0))], self.num_particles))
            parts = run.scaled_log_weights()
            return run.average(parts.log_likelihood + weight * (parts.log_prior - parts.log_guide))
        log_likelihood = run.average(run.scaled_log_weights().log_likelihood)
        terms = [run.average(term) for term in kl_of_sites(run, analytic=self.kl == "analytic").values()]
        if self.free_bits:
            terms = [term.mean().clamp(min=self.free_bits) for term in terms]
        return log_likelihood - weight * sum(terms)
