"""The exemplar prior: Gaussians around the codes of training data."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pvae.models.priors.equal_mixture import EqualMixture
from pvae.models.priors.tied import TiedPrior, rows_of
from pvae.support.refusals import whole

__all__ = ["ExemplarPrior"]


class ExemplarPrior(TiedPrior):
    """Gaussians around codes of training data, p(z) = 1/M sum_m N(z | E_q[z | x_m], scale^2 I), with a shared scale.

    In training mode the mixture is over a random subset of the exemplars, drawn anew at each step, which makes the
    objective a little too small: log of a mean over a subset is in expectation at most that over all. In evaluation
    mode it is over all of them: give as many as log p(x) shall pay for.

    The paper leaves a datum's own component out in training, so that codes cannot hide behind themselves. A prior does
    not see the batch, so here a datum meets itself in a share `subset` / N of its steps: keep the subset well below N.

    As of a `VampPrior`, the guide is part of the model: build it, call `model.prior.tie(guide)`.

    Args:
        latent_dim: dimensions of z.
        exemplars: training data, (N, *x_shape); kept as a buffer.
        subset: exemplars per training step, at most.

    Attributes: `exemplars` (N, *x_shape), `log_scale`, a scalar.

    Raises: ValueError for exemplars that are not (N, *x_shape), or a subset below 1; at `tie` for a guide that does not
        serve; ValueError for the density of a prior that is not tied.

    Norouzi, Fleet and Norouzi (2020), Exemplar VAE: Linking Generative Models, Nearest Neighbor Retrieval, and Data
    Augmentation.
    """

    exemplars: Tensor

    def __init__(self, latent_dim: int, exemplars: Tensor, subset: int = 100) -> None:
        super().__init__(latent_dim)
        exemplars = rows_of("exemplars", exemplars, usual="data.train[:5000]")
        self.subset = whole("subset", subset, usual=100)
        self.register_buffer("exemplars", exemplars.detach().clone())
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self) -> dist.TorchDistribution:
        """Event shape (latent_dim,)."""
        if not self._tied:
            return self._untied(self.log_scale)
        chosen = self.exemplars
        if self.training and self.subset < len(chosen):
            chosen = self._some(chosen, self.subset)
        components = self._components_at(chosen)
        return EqualMixture(components, lambda num: self._near(self._some(components.mean, num)))

    def _components(self, posteriors: dist.TorchDistribution) -> dist.TorchDistribution:
        return dist.Normal(posteriors.mean, self.log_scale.exp()).to_event(1)

    def _near(self, locs: Tensor) -> Tensor:
        return locs + self.log_scale.exp() * torch.randn_like(locs)

    def _example(self) -> Tensor:
        return self.exemplars[:2]
