"""The gated transition, between an affine one and a net's."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pvae.nets import MLP
from pvae.support.glorot import glorot
from pvae.support.refusals import number, whole, widths

__all__ = ["Gated"]


class Gated(nn.Module):
    """p(z_t | z_t-1) = N(loc, diag(scale^2)) whose loc is, per dimension, more or less linear.

    loc = (1 - g) (W z + b) + g h(z) with the gate g(z) in (0, 1), and scale = floor + softplus(V tanh(h(z)) + c); g and
    h are nets. W starts as the identity: a latent stays where it is until it learns to move.

    Args:
        latent_dim: dimensions of z.
        hidden: widths of the hidden layers (tanh) of both nets.
        floor: the least scale.

    Raises: ValueError for a `latent_dim` below 1, or a floor that is not positive.

    Krishnan, Shalit and Sontag (2017), Structured Inference Networks for Nonlinear State Space Models.
    """

    def __init__(self, latent_dim: int, hidden: Sequence[int] = (64,), floor: float = 1e-3) -> None:
        super().__init__()
        latent_dim = whole("latent_dim", latent_dim, usual=8)
        self.floor = number("floor", floor, above=0, usual=1e-3)
        hidden = widths("hidden", hidden, usual=(64,))
        self.gate = MLP(latent_dim, hidden, latent_dim)
        self.proposal = MLP(latent_dim, hidden, latent_dim)
        self.linear = nn.Linear(latent_dim, latent_dim)
        self.raw_scale = glorot(nn.Linear(latent_dim, latent_dim))
        with torch.no_grad():
            nn.init.eye_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """The distribution of z_t, of event shape (latent_dim,), given z_t-1 (..., latent_dim)."""
        gate, proposal = self.gate(z).sigmoid(), self.proposal(z)
        loc = (1 - gate) * self.linear(z) + gate * proposal
        return dist.Normal(loc, self.floor + softplus(self.raw_scale(proposal.tanh()))).to_event(1)
