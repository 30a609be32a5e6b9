"""The Student-t likelihood of real values with outliers."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor

from pvae.models.likelihoods.per_value import PerValue, Positive, PositiveOption

__all__ = ["StudentT"]


class StudentT(PerValue):
    """Real values with outliers: p(x | z) = prod_d StudentT(x_d | df, loc_d, scale), with floors on scale and df.

    Args:
        scale: a number to hold it fixed; "shared" to learn one scale for all values; "learned" to have the
            decoder give one per value.
        df: degrees of freedom, by the same words; the fewer, the heavier the tails.
        floor: the least scale that can be learned, in the units of the data.
        min_df: the least df that can be learned; above 2 the variance exists.
        x_shape: shape of one datum, to have "shared" learn one number per entry of it.

    Raises: ValueError for another word, or a number or floor that is not positive.

    Takahashi et al. (2018), Student-t Variational Autoencoder for Robust Density Estimation.
    """

    def __init__(
        self,
        scale: PositiveOption = "shared",
        df: PositiveOption = "shared",
        floor: float = 1e-3,
        min_df: float = 2.0,
        *,
        x_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.scale = Positive("scale", scale, floor, x_shape)
        self.df = Positive("df", df, min_df, x_shape, floor_name="min_df")
        self.num_parameters = 1 + self.scale.num_parameters + self.df.num_parameters

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """Locs, then scales and then dfs where learned (..., *parameter_shape) -> event shape `x_shape`."""
        loc, *raw = self.split(parameters, x_shape)
        scales, dfs = raw[: self.scale.num_parameters], raw[self.scale.num_parameters :]
        return dist.StudentT(self.df(dfs, loc), loc, self.scale(scales, loc)).to_event(len(x_shape))
