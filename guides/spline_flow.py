"""The autoregressive neural spline flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform

from pvae.guides.parts.flow import Flow
from pvae.support.autoregressive import MonotonicRQSTransform, autoregressive_step
from pvae.support.refusals import number, whole, widths

__all__ = ["SplineFlow"]


class SplineFlow(Flow):
    """Neural splines: each number passes a monotone rational-quadratic spline whose knots come from those before it.

    The start is a diagonal Gaussian N(loc, scale^2) from the encoder, which gives a context h(x), too. Steps act on
    (z - loc) / scale, so that their range [-bound, bound], outside of which they change nothing, holds any posterior.
    Knots of i see h(x) and the numbers before i; that order is reversed from each step to the next.
    A draw and its density are one pass; the density of a value from elsewhere takes D passes per step.

    Args:
        model: any model within the contract; its latent sites are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default.
        length: steps; 0 is `MeanField`, number by number.
        step_hidden: widths of the hidden layers of each step's masked net (tanh).
        context: width of h.
        bins: pieces of each spline.
        bound: the splines' range, in scales of the start.
        min_scale: floor on each scale of the start.

    Raises: ValueError for discrete sites, data of another shape than the example, a negative length, or no context.

    Durkan, Bekasov, Murray and Papamakarios (2019), Neural Spline Flows.
    """

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
        length: int = 2,
        step_hidden: Sequence[int] = (128,),
        context: int = 64,
        bins: int = 8,
        bound: float = 5.0,
        min_scale: float = 1e-4,
    ) -> None:
        # The steps need a context to depend on the data.
        context, step_hidden = whole("context", context, usual=64), widths("step_hidden", step_hidden, usual=(128,))
        super().__init__(model, example_batch, hidden, encoder, length, min_scale, lambda _dim: context)
        bins, bound = whole("bins", bins, usual=8), number("bound", bound, above=0, usual=5.0)
        before = torch.ones(self.dim, self.dim, dtype=torch.bool).tril(-1)
        spline, shapes = partial(MonotonicRQSTransform, bound=bound), ((bins,), (bins,), (bins - 1,))
        self.steps = nn.ModuleList(
            autoregressive_step(self.dim, context, step_hidden, before.T if index % 2 else before, spline, shapes)
            for index in range(length)
        ).to(self.encoder.head.weight.dtype)

    def transforms(self, base: Any, context: Tensor) -> list[Any]:
        """The steps, between the map to standard numbers and its inverse."""
        standard = AffineTransform(base.base_dist.loc, base.base_dist.scale, event_dim=1)
        return [standard.inv, *(step(context) for step in self.steps), standard]
