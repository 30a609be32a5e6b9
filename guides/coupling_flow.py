"""The affine coupling flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pvae.guides.parts.flow import Flow
from pvae.support.autoregressive import MonotonicAffineTransform, autoregressive_step
from pvae.support.refusals import whole, widths

__all__ = ["CouplingFlow"]


class CouplingFlow(Flow):
    """Affine coupling: z'_b = exp(s_b(z_a, h)) z_b + t_b(z_a, h) and z'_a = exp(s_a(h)) z_a + t_a(h).

    a are the latent numbers at even places and b those at odd ones; they change parts from each step to the next. The
    log scales are kept within +-log 1000, smoothly. The start is a diagonal Gaussian from the encoder, which gives the
    context h(x), too. A draw is one pass, the density of a value from elsewhere two passes per step.

    Args:
        model: any model within the contract; its latent sites are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default.
        length: steps; 0 is `MeanField`, number by number.
        step_hidden: widths of the hidden layers of each step's net (tanh).
        context: width of h.
        min_scale: floor on each scale of the start.

    Raises: ValueError for discrete sites, data of another shape than the example, a negative length, or no context.

    Dinh, Sohl-Dickstein and Bengio (2017), Density Estimation Using Real NVP, where a stays as it is.
    """

    def __init__(
        self,
        model: Callable[..., object],
        example_batch: Tensor | tuple[Tensor, ...],
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Callable[..., Tensor] | None = None,
        length: int = 4,
        step_hidden: Sequence[int] = (128,),
        context: int = 64,
        min_scale: float = 1e-4,
    ) -> None:
        # The steps need a context to depend on the data.
        context, step_hidden = whole("context", context, usual=64), widths("step_hidden", step_hidden, usual=(128,))
        super().__init__(model, example_batch, hidden, encoder, length, min_scale, lambda _dim: context)
        is_odd = torch.arange(self.dim) % 2 == 1
        of_even = is_odd[:, None] & ~is_odd
        self.steps = nn.ModuleList(
            autoregressive_step(
                self.dim,
                context,
                step_hidden,
                of_even.T if index % 2 else of_even,
                MonotonicAffineTransform,
                ((), ()),
            )
            for index in range(length)
        ).to(self.encoder.head.weight.dtype)

    def transforms(self, base: Any, context: Tensor) -> list[Any]:
        """The steps, each with the same context."""
        return [step(context) for step in self.steps]
