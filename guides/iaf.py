"""The inverse autoregressive flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.nn.functional import logsigmoid

from pvae.guides.parts.flow import Flow
from pvae.support.autoregressive import autoregressive_step
from pvae.support.refusals import number, whole, widths

__all__ = ["IAF"]


class IAF(Flow):
    """Inverse autoregressive flow: z' = s * z + (1 - s) * m, with s_i = sigmoid(a_i + gate_bias), (m, a) = MADE(z, h).

    m_i and a_i see the numbers before i, in the order of the latent numbers at the first step, reversed from each step
    to the next; log |det| = sum_i log s_i. The start is a diagonal Gaussian from the encoder, which gives h(x), too.
    A draw and its density are one pass; the density of a value from elsewhere takes D passes per step, one number
    after the other (a masked autoregressive flow is the reverse, and no guide to draw from).

    Args:
        model: any model within the contract; its latent sites are read from one run.
        example_batch: a batch (B, ...), or a tuple of them, read for its shapes.
        hidden: widths of the default encoder's hidden layers (tanh).
        encoder: a net from the batch to features (B, F), used instead of the default.
        length: steps; 0 is `MeanField`, number by number.
        step_hidden: widths of the hidden layers of each step's masked net (tanh).
        context: width of h.
        gate_bias: what s starts from: sigmoid(2) = 0.88 leaves z nearly as it is.
        min_scale: floor on each scale of the start.

    Raises: ValueError for discrete sites, data of another shape than the example, a negative length, or no context.

    Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016), Improving Variational Inference with Inverse
    Autoregressive Flow.
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
        gate_bias: float = 2.0,
        min_scale: float = 1e-4,
    ) -> None:
        # The steps need a context to depend on the data.
        context, step_hidden = whole("context", context, usual=64), widths("step_hidden", step_hidden, usual=(128,))
        super().__init__(model, example_batch, hidden, encoder, length, min_scale, lambda _dim: context)
        before = torch.ones(self.dim, self.dim, dtype=torch.bool).tril(-1)
        gate = partial(_Gate, bias=number("gate_bias", gate_bias, usual=2.0))
        self.steps = nn.ModuleList(
            autoregressive_step(self.dim, context, step_hidden, before.T if index % 2 else before, gate, ((), ()))
            for index in range(length)
        ).to(self.encoder.head.weight.dtype)

    def transforms(self, base: Any, context: Tensor) -> list[Any]:
        """The steps, each with the same context."""
        return [step(context) for step in self.steps]


class _Gate(Transform):
    """z' = s z + (1 - s) m with s = sigmoid(logit + bias), for real z."""

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, m: Tensor, logit: Tensor, bias: float) -> None:
        super().__init__()
        self.m, self.logit = m, logit + bias

    def _call(self, x: Tensor) -> Tensor:
        return self.m + self.logit.sigmoid() * (x - self.m)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.m + (y - self.m) / self.logit.sigmoid()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log s, as wide as x."""
        return logsigmoid(self.logit).expand_as(x)
