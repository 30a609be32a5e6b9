"""The discretised logistic likelihood of values on a grid, such as 8-bit pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pvae.models.likelihoods.per_value import PerValue, Positive, PositiveOption
from pvae.support.refusals import whole

__all__ = ["DiscretizedLogistic", "LogisticBins"]


class _Grid(constraints.Constraint):
    """The values k / (num_values - 1), k = 0 ... num_values - 1."""

    is_discrete = True

    def __init__(self, num_values: int) -> None:
        self.num_values = num_values

    def check(self, value: Tensor) -> Tensor:
        level = value * (self.num_values - 1)
        return (value >= 0) & (value <= 1) & ((level - level.round()).abs() < 1e-3)


class LogisticBins(dist.TorchDistribution):
    """The mass that Logistic(loc, scale) has in the bins about 0, 1 / (n - 1), ..., 1; the end bins take the tails.

    With bins one unit wide, from b to a in units of the scale, log P = log sigmoid(a) + log sigmoid(-b) +
    log(1 - exp(b - a)), which is exact however little the mass.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
    }

    def __init__(self, loc: Tensor, scale: Tensor, num_values: int, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.num_values = num_values
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The grid."""
        return _Grid(self.num_values)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> LogisticBins:
        """The same with a larger batch shape."""
        loc, scale = self.loc.expand(*batch_shape), self.scale.expand(*batch_shape)
        return LogisticBins(loc, scale, self.num_values, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log masses of values on the grid."""
        if self._validate_args:
            self._validate_sample(value)
        top = self.num_values - 1
        level, width = (value * top).round(), self.scale * top
        above = (level + 0.5 - self.loc * top) / width
        below = (level - 0.5 - self.loc * top) / width
        inside = logsigmoid(above) + logsigmoid(-below) + (-torch.expm1(-1 / width)).log()
        ends = torch.where(level == top, logsigmoid(-below), inside)
        return torch.where(level == 0, logsigmoid(above), ends)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws on the grid, of shape (*sample_shape, *batch_shape)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        value = self.loc + self.scale * uniform.logit(torch.finfo(self.loc.dtype).tiny)
        top = self.num_values - 1
        return (value * top).round().clamp(0, top) / top

    @property
    def mean(self) -> Tensor:
        """The mean on the grid: E[k] = sum_k P(value >= k)."""
        top = self.num_values - 1
        total = torch.zeros_like(self.loc)
        # One level after the other, for all at once would take 255 images.
        for level in range(1, self.num_values):
            total = total + ((self.loc - (level - 0.5) / top) / self.scale).sigmoid()
        return total / top


class DiscretizedLogistic(PerValue):
    """Values k / 255 in [0, 1]: p(x | z) = prod_d P(Logistic(loc_d, scale) in the bin about x_d), masses that sum to 1.

    The end bins, about 0 and 1, take the tails. Data are of kind "unit", as 8-bit images divided by 255.

    Args:
        num_values: the values are k / (num_values - 1), k = 0 ... num_values - 1.
        scale: a number to hold it fixed; "shared" to learn one scale for all values; "learned" to have the decoder
            give one per value.
        floor: the least scale that can be learned, in units of the whole interval.
        x_shape: shape of one datum, to have "shared" learn one scale per entry of it.

    Raises: ValueError for fewer than 2 values, another word, or a scale or floor that is not positive.

    Kingma et al. (2016), Improving Variational Inference with Inverse Autoregressive Flow; Salimans et al. (2017).
    """

    def __init__(
        self,
        num_values: int = 256,
        scale: PositiveOption = "learned",
        floor: float = 1e-4,
        *,
        x_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.num_values = whole("num_values", num_values, 2, usual="256, as 8-bit data have")
        self.scale = Positive("scale", scale, floor, x_shape)
        self.num_parameters = 1 + self.scale.num_parameters

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """Locs, then raw scales where learned (..., *parameter_shape) -> event shape `x_shape`."""
        loc, *raw = self.split(parameters, x_shape)
        return LogisticBins(loc, self.scale(raw, loc), self.num_values).to_event(len(x_shape))
