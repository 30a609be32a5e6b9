"""What guides that go from one latent site to the next share: draws as features, and Gaussians given them."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import InferDict
from torch import Tensor, nn
from torch.nn.functional import softplus

from pvae.guides.parts.amortized import constrained
from pvae.guides.parts.placing import arrange_given, batch_shape, collect, free_shape
from pvae.nets import MLP
from pvae.pair.sites import LatentSite
from pvae.support.glorot import glorot

__all__ = ["Conditional", "Draws"]


class Conditional(nn.Module):
    """A net of the draws of other sites, and of what an encoder says of the data: (K, B, D) -> (K, B, num_outputs).

    Its first layer adds the encoder's numbers to an affine map of the draws, so that the two meet before any
    nonlinearity (tanh). Without hidden layers it is that sum.

    Args:
        num_draws: D.
        hidden: widths of its layers, the first included.
        num_outputs: numbers per datum.
        sees_data: whether an encoder has a say.

    Attributes: `num_features`, how many of the encoder's numbers it takes.
    """

    def __init__(self, num_draws: int, hidden: Sequence[int], num_outputs: int, sees_data: bool = True) -> None:
        super().__init__()
        first, *rest = (*hidden, num_outputs)
        self.num_features = first if sees_data else 0
        self.first = glorot(nn.Linear(num_draws, first))
        self.rest = nn.Sequential(nn.Tanh(), MLP(first, rest[:-1], rest[-1])) if rest else nn.Identity()

    def forward(self, features: Tensor, draws: Sequence[Tensor]) -> Tensor:
        """From features (B, num_features) and draws (K, B, ...) side by side to (K, B, num_outputs)."""
        first = self.first(torch.cat(list(draws), -1))
        outputs: Tensor = self.rest(first + features if self.num_features else first)
        return outputs


class Draws:
    """The draws of sites so far, each as unconstrained rows (K, B, n) that nets take as features.

    Attributes: `rows`, in the order of the draws.
    """

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        # Batch dims of a draw that has particles, whose plate stands left of all others; 0 without such a plate.
        self._depth = 0

    def sample(self, site: LatentSite, numbers: Tensor, min_scale: float, infer: InferDict | None = None) -> Tensor:
        """Sample a site from the Gaussian of these numbers, carried to its support; inside the site's plates."""
        shape = free_shape(site)
        fn = constrained(self.gaussian(site, numbers, min_scale), site)
        value: Tensor = pyro.sample(site.name, fn, infer=infer)
        batch_dims = value.dim() - len(site.event_shape)
        if batch_dims > len(batch_shape(site, 1)):
            self._depth = batch_dims
        self.rows.append(collect(site, site.bijection.inv(value), len(shape)))
        return value

    def gaussian(self, site: LatentSite, numbers: Tensor, min_scale: float) -> dist.TorchDistribution:
        """Over a site's unconstrained value; `numbers` are loc and raw scale, (B, 2 n) or (K, B, 2 n)."""
        shape = free_shape(site)
        loc, raw = (arrange_given(site, each, shape, self._depth) for each in numbers.chunk(2, -1))
        return dist.Normal(loc, min_scale + softplus(raw)).to_event(len(shape))
