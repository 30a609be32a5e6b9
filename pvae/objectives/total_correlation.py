"""The KL taken apart: mutual information, total correlation and the KL of each dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from pvae.objectives.objective import Objective
from pvae.pair.aggregate import pairwise_log_factors
from pvae.pair.pair import Pair
from pvae.pair.pair_run import PairRun
from pvae.pair.sites import as_batch
from pvae.support.refusals import choice, number, whole

__all__ = ["AggregateName", "BetaTCVAE", "Decomposition", "log_aggregate"]

AggregateName = Literal["stratified", "weighted"]


@dataclass(frozen=True)
class Decomposition:
    """The KL in three terms, in nats, each (B,): its mean over data is the term, for z_n ~ q(z | x_n).

    Attributes:
        mutual_information: log q(z | x) - log q(z), on average I_q(x; z).
        total_correlation: log q(z) - sum_d log q(z_d), on average KL(q(z) || prod_d q(z_d)).
        dimension_wise: sum_d log q(z_d) - log p(z), on average sum_d KL(q(z_d) || p(z_d)) if p(z) is a product.
    """

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise: Tensor

    @property
    def kl(self) -> Tensor:
        """Their sum, the sampled KL: log q(z | x) - log p(z), (B,)."""
        return self.mutual_information + self.total_correlation + self.dimension_wise


class BetaTCVAE(Objective):
    """The ELBO with the KL taken apart into three terms, each with a weight of its own.

    From one particle per datum it is

        E log p(x | z) - alpha I_q(x; z) - beta KL(q(z) || prod_d q(z_d)) - gamma sum_d KL(q(z_d) || p(z_d)),

    where q(z) is the aggregate posterior, the mean of q(z | x) over all N data. With all weights 1 it is the ELBO,
    draw by draw; with all at least 1, and a p(z) that is a product too, it lies below the ELBO on average (but for the
    error of log q(z)). It takes one latent site whose dims are independent in the guide, as in MeanField.

    From a batch of B data without repeats, q(z_n) is estimated
    - "stratified": z_n's own datum weighs 1/N, each other one (N - 1) / (N (B - 1)). Unbiased for q(z), and exact for a
      batch of all data. (The paper weighs one of the others differently, to the same mean with more variance.)
    - "weighted": each weighs 1/(N B). The gradient has no N in it, but log q(z) and every log q(z_d) come out too small
      by about log N, which moves the three terms, not their sum.
    Either way a logarithm is taken of an estimate, so that terms from small batches are biased.

    Args:
        mutual_information: alpha.
        total_correlation: beta.
        dimension_wise: gamma.
        num_data: N, the number of training data.
        aggregate: "stratified" or "weighted".

    Raises: ValueError for a negative weight, an N below 1 or below B, another `aggregate`, several latent sites, or
        dims that depend on each other.

    Chen, Li, Grosse and Duvenaud (2018), Isolating Sources of Disentanglement in VAEs.
    """

    def __init__(
        self,
        mutual_information: float = 1.0,
        total_correlation: float = 6.0,
        dimension_wise: float = 1.0,
        *,
        num_data: int,
        aggregate: AggregateName = "stratified",
    ) -> None:
        super().__init__(1)
        usual = "1, the ELBO's share"
        self.mutual_information = number("mutual_information", mutual_information, least=0, usual=usual)
        self.total_correlation = number("total_correlation", total_correlation, least=0, usual=usual)
        self.dimension_wise = number("dimension_wise", dimension_wise, least=0, usual=usual)
        self.num_data = whole("num_data", num_data, usual="len(data.train)")
        choice("aggregate", aggregate, get_args(AggregateName))
        self.aggregate = aggregate

    def decompose(self, model: Any, guide: Any, batch: Tensor | tuple[Tensor, ...]) -> Decomposition:
        """The three terms of the KL, each (B,), in nats and unweighted; differentiable.

        Raises: ValueError as the objective itself does.
        """
        with Pair(model, guide).inside():
            return self._terms(self._run(model, guide, as_batch(batch, finite=False)))

    def reduce(self, run: PairRun, kl_weight: float | Tensor) -> Tensor:
        """E log p(x | z) - kl_weight * (alpha, beta, gamma) . (the three terms), (B,)."""
        parts, terms = run.scaled_log_weights(), self._terms(run)
        # As what is added to the plain KL, so that a scale of the author's on the KL counts as in the ELBO.
        more = (self.mutual_information - 1) * terms.mutual_information
        more = more + (self.total_correlation - 1) * terms.total_correlation
        more = more + (self.dimension_wise - 1) * terms.dimension_wise
        return (parts.log_likelihood - kl_weight * (parts.log_guide - parts.log_prior)).mean(0) - kl_weight * more

    def _terms(self, run: PairRun) -> Decomposition:
        if len(run.guide) != 1:
            raise ValueError(
                f"the total correlation takes one latent site, got {sorted(run.guide)}; make them one vector, with a "
                "guide such as MeanField"
            )
        if run.num_data > self.num_data:
            raise ValueError(
                f"num_data is {self.num_data}, and the batch alone holds {run.num_data}; give the number of all "
                "training data"
            )
        parts = run.log_weights()
        log_guide, log_prior = parts.log_guide.mean(0), parts.log_prior.mean(0)
        pairs = pairwise_log_factors(run, next(iter(run.guide)))
        joint = log_aggregate(pairs.sum(-1), self.num_data, self.aggregate)
        product = log_aggregate(pairs, self.num_data, self.aggregate).sum(-1)
        return Decomposition(log_guide - joint, joint - product, product - log_prior)


def log_aggregate(pairs: Tensor, num_data: int, aggregate: AggregateName) -> Tensor:
    """log q(z_n), (B, ...), from log q(z_n | x_b), (B, B, ...), where z_n was drawn at the n-th of N data."""
    size = len(pairs)
    if aggregate == "weighted":
        return pairs.logsumexp(1) - math.log(num_data * size)
    if size == 1:
        raise ValueError(
            "the aggregate posterior is taken over a batch, and this one holds 1 datum; choose a batch_size that "
            "leaves no batch of 1"
        )
    weights = pairs.new_full((size, size), math.log((num_data - 1) / (num_data * (size - 1))))
    weights = weights.fill_diagonal_(-math.log(num_data))
    return (pairs + weights.reshape(size, size, *(1,) * (pairs.dim() - 2))).logsumexp(1)
