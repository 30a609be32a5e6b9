"""Pairs with a copy of every parameter per datum: the gradient of one datum's copy is one draw of the gradient."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["BITS", "LINE", "Bits", "BitsGuide", "Line", "LineGuide", "X"]

X = 1.3
# q(z | x) = N(0.2, exp(-0.4)) at x, where sticking the landing is off the most visibly.
LINE = {"theta": [0.0], "slope": [0.5], "loc": [-0.45], "log_scale": [-0.2]}
BITS = {
    "bias": [0.3, -0.5, 0.1],
    "weight": [1.0, -0.7, 0.4],
    "guide_slope": [0.2, 0.1, -0.3],
    "guide_bias": [-0.1, 0.4, 0.2],
}


class _Copies(nn.Module):
    """Parameters by name, each (copies, D), or (D,) for none."""

    def __init__(self, values: dict[str, list[float]], copies: int | None) -> None:
        super().__init__()
        for name, value in values.items():
            one = torch.tensor(value, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(one if copies is None else one.repeat(copies, 1)))


class Line(_Copies):
    """z ~ N(0, 1), x | z ~ N(theta + z, 1), both (B, 1)."""

    theta: nn.Parameter

    def __init__(self, copies: int | None) -> None:
        super().__init__({"theta": LINE["theta"]}, copies)

    def forward(self, x: Tensor) -> None:
        """The model of x (B, 1)."""
        pyro.module("line", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.theta + z, 1.0).to_event(1), obs=x)


class LineGuide(_Copies):
    """q(z | x) = N(slope x + loc, exp(log_scale)^2)."""

    slope: nn.Parameter
    loc: nn.Parameter
    log_scale: nn.Parameter

    def __init__(self, copies: int | None) -> None:
        super().__init__({name: LINE[name] for name in ("slope", "loc", "log_scale")}, copies)

    def forward(self, x: Tensor) -> None:
        """The guide of x (B, 1)."""
        pyro.module("line_guide", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x + self.loc, self.log_scale.exp()).to_event(1))


class Bits(_Copies):
    """y ~ Bernoulli(sigmoid(bias)), three of them, x | y ~ N(weight . y, 1)."""

    bias: nn.Parameter
    weight: nn.Parameter

    def __init__(self, copies: int | None) -> None:
        super().__init__({name: BITS[name] for name in ("bias", "weight")}, copies)

    def forward(self, x: Tensor) -> None:
        """The model of x (B, 1)."""
        pyro.module("bits", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(logits=self.bias).to_event(1))
            pyro.sample("x", dist.Normal((y * self.weight).sum(-1, keepdim=True), 1.0).to_event(1), obs=x)


class BitsGuide(_Copies):
    """q(y | x) = prod_d Bernoulli(sigmoid(slope_d x + bias_d))."""

    guide_slope: nn.Parameter
    guide_bias: nn.Parameter

    def __init__(self, copies: int | None) -> None:
        super().__init__({name: BITS[name] for name in ("guide_slope", "guide_bias")}, copies)

    def forward(self, x: Tensor) -> None:
        """The guide of x (B, 1)."""
        pyro.module("bits_guide", self)
        with pyro.plate("data", len(x)):
            logits = self.guide_slope * x + self.guide_bias
            pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1))
