"""The conditional VAE: data given a condition, such as digits given their label."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import pyro
import torch
from torch import Tensor, nn

from pvae.models.checks import check_part, check_shape, likelihood_or, part_or
from pvae.models.likelihoods import Bernoulli
from pvae.models.priors import ConditionalPrior
from pvae.nets import MLP
from pvae.support.refusals import whole, widths

__all__ = ["ConditionalVAE"]


class ConditionalVAE(nn.Module):
    """A VAE of data x given a condition c, p(z | c) p(x | z, c) with p(x | z, c) = likelihood(decoder([z, c])).

    A batch is (x, c), c being vectors: one-hot labels (`DataSet.with_labels` gives them) or any real numbers. Its log
    p is log p(x | c), and `pvae.sample(model, num, like=(x, c))` draws x given each c in turn.

    Args:
        x_shape: shape of one datum, such as (1, 28, 28).
        latent_dim: dimensions of z.
        condition_dim: width C of c, the number of classes for one-hot labels.
        likelihood: from the decoder's output to the distribution of x; by default `Bernoulli`.
        prior: its call with c gives p(z | c), by default `ConditionalPrior(condition_dim, latent_dim)`; with one whose
            call takes nothing, such as `StandardNormal(latent_dim)`, z does not depend on c.
        decoder: from (..., latent_dim + condition_dim) to (..., *likelihood.parameter_shape(x_shape)); by default an
            MLP with two hidden layers of 200 units.

    Sites: "z" (latent_dim,) and "x" `x_shape`, in the plate "data".

    Raises: ValueError for sizes below 1, or a batch that does not have the shapes (B, *x_shape) and (B, C).

    Sohn, Lee and Yan (2015), Learning Structured Output Representation using Deep Conditional Generative Models.
    """

    takes_labels = True

    def __init__(
        self,
        x_shape: Sequence[int],
        latent_dim: int,
        condition_dim: int,
        *,
        likelihood: nn.Module | None = None,
        prior: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.x_shape = widths("x_shape", x_shape, usual=(1, 28, 28))
        self.latent_dim = whole("latent_dim", latent_dim, usual=8)
        self.condition_dim = whole("condition_dim", condition_dim, usual=10)
        self.likelihood = likelihood_or(likelihood, Bernoulli)
        self.prior = part_or(
            "prior",
            prior,
            lambda: ConditionalPrior(self.condition_dim, self.latent_dim),
            usual="ConditionalPrior(condition_dim, latent_dim)",
        )
        self.prior_is_conditional = bool(inspect.signature(getattr(self.prior, "forward", self.prior)).parameters)
        parameter_shape = self.likelihood.parameter_shape(self.x_shape)
        width = self.latent_dim + self.condition_dim
        self.decoder = part_or(
            "decoder", decoder, lambda: MLP(width, (200, 200), parameter_shape), usual="pvae.nets.MLP"
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Run the model on data x (B, *x_shape) and conditions c (B, C); returns the observed x."""
        check_shape(self, x)
        fix = "give labels one-hot (DataSet.with_labels does), other conditions as vectors of that width"
        check_part(self, "conditions", c, (self.condition_dim,), fix)
        pyro.module("conditional_vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(c) if self.prior_is_conditional else self.prior())
            given = torch.cat([z, c.to(z).expand(*z.shape[:-1], -1)], -1)
            return pyro.sample("x", self.likelihood(self.decoder(given), self.x_shape), obs=x)
