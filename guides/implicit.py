"""The implicit guide: draws from a net that is fed noise, with no density."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pvae.guides.parts.amortized import AmortizedGuide, Encoder, read
from pvae.guides.parts.joint import sample_jointly
from pvae.guides.parts.placing import width
from pvae.nets import MLP
from pvae.pair.implicit import Implicit as ImplicitDistribution
from pvae.support.refusals import ContractError, whole, widths

__all__ = ["Implicit"]

_REFUSAL = ContractError(
    "the guide has no density: log q(z | x) is not defined",
    "train with pvae.objectives.AdversarialVB or AdversarialAutoencoder, and for log p(x) use PriorSampling or train "
    "MeanField on the same model",
)


class Implicit(AmortizedGuide):
    """z = loc(x) + net(h(x), noise), noise ~ N(0, I), over all latents of a datum at once: any shape of q(z | x).

    Each site's numbers are carried to its support. The draws have no density, so no bound made of log weights trains
    it: `AdversarialVB` reads log q(z | x) - log p(z) off a discriminator, `AdversarialAutoencoder` needs draws alone.

    Args:
        model: any model within the contract; its latent sites are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh); the last is that of the noise's net, too.
        encoder: a net from the batch to features (B, F), used instead of the default.
        noise_dim: dimensions of the noise.
        context: width of h.

    Raises: ValueError for discrete sites, data of another shape than the example, sizes below 1, and whatever asks for
        log q(z | x).

    Mescheder, Nowozin and Geiger (2017), Adversarial Variational Bayes.
    """

    name = "implicit"

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
        noise_dim: int = 16,
        context: int = 50,
    ) -> None:
        super().__init__()
        self.noise_dim = noise_dim = whole("noise_dim", noise_dim, usual=16)
        context, hidden = whole("context", context, usual=50), widths("hidden", hidden)
        self.sites = read(model, example_batch)
        self.dim = sum(width(site) for site in self.sites)
        self.encoder = Encoder(example_batch, self.dim + context, hidden, encoder)
        self.net = MLP(context + noise_dim, hidden[-1:], self.dim).to(self.encoder.head.weight)

    def draw(self, numbers: Tensor) -> None:
        """Draw every latent site of the model from the numbers of each datum, (B, num_outputs)."""
        loc, context = numbers.tensor_split([self.dim], -1)

        def draw(shape: torch.Size) -> Tensor:
            noise = torch.randn(*shape, self.noise_dim, dtype=loc.dtype, device=loc.device)
            return loc + self.net(torch.cat([context.expand(*shape, -1), noise], -1))

        sample_jointly(self.sites, ImplicitDistribution(draw, loc.shape[:-1], (self.dim,), _REFUSAL), len(loc))
