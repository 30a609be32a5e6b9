"""A distribution whose columns are of several kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["Columnwise"]


class _EachInItsOwn(constraints.Constraint):
    """Each column in the support of its part."""

    def __init__(self, columns: Columnwise) -> None:
        self.columns = columns

    def check(self, value: Tensor) -> Tensor:
        parts = zip(self.columns.parts, self.columns.split(value), strict=True)
        return self.columns.join([part.support.check(own) for part, own in parts])


class Columnwise(dist.TorchDistribution):
    """Independent columns of several kinds, of batch shape (..., D): each log probability is of one entry.

    Args:
        parts: a distribution for each group of columns, of batch shape (..., columns in the group).
        places: for each part the places of its columns among the D.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        parts: Sequence[dist.TorchDistribution],
        places: Sequence[Sequence[int]],
        validate_args: bool | None = None,
    ) -> None:
        lead = torch.broadcast_shapes(*(part.batch_shape[:-1] for part in parts))
        self.parts = [part.expand((*lead, len(own))) for part, own in zip(parts, places, strict=True)]
        self.places = places
        order = [place for own in places for place in own]
        self._back = sorted(range(len(order)), key=order.__getitem__)
        super().__init__(torch.Size((*lead, len(order))), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Each column in the support of its part."""
        return _EachInItsOwn(self)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Columnwise:
        """The same with a larger batch shape (..., D)."""
        parts = [part.expand((*batch_shape[:-1], len(own))) for part, own in zip(self.parts, self.places, strict=True)]
        return Columnwise(parts, self.places, self._validate_args)

    def split(self, value: Tensor) -> list[Tensor]:
        """A value (..., D) as the columns of each part."""
        return [value[..., own] for own in self.places]

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return torch.cat([*values], -1)[..., self._back]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability or density of every entry, (..., D)."""
        if self._validate_args:
            self._validate_sample(value)
        return self.join([part.log_prob(own) for part, own in zip(self.parts, self.split(value), strict=True)])

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws (*sample_shape, ..., D), all floats."""
        draws = [part.sample(torch.Size(sample_shape)) for part in self.parts]
        return self.join([draw.to(_floating(draws)) for draw in draws])

    @property
    def mean(self) -> Tensor:
        """Means (..., D); of columns without one, as of categories, the mode."""
        means = [part.mode if isinstance(part, dist.Categorical) else part.mean for part in self.parts]
        return self.join([mean.to(_floating(means)) for mean in means])


def _floating(values: Sequence[Tensor]) -> torch.dtype:
    """The dtype of the floats among some values."""
    return next((value.dtype for value in values if value.is_floating_point()), torch.get_default_dtype())
