"""Steps of zuko's in which each latent number is carried by a function of one variable that the others parametrise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from pvae.support.glorot import glorot

__all__ = [
    "ComposedTransform",
    "MonotonicAffineTransform",
    "MonotonicRQSTransform",
    "NormalizingFlow",
    "autoregressive_step",
]


@contextmanager
def _unchanged() -> Iterator[None]:
    """Zuko switches the validation of every torch distribution off when it is imported; switch it back."""
    names = ("_validate_args", "arg_constraints")
    before = {name: Distribution.__dict__[name] for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(Distribution, name, value)


with _unchanged():
    from zuko.distributions import NormalizingFlow
    from zuko.flows.autoregressive import MaskedAutoregressiveTransform
    from zuko.transforms import ComposedTransform, MonotonicAffineTransform, MonotonicRQSTransform

# Of the last weights: a flow starts near its base, and still every weight has a gradient.
_START = 0.1


def autoregressive_step(
    dim: int,
    context: int,
    hidden: Sequence[int],
    follows: Tensor,
    univariate: Callable[..., Transform],
    shapes: Sequence[tuple[int, ...]],
) -> nn.Module:
    """From a context (B, context) to a transform of z (..., B, D): z'_i = f(z_i; a_i), a = net(z, context) masked.

    Without a context it is called with none, and is one transform of all z (..., D).

    Forward is one pass for all i; its inverse takes as many passes as the longest chain in `follows`.

    Args:
        dim: D.
        context: width of the context, 0 for none.
        hidden: widths of the masked net's hidden layers (tanh).
        follows: (D, D), whether a_i may depend on z_j; without a cycle.
        univariate: from the parts of a_i to f, a torch transform of reals.
        shapes: shapes of those parts.

    Germain, Gregor, Murray and Larochelle (2015), MADE: Masked Autoencoder for Distribution Estimation.
    """
    step = MaskedAutoregressiveTransform(
        dim,
        context,
        adjacency=follows | torch.eye(dim, dtype=torch.bool),
        univariate=univariate,
        shapes=shapes,
        hidden_features=hidden,
        activation=nn.Tanh,
    )
    *_, weight, _bias = glorot(step).parameters()
    with torch.no_grad():
        weight.mul_(_START)
    return step
