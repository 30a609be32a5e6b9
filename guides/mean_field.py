"""The mean-field Gaussian guide."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

from pvae.guides.amortized import Encoder, constrained, read
from pvae.guides.placing import arrange, free_shape, in_plates, width

__all__ = ["MeanField"]


class MeanField(nn.Module):
    """Independent Gaussians: q(z | x) = prod_d N(z_d | loc_d(x), scale_d(x)^2) carried to each site's support.

    Args:
        model: any model within the contract; its latent sites are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default.
        min_scale: floor on each scale.

    Raises: ValueError for discrete sites, or data of another shape than the example.

    Kingma and Welling (2014).
    """

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        self.sites = read(model, example_batch)
        self.min_scale = min_scale
        self.widths = [2 * width(site) for site in self.sites]
        self.encoder = Encoder(example_batch, sum(self.widths), hidden, encoder)

    def forward(self, *batch: Tensor) -> None:
        """Sample every latent site of the model, for each datum of the batch."""
        pyro.module("mean_field", self)
        parts = self.encoder(*batch).split(self.widths, -1)
        with in_plates(self.sites, len(batch[0])) as inside:
            for site, part in zip(self.sites, parts, strict=True):
                shape = free_shape(site)
                loc, raw = (arrange(site, each, shape) for each in part.chunk(2, -1))
                base = dist.Normal(loc, self.min_scale + softplus(raw)).to_event(len(shape))
                with inside(site):
                    pyro.sample(site.name, constrained(base, site.support))
