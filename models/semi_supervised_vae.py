"""The variational autoencoder of data that are labelled in part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import BoolTensor, Tensor, nn

from pvae.models.checks import check_shape, likelihood_or, part_or
from pvae.models.likelihoods import Bernoulli
from pvae.models.priors import StandardNormal
from pvae.nets import MLP, class_numbers, one_hot
from pvae.support.refusals import whole, widths

__all__ = ["SemiSupervisedVAE"]


class SemiSupervisedVAE(nn.Module):
    """A class and a style: y ~ Categorical(softmax(logits)), p(z), p(x | y, z) = likelihood(decoder(z, onehot(y))).

    Batches are (x, y) or x alone, labels being numbers or one-hot rows; -1, or a row of zeros, is a missing label. Log
    weights are those of what was seen: of log p(x, y) for a datum with a label, of log p(x) = log sum_y p(x, y) for one
    without, whose y is summed out unless the guide draws it. `SemiSupervised` is the guide that classifies; with others
    y is summed out in the model.

    Args:
        x_shape: shape of one datum, such as (1, 28, 28).
        latent_dim: dimensions of z.
        num_classes: values of y, 0 ... num_classes - 1.
        likelihood: from the decoder's output to the distribution of x; by default `Bernoulli`.
        prior: its call gives p(z); by default `StandardNormal(latent_dim)`.
        decoder: from (..., latent_dim + num_classes) to (..., *likelihood.parameter_shape(x_shape)); by default an MLP
            with two hidden layers of 200 units.

    Attributes: `logits` (num_classes,) of p(y), equal at the start.

    Sites: "y_observed" () where there is a label and "y_unobserved" () where there is none, as `pyro.sample` names them
        given an `obs_mask`, each masked elsewhere; "z" (latent_dim,) and "x" `x_shape`, in the plate "data".

    Raises: ValueError for a `latent_dim` below 1, fewer than 2 classes, or a batch that does not have the shape
        (B, *x_shape).

    Kingma, Rezende, Mohamed and Welling (2014), Semi-supervised Learning with Deep Generative Models (M2).
    """

    takes_labels = True

    def __init__(
        self,
        x_shape: Sequence[int],
        latent_dim: int,
        num_classes: int = 10,
        *,
        likelihood: nn.Module | None = None,
        prior: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.x_shape = widths("x_shape", x_shape, usual=(1, 28, 28))
        self.latent_dim = whole("latent_dim", latent_dim, usual=8)
        self.num_classes = whole("num_classes", num_classes, 2, usual=10)
        self.likelihood = likelihood_or(likelihood, Bernoulli)
        self.prior = part_or("prior", prior, lambda: StandardNormal(self.latent_dim), usual="StandardNormal(8)")
        parameter_shape = self.likelihood.parameter_shape(self.x_shape)
        width = self.latent_dim + self.num_classes
        self.decoder = part_or(
            "decoder", decoder, lambda: MLP(width, (200, 200), parameter_shape), usual="pvae.nets.MLP"
        )
        self.logits = nn.Parameter(torch.zeros(self.num_classes))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Run the model on x (B, *x_shape), with labels y, (B,) or (B, C), or without any; returns the observed x."""
        check_shape(self, x)
        pyro.module("semi_supervised_vae", self)
        y = class_numbers(y, x)
        classes = dist.Categorical(logits=self.logits)
        with pyro.plate("data", len(x)):
            # In two statements, as pyro.sample(obs_mask=...) would drop the annotation.
            with poutine.mask(mask=cast(BoolTensor, y >= 0)):
                seen = pyro.sample("y_observed", classes, obs=y.clamp(min=0))
            with poutine.mask(mask=cast(BoolTensor, y < 0)):
                guessed = pyro.sample("y_unobserved", classes, infer={"enumerate": "parallel"})
            z = pyro.sample("z", self.prior())
            parameters = self.decode(z, torch.where(y >= 0, seen, guessed))
            return pyro.sample("x", self.likelihood(parameters, self.x_shape), obs=x)

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """What `likelihood` takes, at styles z (..., latent_dim) and classes y (...), which broadcast."""
        classes = one_hot(y, self.num_classes).to(z)
        lead = torch.broadcast_shapes(z.shape[:-1], y.shape)
        parts = [z.expand(*lead, self.latent_dim), classes.expand(*lead, self.num_classes)]
        output: Tensor = self.decoder(torch.cat(parts, -1))
        return output
