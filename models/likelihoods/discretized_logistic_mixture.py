"""The discretised logistic mixture likelihood of values on a grid, such as 8-bit pixels."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pvae.models.likelihoods.discretized_logistic import LogisticBins
from pvae.support.refusals import number, whole

__all__ = ["DiscretizedLogisticMixture"]


class DiscretizedLogisticMixture(nn.Module):
    """Values k / 255 in [0, 1]: p(x | z) = prod_d sum_c w_dc P(Logistic(loc_dc, scale_dc) in the bin about x_d).

    The end bins, about 0 and 1, take the tails. Data are of kind "unit", as 8-bit images divided by 255. Every value
    has a mixture of its own: the channels of a pixel are independent given z, unlike in the paper.

    Args:
        num_components: logistics per value.
        num_values: the values are k / (num_values - 1), k = 0 ... num_values - 1.
        floor: the least scale, in units of the whole interval.

    Raises: ValueError for less than one component, fewer than 2 values, or a floor that is not positive.

    Salimans et al. (2017), PixelCNN++.
    """

    centers: Tensor

    def __init__(self, num_components: int = 5, num_values: int = 256, floor: float = 1e-4) -> None:
        super().__init__()
        self.num_components = num_components = whole("num_components", num_components, usual=5)
        self.num_values = whole("num_values", num_values, 2, usual="256, as 8-bit data have")
        self.floor = number("floor", floor, above=0, usual=1e-4)
        self.num_parameters = 3 * num_components
        # The components start apart, for those that start alike stay alike.
        centers = (torch.arange(num_components) + 0.5) / num_components
        self.register_buffer("centers", centers, persistent=False)

    def parameter_shape(self, x_shape: Sequence[int]) -> tuple[int, ...]:
        """(3, num_components, *x_shape): logits of weights, locs less the components' starts, raw scales."""
        return (3, self.num_components, *x_shape)

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """(..., *parameter_shape) -> a distribution with event shape `x_shape`."""
        dim = -1 - len(x_shape)
        logits, loc, raw = parameters.movedim(dim, -1).unbind(dim - 1)
        bins = LogisticBins(self.centers + loc, self.floor + softplus(raw), self.num_values)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), bins).to_event(len(x_shape))
