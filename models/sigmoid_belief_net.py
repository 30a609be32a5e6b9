"""The sigmoid belief net: layers of binary latents, each the logistic regression of the one below."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pvae.models.checks import check_shape
from pvae.support.glorot import glorot
from pvae.support.refusals import widths

__all__ = ["SigmoidBeliefNet"]

_MOST_BITS = 16


class SigmoidBeliefNet(nn.Module):
    """Binary layers from top to data: h_L ~ Bernoulli(sigmoid(b)), h_l | h_l+1 ~ Bernoulli(sigmoid(W_l h_l+1 + b_l)).

    The data x are the layer below h_1. A draw has no pathwise gradient: train with `gradient="score"`.

    Args:
        x_shape: shape of one datum.
        layer_dims: units of h_1, ..., h_L, from the data up.

    Sites: "h1" ... "hL", of shapes (layer_dims[l],), and "x" `x_shape`, in the plate "data".

    Raises: ValueError for no layer, a layer without units, or a batch that does not have the shape (B, *x_shape).

    Neal (1992), Connectionist Learning of Belief Networks; Mnih and Gregor (2014).
    """

    def __init__(self, x_shape: Sequence[int], layer_dims: Sequence[int] = (200, 200)) -> None:
        super().__init__()
        self.x_shape = widths("x_shape", x_shape, usual=(1, 28, 28))
        self.layer_dims = widths("layer_dims", layer_dims)
        if not self.layer_dims:
            raise ValueError("layer_dims must name at least one layer, got none; try (200, 200)")
        sizes = [math.prod(self.x_shape), *self.layer_dims]
        self.top = nn.Parameter(torch.zeros(self.layer_dims[-1]))
        self.layers = nn.ModuleList(glorot(nn.Linear(above, below)) for below, above in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Run the model on a batch x (B, *x_shape); returns the observed x."""
        check_shape(self, x)
        pyro.module("sigmoid_belief_net", self)
        with pyro.plate("data", len(x)):
            logits = self.top
            for index in reversed(range(len(self.layers))):
                h = pyro.sample(f"h{index + 1}", dist.Bernoulli(logits=logits).to_event(1))
                logits = self.layers[index](h)
            logits = logits.unflatten(-1, self.x_shape)
            return pyro.sample("x", dist.Bernoulli(logits=logits).to_event(len(self.x_shape)), obs=x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log p(x), (B,), in nats, by summing over all states of the latents.

        Raises: ValueError for more than 16 latent bits.
        """
        check_shape(self, x)
        num_bits = sum(self.layer_dims)
        if num_bits > _MOST_BITS:
            raise ValueError(f"log p(x) is summed over at most 2^{_MOST_BITS} states, got {num_bits} bits; estimate it")
        codes = torch.arange(2**num_bits, device=x.device)
        states = (codes[:, None] >> torch.arange(num_bits, device=x.device)).remainder(2).to(self.top)
        layers = states.split(self.layer_dims, -1)
        log_prior = dist.Bernoulli(logits=self.top).log_prob(layers[-1]).sum(-1)
        for index in range(1, len(layers)):
            logits = self.layers[index](layers[index])
            log_prior = log_prior + dist.Bernoulli(logits=logits).log_prob(layers[index - 1]).sum(-1)
        logits = self.layers[0](layers[0])
        log_likelihood = x.flatten(1) @ logits.T - nn.functional.softplus(logits).sum(-1)
        return (log_prior + log_likelihood).logsumexp(-1)
