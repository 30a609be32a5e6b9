"""The deep state-space model of sequences, of different lengths or with gaps."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pvae.models.checks import check_shape, likelihood_or, part_or
from pvae.models.likelihoods import Bernoulli
from pvae.models.priors import StandardNormal
from pvae.models.transitions import Gated
from pvae.nets import MLP
from pvae.support.masks import as_mask
from pvae.support.refusals import whole, widths

__all__ = ["StateSpace"]


class StateSpace(nn.Module):
    """A Markov chain of latents, each seen through an observation: p(z_1) prod_t p(z_t | z_t-1) prod_t p(x_t | z_t).

    A batch is x, or (x, observed) where some steps are missing: sequences of different lengths are padded to one, and
    a gap is filled with any value that x may take. Steps that are not observed have no part in the density, so

        log p(x) = log p(x_t : observed_t)

    exactly, while their latents keep the prior that the steps before give them. With an affine transition and emission
    and normal noise it is the Kalman filter's model.

    Args:
        x_shape: shape of one sequence, (T, ...) of T steps.
        latent_dim: dimensions of each z_t.
        likelihood: from the emission's output to the distribution of x_t; by default `Bernoulli`.
        prior: its call gives p(z_1); by default `StandardNormal(latent_dim)`.
        transition: its call on z_t-1 (..., latent_dim) gives p(z_t | z_t-1); by default `transitions.Gated`.
        emission: from (..., latent_dim) to (..., *likelihood.parameter_shape(x_shape[1:])); by default an MLP with two
            hidden layers of 200 units.

    Sites: "z1" ... "zT" (latent_dim,) and "x" `x_shape`, in the plate "data".

    Raises: ValueError for a shape without steps, a `latent_dim` below 1, or a batch that does not have the shapes
        (B, *x_shape) and (B, T).

    Krishnan, Shalit and Sontag (2015), Deep Kalman Filters.
    """

    def __init__(
        self,
        x_shape: Sequence[int],
        latent_dim: int,
        *,
        likelihood: nn.Module | None = None,
        prior: nn.Module | None = None,
        transition: nn.Module | None = None,
        emission: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.x_shape = widths("x_shape", x_shape, usual=(28, 28))
        if len(self.x_shape) < 2 or self.x_shape[0] < 2:
            raise ValueError(
                f"x_shape must be (T, ...) of at least 2 steps, got {self.x_shape}; put the steps of a sequence first, "
                "such as the rows of an image: (28, 28)"
            )
        self.latent_dim = whole("latent_dim", latent_dim, usual=8)
        self.likelihood = likelihood_or(likelihood, Bernoulli)
        self.prior = part_or("prior", prior, lambda: StandardNormal(self.latent_dim), usual="StandardNormal(8)")
        self.transition = part_or("transition", transition, lambda: Gated(self.latent_dim), usual="Gated(8)")
        parameter_shape = self.likelihood.parameter_shape(self.x_shape[1:])
        self.emission = part_or(
            "emission", emission, lambda: MLP(self.latent_dim, (200, 200), parameter_shape), usual="pvae.nets.MLP"
        )

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Run the model on a batch x (B, *x_shape), of which `observed` (B, T) steps count; returns the observed x."""
        check_shape(self, x)
        if observed is not None and observed.shape != x.shape[:2]:
            raise ValueError(
                f"observed must say of each step whether it counts, {tuple(x.shape[:2])}, got {tuple(observed.shape)}; "
                "give one bool per datum and step"
            )
        pyro.module("state_space", self)
        with pyro.plate("data", len(x)):
            z = [pyro.sample("z1", self.prior())]
            for step in range(2, self.x_shape[0] + 1):
                z.append(pyro.sample(f"z{step}", self.transition(z[-1])))
            steps = self.given(torch.stack(z, -2))
            if observed is not None:
                steps = steps.mask(as_mask(observed))
            return pyro.sample("x", steps.to_event(1), obs=x)

    def given(self, z: Tensor) -> dist.TorchDistribution:
        """p(x_t | z_t) for z (..., latent_dim), of event shape x_shape[1:]."""
        step: dist.TorchDistribution = self.likelihood(self.emission(z), self.x_shape[1:])
        return step

    def forecast(self, z: Tensor, num_steps: int) -> Tensor:
        """Draw the latents of the steps that follow one with latents z (..., latent_dim): (..., num_steps, latent_dim).

        Raises: ValueError for fewer than 1 step.
        """
        steps: list[Tensor] = []
        for _ in range(whole("num_steps", num_steps, usual=8)):
            z = self.transition(z).sample()
            steps.append(z)
        return torch.stack(steps, -2)
