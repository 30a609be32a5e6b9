"""The Gaussian guide with a full covariance, amortised through its Cholesky factor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pvae.guides.parts.amortized import AmortizedGuide, Encoder, read
from pvae.guides.parts.joint import sample_jointly
from pvae.guides.parts.placing import width
from pvae.support.arguments import check_min_scale

__all__ = ["FullCovariance"]


class FullCovariance(AmortizedGuide):
    """One Gaussian over all latent sites: q(z | x) = N(z | loc(x), L(x) L(x)'), carried to each support.

    The encoder gives loc and the lower triangle of L, whose diagonal is made positive. All latent numbers of a datum,
    of all sites and their plates inside the data plate, share one L.

    Args:
        model: any model within the contract; its latent sites are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default.
        min_scale: floor on the diagonal of L.

    Raises: ValueError for discrete sites, or data of another shape than the example.

    Kingma and Welling (2019), An Introduction to Variational Autoencoders, section 2.5.1.
    """

    name = "full_covariance"

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
        self.dim = sum(width(site) for site in self.sites)
        self.encoder = Encoder(example_batch, self.dim + self.dim * (self.dim + 1) // 2, hidden, encoder)

    def draw(self, numbers: Tensor) -> None:
        """Sample every latent site of the model from the numbers of each datum, (B, num_outputs)."""
        loc, triangle = numbers.split([self.dim, self.dim * (self.dim + 1) // 2], -1)
        joint = dist.MultivariateNormal(loc, scale_tril=self._factor(triangle))
        sample_jointly(self.sites, joint, len(numbers))

    def _factor(self, triangle: Tensor) -> Tensor:
        """The triangle's numbers (B, D (D + 1) / 2) as a Cholesky factor (B, D, D)."""
        row, column = torch.tril_indices(self.dim, self.dim, device=triangle.device)
        raw = triangle.new_zeros(*triangle.shape[:-1], self.dim, self.dim)
        raw = raw.index_put((torch.arange(len(triangle), device=triangle.device)[:, None], row, column), triangle)
        diagonal = self.min_scale + softplus(raw.diagonal(dim1=-2, dim2=-1))
        return raw.tril(-1) + torch.diag_embed(diagonal)
