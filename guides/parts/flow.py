"""What the flow guides share: a diagonal Gaussian carried through steps that depend on the data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pvae.guides.parts.amortized import AmortizedGuide, Encoder, read
from pvae.guides.parts.joint import sample_jointly
from pvae.guides.parts.matching import sample_independently
from pvae.guides.parts.placing import width
from pvae.support.arguments import check_min_scale
from pvae.support.refusals import whole

__all__ = ["Flow", "Flowed"]


class Flow(AmortizedGuide):
    """z_0 ~ N(loc(x), scale(x)^2), z_t = f_t(z_t-1; h(x)), over all latent numbers of a datum at once.

    log q(z_T | x) = log N(z_0; loc, scale^2) - sum_t log |det df_t / dz_t-1|, carried to each site's support. The
    encoder gives loc, scale and the context h. Without steps this is `MeanField`, number by number.

    Args:
        model: any model within the contract; its latent sites are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default.
        length: T.
        min_scale: floor on each scale of z_0.
        num_context: from the latent numbers of a datum, D, to the width of h.

    Raises: ValueError for discrete sites, data of another shape than the example, a negative length, or no context.
    """

    name = "flow"

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        hidden: Sequence[int],
        encoder: Callable[..., Tensor] | None,
        length: int,
        min_scale: float,
        num_context: Callable[[int], int],
    ) -> None:
        super().__init__()
        self.length = whole("length", length, 0, usual="2; 0 is MeanField")
        self.min_scale = check_min_scale(min_scale)
        self.sites = read(model, example_batch)
        self.dim = sum(width(site) for site in self.sites)
        self.num_context = num_context(self.dim) if length else 0
        self.encoder = Encoder(example_batch, 2 * self.dim + self.num_context, hidden, encoder)

    @abstractmethod
    def transforms(self, base: Any, context: Tensor) -> list[Any]:
        """The steps f_1, ..., f_T for the context h (B, num_context): torch transforms of vectors (..., B, D).

        Each gives a value and its log-determinant at once, by `call_and_ladj`.
        """

    def draw(self, numbers: Tensor) -> None:
        """Sample every latent site of the model from the numbers of each datum, (B, num_outputs)."""
        if self.length == 0:
            sample_independently(self.sites, numbers, self.min_scale)
        else:
            sample_jointly(self.sites, self.joint(numbers), len(numbers))

    def joint(self, numbers: Tensor) -> Flowed:
        """The distribution of z_T (B, D), from what the encoder gives: loc, scale before softplus, and context."""
        loc, raw, context = numbers.split([self.dim, self.dim, self.num_context], -1)
        base = dist.Normal(loc, self.min_scale + softplus(raw)).to_event(1)
        return Flowed(base, self.transforms(base, context))


class Flowed:
    """The distribution of z_T; a draw and its density need no inverse, the density of another value does.

    Args:
        base: of z_0, with batch shape (B,) and event shape (D,).
        transforms: f_1, ..., f_T.
    """

    has_rsample = True

    def __init__(self, base: Any, transforms: Sequence[Any]) -> None:
        self.base, self.transforms = base, transforms

    def rsample_and_log_prob(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Draws (*shape, B, D) and their log density (*shape, B)."""
        z = self.base.rsample(shape)
        log_prob = self.base.log_prob(z)
        for transform in self.transforms:
            z, log_det = transform.call_and_ladj(z)
            log_prob = log_prob - log_det
        return z, log_prob

    def log_prob(self, z: Tensor) -> Tensor:
        """The log density at any z (..., B, D).

        Raises: NotImplementedError for steps without an inverse.
        """
        log_dets = []
        for transform in reversed(self.transforms):
            before = transform.inv(z)
            log_dets.append(transform.log_abs_det_jacobian(before, z))
            z = before
        return self.base.log_prob(z) - torch.stack(log_dets).sum(0)
