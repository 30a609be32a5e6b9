"""The two-stage VAE: a second VAE in place of the first one's prior."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from pvae.models.checks import check_shape
from pvae.models.vae import VAE
from pvae.support.refusals import instance

__all__ = ["TwoStageVAE"]


class TwoStageVAE(nn.Module):
    """A VAE whose prior is another VAE: p(u) p(z | u) p(x | z), of which each stage is trained on its own.

    The first stage is a VAE of the data with a Gaussian likelihood whose scale is learned, `Gaussian("shared")`. Where
    the data lie near a manifold the scale goes to 0, and z ~ q(z | x), x ~ p_data, fills a space of the manifold's
    dimension but need not be N(0, I). The second stage is a VAE of these z, and takes the place of their prior:

        pvae.fit(first, first_guide, data)
        z = pvae.encode(first_guide, data.train, num_samples=1)["z"][0]
        pvae.fit(second, second_guide, z)
        draws = pvae.sample(TwoStageVAE(first, second), 100)

    A guide of the whole is `pvae.guides.Chained`, made of the two that were trained, or any other.

    Args:
        first: the VAE of x. Its prior takes no part.
        second: the VAE of z, whose data have the shape (first.latent_dim,).

    Sites: "u" (second.latent_dim,), "z" (first.latent_dim,) and "x" `first.x_shape`, in the plate "data".

    Raises: ValueError unless both are VAEs, the second one of the first one's latents.

    Dai and Wipf (2019), Diagnosing and Enhancing VAE Models.
    """

    def __init__(self, first: VAE, second: VAE) -> None:
        super().__init__()
        for name, stage in {"first": first, "second": second}.items():
            instance(name, stage, VAE, what="a built VAE", usual="pvae.models.VAE(x_shape, latent_dim)")
        if second.x_shape != (first.latent_dim,):
            raise ValueError(
                f"second must model the latents of first, of shape ({first.latent_dim},), got a VAE of shape "
                f"{second.x_shape}; build it with VAE(({first.latent_dim},), ...)"
            )
        self.x_shape = first.x_shape
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """Run the model on a batch x (B, *x_shape); returns the observed x."""
        check_shape(self, x)
        pyro.module("two_stage_vae", self)
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", self.second.prior())
            z = pyro.sample("z", _given(self.second, u))
            return pyro.sample("x", _given(self.first, z), obs=x)


def _given(stage: VAE, latent: Tensor) -> dist.TorchDistribution:
    """What a stage's decoder and likelihood make of its latent (..., latent_dim)."""
    given: dist.TorchDistribution = stage.likelihood(stage.decoder(latent), stage.x_shape)
    return given
