"""What the guides of discrete latents share: layers from the data up, each an affine map of the draw below."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pvae.guides.parts.amortized import AmortizedGuide, Encoder
from pvae.guides.parts.laws import Law, Sampler
from pvae.guides.parts.placing import in_plates
from pvae.support.glorot import glorot

__all__ = ["Layered"]


class Layered(AmortizedGuide):
    """q(h | x) = q(h_1 | x) prod_l q(h_l+1 | h_l), h_1 being next to the data.

    Args:
        name: of the module in Pyro's param store.
        laws: one per latent site, from the data up.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default.
    """

    def __init__(
        self,
        name: str,
        laws: Sequence[Law],
        example_batch: Tensor | tuple[Tensor, ...],
        hidden: Sequence[int],
        encoder: Callable[..., Tensor] | None,
    ) -> None:
        super().__init__()
        self.name, self.laws = name, tuple(laws)
        self.sites = tuple(law.site for law in laws)
        self.encoder = Encoder(example_batch, laws[0].num_outputs, hidden, encoder)
        self.layers = nn.ModuleList(
            glorot(nn.Linear(below.num_features, above.num_outputs)) for below, above in itertools.pairwise(laws)
        )
        self.layers.to(self.encoder.head.weight.dtype)

    def draw(self, numbers: Tensor) -> None:
        """Sample every latent site of the model from the numbers of each datum, (B, num_outputs)."""
        num_data, sample = len(numbers), Sampler()
        with in_plates(self.sites, num_data) as inside:
            for law, above in itertools.zip_longest(self.laws, self.layers):
                with inside(law.site):
                    features = sample(law, numbers)
                if above is not None:
                    numbers = above(features)
