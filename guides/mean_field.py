"""The mean-field guide: independent latents, Gaussian or of another family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from pvae.guides.parts.amortized import AmortizedGuide, Encoder, read
from pvae.guides.parts.matching import match, num_outputs, sample_independently
from pvae.support.arguments import check_min_scale

__all__ = ["MeanField"]


class MeanField(AmortizedGuide):
    """Independent Gaussians: q(z | x) = prod_d N(z_d | loc_d(x), scale_d(x)^2) carried to each site's support.

    Or independent latents of another family, q(z | x) = prod_d f(z_d | numbers_d(x)), by name: used as it is where it
    lives on the site's support (shifted or stretched to its ends), else carried there by a bijection if its tails allow
    it. `pvae.guides.parts.families.table()` lists them all.

    Args:
        model: any model within the contract; its latent sites are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default.
        min_scale: floor on each scale.
        family: a name such as "laplace" for every site, or names by site, {"rate": "gamma"}; other sites are normal.
            "uniform", "triangular", "pareto" and "reciprocal" have ends of their own and leave part of a posterior out:
            their ELBO is a bound as any, but what it lacks to log p(x) no number of samples closes. Estimate log p(x)
            with `DefensiveMixture`, or with a family that covers the site.

    Raises: ValueError for discrete sites, data of another shape than the example, an unknown family, or one that does
        not fit its site's support.

    Kingma and Welling (2014); families: section 2.4 there, and Figurnov, Mohamed and Mnih (2018), Implicit
    Reparameterization Gradients.
    """

    name = "mean_field"

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
        min_scale: float = 1e-4,
        family: str | Mapping[str, str] = "normal",
    ) -> None:
        super().__init__()
        self.sites = read(model, example_batch)
        self.min_scale = check_min_scale(min_scale)
        self.families = match(self.sites, family)
        count = sum(map(num_outputs, self.sites, self.families))
        self.encoder = Encoder(example_batch, count, hidden, encoder)

    def draw(self, numbers: Tensor) -> None:
        """Sample every latent site of the model from the numbers of each datum, (B, num_outputs)."""
        sample_independently(self.sites, numbers, self.min_scale, self.families)
