"""The generator of a generative adversarial network: a model without a density."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from pvae.models.checks import check_shape, part_or
from pvae.models.priors import StandardNormal
from pvae.nets import MLP
from pvae.pair.implicit import Implicit
from pvae.support.refusals import ContractError, whole, widths

__all__ = ["Generator"]

_REFUSAL = ContractError(
    "x has no density: log p(x) is not defined",
    "train with pvae.objectives.GenerativeAdversarial, and use pvae.estimators.ParzenWindow",
)


class Generator(nn.Module):
    """z ~ p(z), x = decoder(z): an implicit model, which can be drawn from and has no density p(x) to evaluate.

    With fewer latents than values in x its draws lie on a surface of volume 0, where p(x) is 0 or infinite. So it
    trains with `GenerativeAdversarial`, without a guide. `ParzenWindow` gives a number all the same, of the draws
    blurred: it is no log p(x) of this model, and ranks models wrongly.

    Args:
        x_shape: shape of one datum, such as (1, 28, 28).
        latent_dim: dimensions of z.
        prior: its call gives p(z); by default `StandardNormal(latent_dim)`.
        decoder: from (..., latent_dim) to (..., *x_shape); by default an MLP with two hidden layers of 200 units. End
            it in a sigmoid for data in [0, 1].

    Sites: "z" (latent_dim,) and "x" `x_shape`, in the plate "data".

    Raises: ValueError for a `latent_dim` below 1, a batch that does not have the shape (B, *x_shape), and whatever
        asks for log p(x).

    Goodfellow et al. (2014), Generative Adversarial Nets; Mohamed and Lakshminarayanan (2016), Learning in Implicit
    Generative Models.
    """

    def __init__(
        self,
        x_shape: Sequence[int],
        latent_dim: int,
        *,
        prior: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.x_shape = widths("x_shape", x_shape, usual=(1, 28, 28))
        self.latent_dim = whole("latent_dim", latent_dim, usual=8)
        self.prior = part_or("prior", prior, lambda: StandardNormal(self.latent_dim), usual="StandardNormal(8)")
        self.decoder = part_or(
            "decoder", decoder, lambda: MLP(self.latent_dim, (200, 200), self.x_shape), usual="pvae.nets.MLP"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run the model on a batch x (B, *x_shape); returns the observed x."""
        check_shape(self, x)
        pyro.module("generator", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            # Only a draw asks for the decoder; x as observed has nothing to do with z.
            implicit = Implicit(
                lambda shape: self.decoder(z).expand(*shape, *self.x_shape),
                z.shape[:-1],
                self.x_shape,
                _REFUSAL,
                is_point=True,
            )
            return pyro.sample("x", implicit, obs=x)
