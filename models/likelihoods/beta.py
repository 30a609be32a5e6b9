"""The beta likelihood of values strictly between 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pvae.models.likelihoods.per_value import PerValue, Positive, PositiveOption

__all__ = ["Beta"]


class _OpenInterval(constraints.Constraint):
    """Strictly between 0 and 1, at whose ends the density is 0 or infinite."""

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)


class OpenBeta(dist.Beta):
    """A beta distribution whose support leaves 0 and 1 out, and whose draws stay off them where they round to them."""

    support = _OpenInterval()  # type: ignore[assignment]  # narrower than torch's, which holds both ends

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws of shape (*sample_shape, *batch_shape)."""
        value = super().rsample(torch.Size(sample_shape))
        limits = torch.finfo(value.dtype)
        return value.clamp(limits.tiny, 1 - limits.eps)


class Beta(PerValue):
    """Values in (0, 1), ends excluded: p(x | z) = prod_d Beta(x_d | mean_d / dispersion, (1 - mean_d) / dispersion).

    The mean is sigmoid of the decoder's output; the variance is mean (1 - mean) dispersion / (1 + dispersion). Without
    a floor on the dispersion the likelihood has no upper bound. Data with exact 0s or 1s: use `ContinuousBernoulli`.

    Args:
        dispersion: a number to hold it fixed; "shared" to learn one for all values; "learned" to have the decoder
            give one per value.
        floor: the least dispersion that can be learned.
        x_shape: shape of one datum, to have "shared" learn one dispersion per entry of it.

    Raises: ValueError for another word, or a dispersion or floor that is not positive.

    Ferrari and Cribari-Neto (2004), Beta Regression for Modelling Rates and Proportions.
    """

    def __init__(
        self, dispersion: PositiveOption = "shared", floor: float = 1e-3, *, x_shape: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.dispersion = Positive("dispersion", dispersion, floor, x_shape)
        self.num_parameters = 1 + self.dispersion.num_parameters

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """Logits of means, then raw dispersions where learned (..., *parameter_shape) -> event shape `x_shape`."""
        logits, *raw = self.split(parameters, x_shape)
        dispersion = self.dispersion(raw, logits)
        # 1 - sigmoid(logits) would round to 0 far out.
        return OpenBeta(logits.sigmoid() / dispersion, (-logits).sigmoid() / dispersion).to_event(len(x_shape))
