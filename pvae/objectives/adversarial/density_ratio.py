"""What adversarial objectives share: a discriminator, and the logistic regression that makes it a log density ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pvae.nets import MLP
from pvae.pair.outputs import output_of, require_shape
from pvae.pair.sites import Batch, latent_sites
from pvae.support.refusals import widths

__all__ = ["Discriminator", "example_latents", "logistic", "negative_divergence"]


class Discriminator(nn.Module):
    """T(values), (B,): the logit that values come from the first of two distributions and not from the second.

    Args:
        example: one batch of each value, read for its shape and type.
        hidden: widths of the default net's hidden layers.
        net: from the values to (B,) or (B, 1), to use instead of an MLP on all of them side by side.

    Raises: ValueError for a net that gives more or fewer numbers than one per datum.
    """

    def __init__(self, example: Batch, hidden: Sequence[int], net: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.default, hidden = net is None, widths("hidden", hidden)
        if net is None:
            like = _floating(example)
            # Smooth: at a kink the gradient hangs on rounding, and a graph rounds otherwise than the pair itself.
            self.net: Any = MLP(sum(part[0].numel() for part in example), hidden, 1, nn.ELU).to(like)
            return
        logits = output_of("discriminator", net, example, usual="pvae.nets.MLP(in_shape, (200,), 1)")
        require_shape("discriminator", logits, (len(example[0]),), (len(example[0]), 1))
        self.net = net

    def forward(self, *values: Tensor) -> Tensor:
        """T, (B,)."""
        if self.default:
            weight = next(self.net.parameters())
            values = (torch.cat([part.reshape(len(part), -1).to(weight) for part in values], 1),)
        return self.net(*values).reshape(-1)


def logistic(of_first: Tensor, of_second: Tensor) -> Tensor:
    """log sigmoid(T(a)) + log sigmoid(-T(b)), (B,), from the logits T of draws a of one distribution, b of another.

    Its mean is greatest, 2 JSD(first || second) - log 4, at T = log p_first - log p_second.
    """
    return logsigmoid(of_first) + logsigmoid(-of_second)


def negative_divergence(of_first: Tensor, of_second: Tensor) -> Tensor:
    """-(`logistic` + log 4) / 2, (B,): minus the Jensen-Shannon divergence in nats, as far as the logits show it."""
    return -0.5 * (logistic(of_first, of_second) + math.log(4))


def example_latents(model: Any, batch: Batch) -> Tensor:
    """A batch of latents of the model, all sites side by side, (B, dims), to read the shape of."""
    sites = latent_sites(model, batch)
    dims = sum(site.event_shape.numel() * math.prod(plate.size for plate in site.plates) for site in sites)
    like = _floating(batch)
    return like.new_zeros(len(batch[0]), dims)


def _floating(batch: Batch) -> Tensor:
    """A tensor of the type and on the device that a net for the batch is to have."""
    return next((part for part in batch if part.is_floating_point()), torch.zeros((), device=batch[0].device))
