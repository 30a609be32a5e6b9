"""The guide for binary latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.distributions import constraints

from pvae.guides.parts.laws import bits, other_guide, support_of
from pvae.guides.parts.layered import Layered
from pvae.pair.sites import LatentSite, latent_sites

__all__ = ["Bernoulli"]


class Bernoulli(Layered):
    """Binary layers from the data up: q(h | x) = q(h_1 | x) prod_l q(h_l+1 | h_l), each a product of Bernoullis.

    The model's last latent site, next to the data, is h_1; its logits come from the encoder, those of every other site
    from an affine map of the site below. Its draws have no pathwise gradient: train with `gradient="score"`.

    Args:
        model: any model whose latent sites are binary; they are read from one run. A site may be a scalar, have event
            dims or stand in plates inside the data plate.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default; `nn.Flatten()` for an affine map.

    Raises: ValueError for a site that is not binary, or data of another shape than the example.

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
        sites = tuple(reversed(latent_sites(model, example_batch)))
        for site in sites:
            _require_bits(site)
        super().__init__("bernoulli", [bits(site) for site in sites], example_batch, hidden, encoder)


def _require_bits(site: LatentSite) -> None:
    if support_of(site) is not constraints.boolean:
        raise ValueError(f"site '{site.name}' is not binary, this guide serves binary sites; {other_guide(site)}")
