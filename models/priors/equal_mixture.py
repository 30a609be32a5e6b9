"""The distribution that is an equal mixture of given ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["EqualMixture"]


class EqualMixture(dist.TorchDistribution):
    """p(z) = 1/M sum_m p_m(z), with a way to draw from it that need not draw from all components to keep one.

    So `dist.MixtureSameFamily` does, which takes M times the memory.

    Args:
        components: p_1, ..., p_M, of batch shape (M,) and event shape (D,).
        draw: from N to N draws of the mixture, (N, D).
        batch_shape: that of the mixture.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(
        self,
        components: dist.TorchDistribution,
        draw: Callable[[int], Tensor],
        batch_shape: Sequence[int] = (),
    ) -> None:
        self.components, self.draw = components, draw
        super().__init__(torch.Size(batch_shape), components.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> EqualMixture:
        """The same mixture for more draws."""
        return EqualMixture(self.components, self.draw, batch_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws without history, (*sample_shape, *batch_shape, D)."""
        shape = self.shape(sample_shape)
        with torch.no_grad():
            return self.draw(shape[:-1].numel()).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(z) of z (..., D), (...)."""
        (num_components,) = self.components.batch_shape
        at = value[..., None, :].expand(*value.shape[:-1], num_components, -1)
        return self.components.log_prob(at).logsumexp(-1) - math.log(num_components)
