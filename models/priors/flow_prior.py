"""The prior that is a normalising flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from pvae.support.autoregressive import (
    ComposedTransform,
    MonotonicAffineTransform,
    NormalizingFlow,
    autoregressive_step,
)
from pvae.support.refusals import whole, widths

__all__ = ["FlowPrior"]


class FlowPrior(nn.Module):
    """A masked autoregressive flow: e = f_T(... f_1(z)) is N(0, I), so that p(z) = N(e; 0, I) |det de / dz|.

    Each step is e_i = exp(s_i) z_i + t_i, where a masked net gives s_i and t_i of the numbers before i, in an order
    that is reversed from each step to the next. The density of any z, which is what training and log p(x) take, is one
    pass; a draw takes latent_dim passes per step. It starts near the standard normal.

    Args:
        latent_dim: dimensions of z; of one alone it is a Gaussian.
        length: T.
        step_hidden: widths of the hidden layers of each step's masked net (tanh).

    Raises: ValueError for a `latent_dim`, length or width below 1.

    Papamakarios, Pavlakou and Murray (2017), Masked Autoregressive Flow for Density Estimation; as a prior, Chen et al.
    (2017), Variational Lossy Autoencoder.
    """

    zero: Tensor

    def __init__(self, latent_dim: int, length: int = 4, step_hidden: Sequence[int] = (128,)) -> None:
        super().__init__()
        self.latent_dim = latent_dim = whole("latent_dim", latent_dim, usual=8)
        length = whole("length", length, usual="4; StandardNormal has none")
        step_hidden = widths("step_hidden", step_hidden, usual=(128,))
        before = torch.ones(latent_dim, latent_dim, dtype=torch.bool).tril(-1)
        self.steps = nn.ModuleList(
            autoregressive_step(
                latent_dim, 0, step_hidden, before.T if index % 2 else before, MonotonicAffineTransform, ((), ())
            )
            for index in range(length)
        )
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Event shape (latent_dim,)."""
        noise = dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1)
        return _Flow(ComposedTransform(*(step() for step in self.steps)), noise)


class _Flow(NormalizingFlow, TorchDistributionMixin):
    """Zuko's distribution with what Pyro asks of one."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
