"""The guide with an auxiliary latent, whose marginal over it is far from Gaussian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pvae.guides.parts.amortized import AmortizedGuide, Encoder, read
from pvae.guides.parts.hierarchical import Conditional, Draws
from pvae.guides.parts.placing import in_plates, width
from pvae.pair.sites import LatentSite
from pvae.support.arguments import check_min_scale
from pvae.support.refusals import whole, widths

__all__ = ["Auxiliary"]

# Floor on the scales of q(a | x) and r. The unit of a is free, so nothing is lost; without a floor one draw where r is
# narrow and wrong costs thousands of nats.
_MIN_SCALE = 0.1


class Auxiliary(AmortizedGuide):
    """A continuous mixture: q(z | x) = int q(a | x) q(z | a, x) da, all three Gaussian with independent numbers.

    Its density has no closed form, so the model is extended by r(a | x, z), which the guide trains beside q, and the
    log weights are those of the extended pair,

        log w = log p(x, z) + log r(a | x, z) - log q(a | x) - log q(z | a, x),

    so that exp(log w) is unbiased for p(x) whatever r is, and every bound and estimate made of such weights holds. The
    bound is the tighter, the closer r is to q(a | z, x). The model never sees a. With respect to r every gradient
    is as with respect to the model, with the sampled or the closed-form KL.

    Args:
        model: any model within the contract; its latent sites are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the hidden layers (tanh) of the default encoder, and of the nets of q(z | a, x) and r.
        encoder: a net from the batch to features (B, F), used instead of the default.
        auxiliary_dim: numbers in a.
        min_scale: floor on each scale of q(z | a, x).

    Sites: "auxiliary" (auxiliary_dim,) and "auxiliary_reverse", which carries log r, beside those of the model.

    Raises: ValueError for discrete sites, data of another shape than the example, or an `auxiliary_dim` below 1.

    Maaloee, Soenderby, Soenderby and Winther (2016), Auxiliary Deep Generative Models; Ranganath, Tran and Blei (2016),
    Hierarchical Variational Models.
    """

    name = "auxiliary"

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
        auxiliary_dim: int = 8,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        auxiliary_dim, hidden = whole("auxiliary_dim", auxiliary_dim, usual=8), widths("hidden", hidden)
        self.sites = read(model, example_batch)
        self.auxiliary = LatentSite(
            "auxiliary", torch.Size([auxiliary_dim]), constraints.real_vector, (), self.sites[0].data_plate
        )
        self.min_scale = check_min_scale(min_scale)
        self.widths = [2 * width(site) for site in self.sites]
        self.conditional = Conditional(auxiliary_dim, hidden, sum(self.widths))
        self.reverse = Conditional(sum(self.widths) // 2, hidden, 2 * auxiliary_dim)
        self.num_features = [2 * auxiliary_dim, self.conditional.num_features, self.reverse.num_features]
        self.encoder = Encoder(example_batch, sum(self.num_features), hidden, encoder)
        for net in (self.conditional, self.reverse):
            net.to(self.encoder.head.weight.dtype)

    def draw(self, numbers: Tensor) -> None:
        """Sample the auxiliary latent and every site of the model from the numbers of each datum, (B, num_outputs)."""
        of_auxiliary, of_latents, of_reverse = numbers.split(self.num_features, -1)
        draws = Draws()
        with in_plates(self.sites, len(numbers)) as inside:
            a = draws.sample(self.auxiliary, of_auxiliary, _MIN_SCALE, infer={"is_auxiliary": True})
            parts = self.conditional(of_latents, draws.rows).split(self.widths, -1)
            for site, own in zip(self.sites, parts, strict=True):
                with inside(site):
                    draws.sample(site, own, self.min_scale)
            reverse = draws.gaussian(self.auxiliary, self.reverse(of_reverse, draws.rows[1:]), _MIN_SCALE)
            _extend_model(reverse.log_prob(a))


def _extend_model(log_reverse: Tensor) -> None:
    """State log r: pvae counts it with the model, and Pyro's own objectives, which subtract a guide's terms, add it."""
    term = dist.Unit(-log_reverse, has_rsample=True)
    # Not Pyro's word, which takes any.
    infer: Any = {"is_auxiliary": True, "extends_model": True}
    pyro.sample("auxiliary_reverse", term, obs=term.sample(), infer=infer)
