"""The planar flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.nn.functional import softplus

from pvae.guides.parts.flow import Flow

__all__ = ["PlanarFlow"]

# Of the weights that give u: a flow starts near its base, however long, and still every weight has a gradient.
_START = 0.1


class PlanarFlow(Flow):
    """Planar flow: z' = z + u^ tanh(w.z + b), log |det| = log(1 + (1 - tanh(w.z + b)^2) w.u^).

    w, u (D,) and b of each step are amortised: the encoder gives all of them, T (2 D + 1) numbers, for each datum,
    beside the diagonal Gaussian at the start. A step is invertible where w.u^ > -1, and so it is made:
    u^ = u + (m(w.u) - w.u) w / |w|^2 with m(a) = -1 + softplus(a + log(e - 1)). This m is the paper's but for a shift
    that makes m(0) = 0: a step with u = 0 changes nothing, and none blows up as w goes to 0.
    The density of own draws is exact; there is no closed inverse, so values from elsewhere have none, and gradients
    other than the pathwise one are refused.

    Args:
        model: any model within the contract; its latent sites are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default.
        length: T; 0 is `MeanField`, number by number.
        min_scale: floor on each scale of the start.

    Raises: ValueError for discrete sites, data of another shape than the example, or a negative length.

    Rezende and Mohamed (2015), Variational Inference with Normalizing Flows.
    """

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
        length: int = 10,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__(model, example_batch, hidden, encoder, length, min_scale, lambda dim: length * (2 * dim + 1))
        with torch.no_grad():
            rows = self.encoder.head.weight[2 * self.dim :].unflatten(0, (length, 2 * self.dim + 1))
            rows[:, self.dim : -1] *= _START

    def transforms(self, base: Any, context: Tensor) -> list[Any]:
        """The steps, from their parameters in the context."""
        w, u, b = context.unflatten(-1, (self.length, 2 * self.dim + 1)).split([self.dim, self.dim, 1], -1)
        slope, u = _invertible(w, u)
        steps = zip(*(part.unbind(-2) for part in (w, u, b, slope)), strict=True)
        return [_Planar(*step) for step in steps]


# m(0) = 0 for m(a) = -1 + softplus(a + _SHIFT).
_SHIFT = math.log(math.e - 1)


def _invertible(w: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """1 + w.u^ (..., 1), which is positive, and u^ (..., D)."""
    product = (w * u).sum(-1, keepdim=True)
    slope = softplus(product + _SHIFT)
    size = w.square().sum(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    return slope, u + (slope - 1 - product) * w / size


class _Planar(Transform):
    """z' = z + u^ tanh(w.z + b), of which `slope` is 1 + w.u^; w, u^ (B, D), b, slope (B, 1)."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, w: Tensor, u: Tensor, b: Tensor, slope: Tensor) -> None:
        super().__init__()
        self.w, self.u, self.b, self.slope = w, u, b, slope

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The log-determinant at x (..., B, D), (..., B)."""
        return self.call_and_ladj(x)[1]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value (..., B, D) and the log-determinant (..., B)."""
        h = ((self.w * x).sum(-1, keepdim=True) + self.b).tanh()
        # 1 + (1 - h^2) (slope - 1), as a sum of two positive terms.
        det = h.square() + (1 - h.square()) * self.slope
        return x + self.u * h, det.log().squeeze(-1)
