"""Distributions that can be drawn from and have no density."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pvae.pair.sites import Site
from pvae.support.refusals import ContractError

__all__ = ["Implicit", "refusal_of"]


class Implicit(dist.TorchDistribution):
    """The distribution of f(noise), over the reals, for a function f that says nothing of a density.

    Args:
        draw: from a shape to that many draws (*shape, *event_shape); their history is kept.
        batch_shape: dims of independent draws.
        event_shape: of one draw.
        refusal: what to tell who asks for the density.
        is_point: whether `draw` takes no noise, so that every draw is the mean.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(
        self,
        draw: Callable[[torch.Size], Tensor],
        batch_shape: Sequence[int],
        event_shape: Sequence[int],
        refusal: ContractError,
        *,
        is_point: bool = False,
    ) -> None:
        self.draw, self.refusal, self.is_point = draw, refusal, is_point
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    @property
    def support(self) -> Any:
        """The reals."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """The point, if it is one.

        Raises: NotImplementedError if it is none.
        """
        if not self.is_point:
            raise NotImplementedError("the mean of what is drawn by a net is not known")
        return self.draw(self.batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Implicit:
        """The same distribution, drawn from more often."""
        return Implicit(self.draw, batch_shape, self.event_shape, self.refusal, is_point=self.is_point)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws (*sample_shape, *batch_shape, *event_shape), with their history."""
        return self.draw(torch.Size(sample_shape) + self.batch_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """As `rsample`, without history."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """There is none.

        Raises: ValueError, always.
        """
        raise ContractError(self.refusal.found, self.refusal.fix)


def refusal_of(site: Site) -> ContractError | None:
    """What to tell who asks for the density of a site; None if it has one."""
    return getattr(site["fn"], "refusal", None)
