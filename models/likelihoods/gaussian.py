"""The Gaussian likelihood of real values."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor

from pvae.models.likelihoods.per_value import PerValue, Positive, PositiveOption

__all__ = ["Gaussian"]


class Gaussian(PerValue):
    """Real values: p(x | z) = prod_d N(x_d | loc_d, scale^2), with a floor on the scale.

    Without a floor the likelihood of a learned scale has no upper bound (Mattei and Frellsen 2018).

    Args:
        scale: a number to hold it fixed; "shared" to learn one scale for all values; "learned" to have the
            decoder give one per value.
        floor: the least scale that can be learned, in the units of the data.
        x_shape: shape of one datum, to have "shared" learn one scale per entry of it.

    Raises: ValueError for another word, or a scale or floor that is not positive.
    """

    def __init__(self, scale: PositiveOption = "shared", floor: float = 1e-3, *, x_shape: Sequence[int] = ()) -> None:
        super().__init__()
        self.scale = Positive("scale", scale, floor, x_shape)
        self.num_parameters = 1 + self.scale.num_parameters

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """(..., *parameter_shape) -> a distribution with event shape `x_shape`."""
        loc, *raw = self.split(parameters, x_shape)
        return dist.Normal(loc, self.scale(raw, loc)).to_event(len(x_shape))
