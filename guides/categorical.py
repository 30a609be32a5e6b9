"""The guide for categorical latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.distributions import constraints

from pvae.guides.parts.laws import Law, categories, one_hots, other_guide, support_of
from pvae.guides.parts.layered import Layered
from pvae.pair.sites import LatentSite, latent_sites

__all__ = ["Categorical"]


class Categorical(Layered):
    """Categorical layers from the data up: q(y | x) = q(y_1 | x) prod_l q(y_l+1 | y_l), each softmax(logits).

    The model's last latent site, next to the data, is y_1; its logits come from the encoder, those of every other site
    from an affine map of the one-hot site below. The entries of one site are independent given the site below, so the
    family of a single categorical site holds its exact posterior. Its draws have no pathwise gradient: train with
    `gradient="score"`. Or annotate the site with infer={"enumerate": "parallel"}, to have it summed out with no guide.

    Args:
        model: any model whose latent sites are `Categorical` or `OneHotCategorical`; they are read from one run. A site
            may be a scalar, have event dims or stand in plates inside the data plate.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default.

    Raises: ValueError for a site that is not categorical, or data of another shape than the example.

    Mnih and Rezende (2016), Variational Inference for Monte Carlo Objectives.
    """

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
    ) -> None:
        laws = [_law(site) for site in reversed(latent_sites(model, example_batch))]
        super().__init__("categorical", laws, example_batch, hidden, encoder)


def _law(site: LatentSite) -> Law:
    support = support_of(site)
    if support is constraints.one_hot:
        return one_hots(site)
    if isinstance(support, constraints.integer_interval):
        return categories(site)
    raise ValueError(f"site '{site.name}' is not categorical, this guide serves categorical sites; {other_guide(site)}")
