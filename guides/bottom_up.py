"""The guide that infers the layers of a hierarchy from the data up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pvae.guides.parts.amortized import AmortizedGuide, Encoder, read
from pvae.guides.parts.hierarchical import Conditional, Draws
from pvae.guides.parts.placing import in_plates, width
from pvae.support.arguments import check_min_scale
from pvae.support.refusals import flag, widths

__all__ = ["BottomUp"]


class BottomUp(AmortizedGuide):
    """Gaussian layers from the data up: q(z | x) = q(z_1 | x) prod_l q(z_l+1 | z_l).

    z_1, next to the data, is the last latent site of the model. The numbers of one layer are independent given the draw
    below; each is carried to its support. Where the model is a chain p(z_L) ... p(z_1 | z_2) p(x | z_1), the exact
    posterior factorises this way, too.

    Args:
        model: any model within the contract; its latent sites are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the hidden layers (tanh) of the default encoder, and of each higher layer's net.
        encoder: a net from the batch to features (B, F), used instead of the default.
        sees_data: whether higher layers take the encoder's features, too: q(z_l+1 | z_l, x).
        min_scale: floor on each scale.

    Raises: ValueError for discrete sites, or data of another shape than the example.

    Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.
    """

    name = "bottom_up"

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
        sees_data: bool = False,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        self.sites = tuple(reversed(read(model, example_batch)))
        self.min_scale = check_min_scale(min_scale)
        hidden, sees_data = widths("hidden", hidden), flag("sees_data", sees_data)
        sizes = [width(site) for site in self.sites]
        nets = [Conditional(below, hidden, 2 * own, sees_data) for below, own in itertools.pairwise(sizes)]
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
                own = self.nets[index - 1](own, draws.rows[-1:]) if index else own
                with inside(site):
                    draws.sample(site, own, self.min_scale)
