"""The guide that is a mixture of Gaussians, reparameterised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pvae.guides.parts.amortized import AmortizedGuide, Encoder, read
from pvae.guides.parts.joint import sample_jointly
from pvae.guides.parts.placing import width
from pvae.support.arguments import check_min_scale
from pvae.support.refusals import flag, whole

__all__ = ["Mixture"]


class Mixture(AmortizedGuide):
    """Several Gaussians over all latent sites: q(z | x) = sum_m p_m(x) N(z | loc_m(x), diag(scale_m(x)^2)).

    A component holds all latent numbers of a datum, of all sites and their plates inside the data plate, and is carried
    to each support. The density is that of the whole mixture. Draws are reparameterised.

    The weights p_m are 1 / M, or with `learn_weights` the encoder's. Their pathwise gradient is unbiased, but what one
    mode is worth beside another shows only where draws lie between them: with modes apart, train learnt weights by
    `gradient="score"`, or leave them equal and use more components.

    Args:
        model: any model within the contract; its latent sites are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default.
        num_components: M; with 1 it is `MeanField`.
        learn_weights: whether the encoder gives the weights.
        min_scale: floor on each scale.

    Raises: ValueError for discrete sites, fewer than 1 component, or data of another shape than the example.

    Nalisnick, Hertel and Smyth (2016), Approximate Inference for Deep Latent Gaussian Mixtures; Morningstar et al.
    (2021), Automatic Differentiation Variational Inference with Mixtures.
    """

    name = "mixture"

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
        num_components: int = 5,
        learn_weights: bool = False,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        self.num_components = num_components = whole("num_components", num_components, usual=5)
        self.learn_weights = flag("learn_weights", learn_weights)
        self.min_scale = check_min_scale(min_scale)
        self.sites = read(model, example_batch)
        self.dim = sum(width(site) for site in self.sites)
        self.size = num_components * self.dim
        self.encoder = Encoder(example_batch, 2 * self.size + num_components * self.learn_weights, hidden, encoder)
        # Components that start as one have one gradient, and stay one.
        start = torch.randn(num_components, self.dim)
        with torch.no_grad():
            bias: Tensor = self.encoder.head.bias
            bias[: self.size] = (start - start.mean(0)).flatten().to(bias)

    def draw(self, numbers: Tensor) -> None:
        """Sample every latent site of the model from the numbers of each datum, (B, num_outputs)."""
        loc, raw, logits = numbers.tensor_split([self.size, 2 * self.size], -1)
        loc, raw = (each.unflatten(-1, (self.num_components, self.dim)) for each in (loc, raw))
        if not self.learn_weights:
            logits = loc.new_zeros(loc.shape[:-1])
        components = dist.Normal(loc, self.min_scale + softplus(raw)).to_event(1)
        sample_jointly(self.sites, _DiagonalMixture(dist.Categorical(logits=logits), components), len(numbers))


class _DiagonalMixture(dist.MixtureSameFamily):
    """A mixture of diagonal Gaussians whose draws have a pathwise gradient.

    A draw moves with a parameter phi by a field v that carries the density along, dq / dphi = -div(q v). With r_m(z)
    the share of component m at z, it is r_m(z) for loc_m, r_m(z) (z - loc_m) / scale_m for scale_m. For the weights it
    is v = -(dF / dz)^-1 dF / dphi, F_d being the distribution function of z_d given those before it.

    Figurnov, Mohamed and Mnih (2018), Implicit Reparameterization Gradients.
    """

    has_rsample = True

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, (*sample_shape, *batch_shape, D)."""
        z = self.sample(sample_shape)
        if not torch.is_grad_enabled():
            return z
        normal, log_probs = self.component_distribution.base_dist, self.mixture_distribution.logits[..., None]
        at = z[..., None, :]
        with torch.no_grad():
            noise, density = (at - normal.loc) / normal.scale, normal.log_prob(at)
            share = (log_probs + density.sum(-1, keepdim=True)).softmax(-2)
        moved = (share * (normal.loc + normal.scale * noise)).sum(-2)
        moved = moved - moved.detach()
        if log_probs.requires_grad:
            moved = moved + self._moved_by_weights(log_probs, noise / normal.scale, density, normal.cdf(at).detach())
        return z + moved

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws without a gradient, from one component each; torch draws from all, and waits for a GPU to do so."""
        chosen = self.mixture_distribution.sample(torch.Size(sample_shape))[..., None, None]
        normal = self.component_distribution.base_dist
        loc, scale = (
            each.expand(*chosen.shape[:-2], *each.shape[-2:]).take_along_dim(chosen, -2).squeeze(-2)
            for each in (normal.loc, normal.scale)
        )
        return loc + scale * torch.randn_like(loc)

    @staticmethod
    def _moved_by_weights(log_probs: Tensor, pull: Tensor, density: Tensor, levels: Tensor) -> Tensor:
        """0 with the gradient of the draws with respect to the weights, (..., D), from what is (..., M, D)."""
        weights = (log_probs + density.cumsum(-1) - density).softmax(-2)
        level = (weights * levels).sum(-2)
        with torch.no_grad():
            # dF_d / dz_e, nothing right of the diagonal.
            below = (weights * (level[..., None, :] - levels)).mT @ pull
            slopes = below.tril(-1) + torch.diag_embed((weights * density.exp()).sum(-2))
        return torch.linalg.solve_triangular(slopes, (level.detach() - level)[..., None], upper=False)[..., 0]
