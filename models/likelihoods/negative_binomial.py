"""The negative binomial likelihood of overdispersed counts."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor

from pvae.models.likelihoods.per_value import PerValue, Positive, PositiveOption

__all__ = ["NegativeBinomial"]


class NegativeBinomial(PerValue):
    """Overdispersed counts 0, 1, ...: p(x | z) = prod_d NB(x_d | mean mu_d, variance mu_d + mu_d^2 / r), mu = exp(.).

    The inverse dispersion r tells how far it is from a Poisson, which is its limit for large r.

    Args:
        inverse_dispersion: a number to hold r fixed; "shared" to learn one r for all data; "learned" to have the
            decoder give one per value.
        floor: the least r that can be learned.
        x_shape: shape of one datum, to have "shared" learn one r per entry of it, as is usual for single-cell counts.

    Raises: ValueError for another word, or a number or floor that is not positive.

    Lopez et al. (2018), Deep Generative Modeling for Single-cell Transcriptomics.
    """

    def __init__(
        self, inverse_dispersion: PositiveOption = "learned", floor: float = 1e-3, *, x_shape: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.inverse_dispersion = Positive("inverse_dispersion", inverse_dispersion, floor, x_shape)
        self.num_parameters = 1 + self.inverse_dispersion.num_parameters

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """Log means, then raw r where learned (..., *parameter_shape) -> event shape `x_shape`."""
        log_mean, *raw = self.split(parameters, x_shape)
        return self.of_each(log_mean, raw).to_event(len(x_shape))

    def of_each(self, log_mean: Tensor, raw: Sequence[Tensor]) -> dist.NegativeBinomial:
        """The distribution of single values, given log means and raw r where learned."""
        r = self.inverse_dispersion(raw, log_mean)
        return dist.NegativeBinomial(r, logits=log_mean - r.log())
