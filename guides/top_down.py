"""The guide that infers the layers of a hierarchy from the top down."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pvae.guides.parts.amortized import AmortizedGuide, Encoder, read
from pvae.guides.parts.hierarchical import Conditional, Draws
from pvae.guides.parts.placing import in_plates, width
from pvae.support.arguments import check_min_scale
from pvae.support.refusals import widths

__all__ = ["TopDown"]


class TopDown(AmortizedGuide):
    """Gaussian layers in the model's own order: q(z | x) = q(z_L | x) prod_l q(z_l | z_l+1, ..., z_L, x).

    z_L, the top, is the first latent site of the model. The numbers of one layer are independent given x and all draws
    above, which are inputs of the layer's net beside the encoder's features; each is carried to its support. Where the
    model is a chain, the exact posterior has this order, too.

    Args:
        model: any model within the contract; its latent sites are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the hidden layers (tanh) of the default encoder, and of each layer's net.
        encoder: a net from the batch to features (B, F), used instead of the default.
        min_scale: floor on each scale.

    Raises: ValueError for discrete sites, or data of another shape than the example.

    Tomczak and Welling (2018), VAE with a VampPrior, section 4.
    """

    name = "top_down"

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
        self.min_scale = check_min_scale(min_scale)
        hidden = widths("hidden", hidden)
        sizes = [width(site) for site in self.sites]
        above = itertools.accumulate(sizes[:-1])
        nets = [Conditional(num_draws, hidden, 2 * own) for num_draws, own in zip(above, sizes[1:], strict=True)]
        self.nets = nn.ModuleList(nets)
        self.num_features = [2 * sizes[0], *(net.num_features for net in nets)]
        self.encoder = Encoder(example_batch, sum(self.num_features), hidden, encoder)
        self.nets.to(self.encoder.head.weight.dtype)

    def draw(self, numbers: Tensor) -> None:
        """Sample every latent site of the model from the numbers of each datum, (B, num_outputs)."""
        features = numbers.split(self.num_features, -1)
        draws = Draws()
        with in_plates(self.sites, len(numbers)) as inside:
            for index, (site, own) in enumerate(zip(self.sites, features, strict=True)):
                own = self.nets[index - 1](own, draws.rows) if index else own
                with inside(site):
                    draws.sample(site, own, self.min_scale)
