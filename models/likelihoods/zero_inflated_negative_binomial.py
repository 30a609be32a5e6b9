"""The zero-inflated negative binomial likelihood of counts with too many zeros."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor

from pvae.models.likelihoods.negative_binomial import NegativeBinomial
from pvae.models.likelihoods.per_value import PerValue, PositiveOption

__all__ = ["ZeroInflatedNegativeBinomial"]


class ZeroInflated(dist.ZeroInflatedDistribution):
    """Pyro's, which after a draw can no longer be expanded."""

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> ZeroInflated:
        """The same with a larger batch shape."""
        base, gate_logits = self.base_dist.expand(batch_shape), self.gate_logits.expand(*batch_shape)
        return ZeroInflated(base, gate_logits=gate_logits, validate_args=self._validate_args)


class ZeroInflatedNegativeBinomial(PerValue):
    """Counts with extra zeros: p(x | z) = prod_d g_d [x_d = 0] + (1 - g_d) NB(x_d | mean mu_d, inverse dispersion r).

    The decoder gives the logits of the g_d first, then what `NegativeBinomial` asks for, whose arguments these are.

    Raises: ValueError for another word, or a number or floor that is not positive.

    Lopez et al. (2018), Deep Generative Modeling for Single-cell Transcriptomics.
    """

    def __init__(
        self, inverse_dispersion: PositiveOption = "learned", floor: float = 1e-3, *, x_shape: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.counts = NegativeBinomial(inverse_dispersion, floor, x_shape=x_shape)
        self.num_parameters = 1 + self.counts.num_parameters

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """(..., *parameter_shape) -> a distribution with event shape `x_shape`."""
        gate_logits, log_mean, *raw = self.split(parameters, x_shape)
        counts = self.counts.of_each(log_mean, raw)
        return ZeroInflated(counts, gate_logits=gate_logits).to_event(len(x_shape))
