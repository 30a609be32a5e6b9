"""The variational autoencoder's generative half, with any prior, likelihood and decoder."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from pvae.models.checks import check_shape, likelihood_or, part_or
from pvae.models.likelihoods import Bernoulli, observed_only
from pvae.models.priors import StandardNormal
from pvae.nets import MLP
from pvae.support.refusals import whole, widths

__all__ = ["VAE"]


class VAE(nn.Module):
    """The VAE's generative half, p(z) p(x | z) with p(x | z) = likelihood(decoder(z)).

    Args:
        x_shape: shape of one datum, such as (1, 28, 28).
        latent_dim: dimensions of z.
        likelihood: from the decoder's output to the distribution of x; by default `Bernoulli`.
        prior: its call gives p(z); by default `StandardNormal(latent_dim)`.
        decoder: from (..., latent_dim) to (..., *likelihood.parameter_shape(x_shape)); by default an MLP
            with two hidden layers of 200 units.

    Sites: "z" (latent_dim,) and "x" `x_shape`, in the plate "data". With a batch (x, observed) the density of "x" is
    log p(x_obs | z), that of the entries where the bool tensor `observed` holds.

    Raises: ValueError for a `latent_dim` below 1, or a batch that does not have the shape (B, *x_shape).

    Kingma and Welling (2014); Rezende, Mohamed and Wierstra (2014).
    """

    def __init__(
        self,
        x_shape: Sequence[int],
        latent_dim: int,
        *,
        likelihood: nn.Module | None = None,
        prior: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.x_shape = widths("x_shape", x_shape, usual=(1, 28, 28))
        self.latent_dim = whole("latent_dim", latent_dim, usual=8)
        self.likelihood = likelihood_or(likelihood, Bernoulli)
        self.prior = part_or("prior", prior, lambda: StandardNormal(self.latent_dim), usual="StandardNormal(8)")
        parameter_shape = self.likelihood.parameter_shape(self.x_shape)
        self.decoder = part_or(
            "decoder", decoder, lambda: MLP(self.latent_dim, (200, 200), parameter_shape), usual="pvae.nets.MLP"
        )

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Run the model on a batch x (B, *x_shape), of which only `observed` entries count; returns the observed x."""
        check_shape(self, x)
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            likelihood = self.likelihood(self.decoder(z), self.x_shape)
            if observed is not None:
                likelihood, x = observed_only(likelihood, x, observed)
            return pyro.sample("x", likelihood, obs=x)
