"""The variational autoencoder whose latents come in clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pvae.models.checks import check_shape, likelihood_or, part_or
from pvae.models.likelihoods import Bernoulli
from pvae.nets import MLP
from pvae.support.arguments import check_min_scale, check_seed
from pvae.support.refusals import whole, widths

__all__ = ["MixtureVAE"]


class MixtureVAE(nn.Module):
    """Clusters of codes: y ~ Categorical(softmax(logits)), z | y ~ N(loc_y, scale_y^2), x | z ~ likelihood(decoder(z)).

    The component y is summed out of every log weight, exactly, so that a guide of z is all it takes:
    log p(x, z) = log p(x | z) + log sum_y p(y) p(z | y).

    Args:
        x_shape: shape of one datum, such as (1, 28, 28).
        latent_dim: dimensions of z.
        num_components: values of y.
        likelihood: from the decoder's output to the distribution of x; by default `Bernoulli`.
        decoder: from (..., latent_dim) to (..., *likelihood.parameter_shape(x_shape)); by default an MLP
            with two hidden layers of 200 units.
        min_scale: floor on each scale of the components.

    Attributes: `logits` (num_components,), `loc` and `raw_scale` (num_components, latent_dim) of the components, with
        scale = min_scale + softplus(raw_scale). They start with equal weights and scales of 1 at draws from N(0, I).

    Sites: "y" (), summed out; "z" (latent_dim,) and "x" `x_shape`, in the plate "data".

    Raises: ValueError for a `latent_dim` or `num_components` below 1, or a batch that does not have the shape
        (B, *x_shape).

    Jiang, Zheng, Tan, Tang and Zhou (2017), Variational Deep Embedding; Dilokthanakul et al. (2016), Deep Unsupervised
    Clustering with Gaussian Mixture Variational Autoencoders.
    """

    def __init__(
        self,
        x_shape: Sequence[int],
        latent_dim: int,
        num_components: int = 10,
        *,
        likelihood: nn.Module | None = None,
        decoder: nn.Module | None = None,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        self.x_shape = widths("x_shape", x_shape, usual=(1, 28, 28))
        self.latent_dim = whole("latent_dim", latent_dim, usual=8)
        self.num_components = whole("num_components", num_components, usual=10)
        self.min_scale = check_min_scale(min_scale)
        self.likelihood = likelihood_or(likelihood, Bernoulli)
        parameter_shape = self.likelihood.parameter_shape(self.x_shape)
        self.decoder = part_or(
            "decoder", decoder, lambda: MLP(self.latent_dim, (200, 200), parameter_shape), usual="pvae.nets.MLP"
        )
        shape = (self.num_components, self.latent_dim)
        self.logits = nn.Parameter(torch.zeros(self.num_components))
        self.loc = nn.Parameter(torch.randn(shape))
        self.raw_scale = nn.Parameter(torch.full(shape, math.log(math.e - 1)))

    @property
    def scale(self) -> Tensor:
        """The scales of the components, (num_components, latent_dim)."""
        return self.min_scale + softplus(self.raw_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Run the model on a batch x (B, *x_shape); returns the observed x."""
        check_shape(self, x)
        pyro.module("mixture_vae", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(self.loc[y], self.scale[y]).to_event(1))
            return pyro.sample("x", self.likelihood(self.decoder(z), self.x_shape), obs=x)

    @torch.no_grad()
    def start_at(self, z: Tensor, seed: int = 0) -> None:
        """Put the components where maximum likelihood has them for codes z (N, latent_dim), found by EM.

        Trained from elsewhere, components tend to share a cluster before the codes have any. Jiang et al. take the
        codes of a plain `VAE` with the same decoder, whose guide fits this model, too.

        Raises: ValueError for codes of another width, or fewer of them than components.
        """
        self._check_codes(z)
        seed = check_seed(seed) % 2**32
        if z.dim() != 2 or len(z) < self.num_components:
            raise ValueError(f"expected codes (N, {self.latent_dim}), N >= {self.num_components}, got {tuple(z.shape)}")
        # Imported here: scikit-learn takes a second that nobody else should pay.
        from sklearn.mixture import GaussianMixture

        fitted = GaussianMixture(self.num_components, covariance_type="diag", n_init=5, random_state=seed)
        fitted.fit(z.double().cpu().numpy())
        self.logits.copy_(torch.as_tensor(fitted.weights_).log())
        self.loc.copy_(torch.as_tensor(fitted.means_))
        scale = torch.as_tensor(fitted.covariances_).sqrt() - self.min_scale
        self.raw_scale.copy_(scale.clamp(min=self.min_scale).expm1().log())

    def responsibilities(self, z: Tensor) -> Tensor:
        """p(y | z), (..., num_components), of codes z (..., latent_dim): given z, the data say no more of y.

        Raises: ValueError for codes of another width.
        """
        self._check_codes(z)
        log_density = dist.Normal(self.loc, self.scale).log_prob(z[..., None, :]).sum(-1)
        return (self.logits + log_density).softmax(-1)

    def _check_codes(self, z: Tensor) -> None:
        if z.shape[-1:] != (self.latent_dim,):
            raise ValueError(f"expected codes (..., {self.latent_dim}), got {tuple(z.shape)}; give draws of z")
