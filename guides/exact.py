"""The exact posterior of the linear-Gaussian model."""

from __future__ import annotations

import pyro
from torch import Tensor, nn

from pvae.models.linear_gaussian import LinearGaussian
from pvae.support.refusals import shown

__all__ = ["Exact"]


class Exact(nn.Module):
    """The exact posterior of `LinearGaussian`, q(z | x) = p(z | x): every log weight is log p(x).

    Of a batch (x, observed) it knows the observed entries alone, and every log weight is log p(x_obs).

    It has no parameters but the model's.

    Raises: ValueError for a model other than `LinearGaussian`.
    """

    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        if not isinstance(model, LinearGaussian):
            raise ValueError(f"the exact posterior is known for LinearGaussian, got {shown(model)}; use FullCovariance")
        self.model = model

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Sample z for each datum of x (B, D), of which only `observed` entries are known."""
        pyro.module("linear_gaussian", self.model)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.model.posterior(x, observed))
