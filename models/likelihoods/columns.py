"""The likelihood of tables with columns of several kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from pvae.models.likelihoods.bernoulli import Bernoulli
from pvae.models.likelihoods.categorical import Categorical
from pvae.models.likelihoods.columnwise import Columnwise
from pvae.models.likelihoods.gaussian import Gaussian
from pvae.models.likelihoods.negative_binomial import NegativeBinomial
from pvae.support.refusals import shown, whole

__all__ = ["Columns", "Kind"]

Kind = str | tuple[str, int]


class Columns(nn.Module):
    """A table of mixed columns: p(x | z) = prod_d p_d(x_d | z), each column by its kind.

    "real" is `Gaussian` and "count" `NegativeBinomial`, with one learned scale or dispersion per column; "binary" is
    `Bernoulli`; ("categorical", C) is `Categorical`, its values 0 ... C - 1. x is (B, D), floats. A mean of the
    distribution holds the likeliest category of a categorical column.

    Args:
        columns: the kind of each of the D columns, in order.

    Raises: ValueError for no column, an unknown kind, or data of another width.

    Nazabal et al. (2020), Handling Incomplete Heterogeneous Data using VAEs.
    """

    def __init__(self, columns: Sequence[Kind]) -> None:
        super().__init__()
        if not isinstance(columns, Sequence) or isinstance(columns, (str, bytes)) or not columns:
            raise ValueError(f"columns must name the kind of each column, got {shown(columns)}; try ('real', 'binary')")
        self.columns = columns = tuple(_kind(each) for each in columns)
        self.places = {kind: [i for i, own in enumerate(columns) if own == kind] for kind in dict.fromkeys(columns)}
        self.likelihoods = nn.ModuleList(_of_kind(kind, len(places)) for kind, places in self.places.items())
        widths = [len(places) * each.num_parameters for places, each in self._groups()]
        self.num_parameters: int = sum(widths)
        self.widths: list[int] = widths

    def parameter_shape(self, x_shape: Sequence[int]) -> tuple[int, ...]:
        """(n,): the numbers of all columns, kind by kind."""
        if tuple(x_shape) != (len(self.columns),):
            raise ValueError(
                f"Columns names {len(self.columns)} columns, got data of shape {tuple(x_shape)}; name each column once"
            )
        return (self.num_parameters,)

    def forward(self, parameters: Tensor, x_shape: Sequence[int]) -> dist.TorchDistribution:
        """(..., n) -> a distribution with event shape (D,)."""
        parts = []
        for numbers, (places, likelihood) in zip(parameters.split(self.widths, -1), self._groups(), strict=True):
            shape = (len(places),)
            of_kind = likelihood(numbers.unflatten(-1, likelihood.parameter_shape(shape)), shape)
            parts.append(of_kind.base_dist)
        return Columnwise(parts, list(self.places.values())).to_event(1)

    def _groups(self) -> list[tuple[list[int], Any]]:
        return list(zip(self.places.values(), self.likelihoods, strict=True))


def _kind(given: Any) -> Kind:
    match given:
        case "real" | "count" | "binary":
            return str(given)
        case ("categorical", num_categories):
            return "categorical", whole("C of ('categorical', C)", num_categories, 2, usual=3)
    raise ValueError(
        f"each of columns must be 'real', 'binary', 'count' or ('categorical', C), got {shown(given)}; name one of them"
    )


def _of_kind(kind: Kind, num_columns: int) -> nn.Module:
    match kind:
        case "real":
            return Gaussian("shared", x_shape=(num_columns,))
        case "count":
            return NegativeBinomial("shared", x_shape=(num_columns,))
        case (_, int(num_categories)):
            return Categorical(num_categories)
    return Bernoulli()
