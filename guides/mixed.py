"""The guide for models whose latents are discrete and continuous."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pvae.guides.parts.amortized import AmortizedGuide, Encoder
from pvae.guides.parts.hierarchical import Conditional
from pvae.guides.parts.laws import Sampler, law_of
from pvae.guides.parts.placing import in_plates
from pvae.pair.sites import latent_sites
from pvae.support.arguments import check_min_scale
from pvae.support.refusals import widths

__all__ = ["Mixed"]


class Mixed(AmortizedGuide):
    """A family for each site by its support: q(z | x) = prod_l q(z_l | x, z_1, ..., z_l-1), in the order of the model.

    Bernoulli for binary sites, categorical for whole numbers and one-hot vectors, Gaussians carried to the support for
    all others. The entries of one site are independent given x and the draws of the sites before it, which a net per
    site takes together with the encoder's features. Train with `gradient="mixed"`: the score function for the discrete
    sites, pathwise for the others.

    Args:
        model: any model within the contract; its latent sites are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the hidden layers (tanh) of the default encoder, and of each later site's net.
        encoder: a net from the batch to features (B, F), used instead of the default.
        min_scale: floor on each scale.

    Raises: ValueError for a discrete site without a finite support, or data of another shape than the example.

    Kingma, Rezende, Mohamed and Welling (2014), Semi-supervised Learning with Deep Generative Models.
    """

    name = "mixed"

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
        hidden, min_scale = widths("hidden", hidden), check_min_scale(min_scale)
        self.sites = latent_sites(model, example_batch)
        self.laws = tuple(law_of(site, min_scale) for site in self.sites)
        before = itertools.accumulate(law.num_features for law in self.laws)
        nets = [Conditional(width, hidden, law.num_outputs) for width, law in zip(before, self.laws[1:], strict=False)]
        self.nets = nn.ModuleList(nets)
        self.num_features = [self.laws[0].num_outputs, *(net.num_features for net in nets)]
        self.encoder = Encoder(example_batch, sum(self.num_features), hidden, encoder)
        self.nets.to(self.encoder.head.weight.dtype)

    def draw(self, numbers: Tensor) -> None:
        """Sample every latent site of the model from the numbers of each datum, (B, num_outputs)."""
        features = numbers.split(self.num_features, -1)
        draws: list[Tensor] = []
        sample = Sampler()
        with in_plates(self.sites, len(numbers)) as inside:
            for index, (law, own) in enumerate(zip(self.laws, features, strict=True)):
                own = self.nets[index - 1](own, draws) if index else own
                with inside(law.site):
                    draws.append(sample(law, own))
