"""The point guide: with it, a VAE is a plain autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor

from pvae.guides.parts.amortized import AmortizedGuide, Encoder, read
from pvae.guides.parts.placing import arrange, free_shape, in_plates, width

__all__ = ["Delta"]


class Delta(AmortizedGuide):
    """A point: q(z | x) puts all mass on z = encoder(x), for every latent site.

    Under `ELBO(beta=0)` this trains the plain autoencoder, under `ELBO()` the penalised one whose codes are
    maximum a posteriori. A point has no density, so it gives no estimate of log p(x).

    Args:
        model: any model within the contract; its latent sites are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default.

    Raises: ValueError for discrete sites, or data of another shape than the example.

    Hinton and Salakhutdinov (2006).
    """

    name = "delta"

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.sites = read(model, example_batch)
        self.widths = [width(site) for site in self.sites]
        self.encoder = Encoder(example_batch, sum(self.widths), hidden, encoder)

    def draw(self, numbers: Tensor) -> None:
        """Place every latent site of the model from the numbers of each datum, (B, num_outputs)."""
        parts = numbers.split(self.widths, -1)
        with in_plates(self.sites, len(numbers)) as inside:
            for site, part in zip(self.sites, parts, strict=True):
                z = site.bijection(arrange(site, part, free_shape(site)))
                with inside(site):
                    pyro.sample(site.name, dist.Delta(z, event_dim=len(site.event_shape)))
