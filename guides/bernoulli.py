"""The guide for binary latents."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints

from pvae.guides.amortized import Encoder
from pvae.nets import glorot
from pvae.sites import LatentSite, latent_sites

__all__ = ["Bernoulli"]


class Bernoulli(nn.Module):
    """Binary layers from the data up: q(h | x) = q(h_1 | x) prod_l q(h_l+1 | h_l), each a product of Bernoullis.

    The model's last latent site, next to the data, is h_1; its logits come from the encoder, those of every other site
    from an affine map of the site below. Its draws have no pathwise gradient: train with `gradient="score"`.

    Args:
        model: any model whose latent sites are binary; they are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default; `nn.Flatten()` for an affine map.

    Raises: ValueError for a site that is not binary, nested plates, or data of another shape than the example.

    Mnih and Gregor (2014), Neural Variational Inference and Learning in Belief Networks.
    """

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.sites = tuple(reversed(latent_sites(model, example_batch)))
        for site in self.sites:
            _require_bits(site)
        widths = [site.event_shape.numel() for site in self.sites]
        self.encoder = Encoder(example_batch, widths[0], hidden, encoder)
        self.layers = nn.ModuleList(glorot(nn.Linear(below, above)) for below, above in itertools.pairwise(widths))
        self.layers.to(self.encoder.head.weight.dtype)

    def forward(self, *batch: Tensor) -> None:
        """Sample every latent site of the model, for each datum of the batch."""
        pyro.module("bernoulli", self)
        logits = self.encoder(*batch)
        with pyro.plate(self.sites[0].data_plate.name, len(batch[0]), dim=self.sites[0].data_plate.dim):
            for site, above in itertools.zip_longest(self.sites, self.layers):
                shape = site.event_shape
                bits = dist.Bernoulli(logits=logits.unflatten(-1, shape)).to_event(len(shape))
                h = pyro.sample(site.name, bits)
                if above is not None:
                    logits = above(h.flatten(h.dim() - len(shape)))


def _require_bits(site: LatentSite) -> None:
    support = site.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is not constraints.boolean:
        raise ValueError(f"site '{site.name}' is not binary, this guide serves binary sites; use MeanField")
    if site.plates or not site.event_shape:
        raise ValueError(
            f"site '{site.name}' has plates inside the data plate or is a scalar; make its dims part of the event with "
            "to_event"
        )
