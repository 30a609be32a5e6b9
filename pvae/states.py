"""The joint states of discrete sites, as values of each."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from copy import copy

import torch
from torch import Tensor
from torch.distributions import TransformedDistribution

from pvae.sites import Site, base_of

__all__ = ["States"]


class States:
    """Every joint state of some sites with finite supports, numbered like the digits of a counter.

    Bernoulli, categorical, one-hot and binomial sites, over event dims and plates inside the data plate; each entry
    multiplies the number of states.

    Args:
        sites: the sites of a trace by name.
        shapes: shape of one datum's value of each: its plates inside the data plate, then the event.

    Attributes:
        per_entry: None where a sum over them takes every joint state; else the states that a site is evaluated at
            where they are summed out entry by entry (see `pvae.elimination`).

    Raises: ValueError for a site that is continuous, or without a finite support.
    """

    def __init__(self, sites: Mapping[str, Site], shapes: Mapping[str, torch.Size]) -> None:
        self.shapes = {name: shapes[name] for name in sites}
        # A table is (S, event of the base), and a site's value holds one entry of it per coordinate.
        self.tables = {name: _support(name, site) for name, site in sites.items()}
        self.event_dims = {name: site["fn"].event_dim for name, site in sites.items()}
        self.per_entry: int | None = None

    @property
    def count(self) -> int:
        """How many joint states there are."""
        return math.prod(len(table) ** self._coordinates(name) for name, table in self.tables.items())

    @property
    def copies(self) -> int:
        """How many times over a run evaluates a model to sum them out."""
        return self.count if self.per_entry is None else self.per_entry

    def events(self, name: str) -> Tensor:
        """The values of one event of a site, (S, *event_shape)."""
        table, event_shape = self.tables[name], self._event_shape(name)
        coordinates = event_shape.numel() // table.shape[1:].numel()
        places = len(table) ** torch.arange(coordinates, device=table.device)
        digits = torch.arange(len(table) ** coordinates, device=table.device)[:, None] // places % len(table)
        return table[digits].reshape(-1, *event_shape)

    def log_count(self, name: str, event_shape: torch.Size) -> float:
        """The logarithm of how many states one event of a site has."""
        table = self.tables[name]
        return event_shape.numel() // table.shape[1:].numel() * math.log(len(table))

    def log_events(self, name: str) -> float:
        """`log_count` of a site's own event shape."""
        return self.log_count(name, self._event_shape(name))

    def per_entry_of(self, num_states: int) -> States:
        """The same states, to be summed out entry by entry at so many states of a site at once."""
        found = copy(self)
        found.per_entry = num_states
        return found

    def besides(self, names: Collection[str]) -> States:
        """The states of the sites that are not among `names`."""
        rest = copy(self)
        rest.tables = {name: table for name, table in self.tables.items() if name not in names}
        rest.shapes = {name: self.shapes[name] for name in rest.tables}
        return rest

    def values(self, numbers: Tensor, num_data: int) -> dict[str, Tensor]:
        """The states of these numbers (S,), the same for every datum, as values (S, B, ...) of every site."""
        latents, left = {}, numbers
        for name, table in self.tables.items():
            coordinates = self._coordinates(name)
            places = len(table) ** torch.arange(coordinates, device=numbers.device)
            digits = left[:, None] // places % len(table)
            left = left // len(table) ** coordinates
            values = table.to(numbers.device)[digits].reshape(len(numbers), 1, *self.shapes[name])
            latents[name] = values.expand(-1, num_data, *values.shape[2:])
        return latents

    def _event_shape(self, name: str) -> torch.Size:
        return self.shapes[name][len(self.shapes[name]) - self.event_dims[name] :]

    def _coordinates(self, name: str) -> int:
        return self.shapes[name].numel() // self.tables[name].shape[1:].numel()


def _support(name: str, site: Site) -> Tensor:
    """The values one coordinate of a site can take: (S, event of the base distribution)."""
    fn = site["fn"]
    if not fn.support.is_discrete:
        raise ValueError(
            f"site '{name}' is continuous, which Enumeration cannot sum over; use Quadrature for up to 2 continuous "
            "dims, else ImportanceSampling"
        )
    base = base_of(fn)
    wrapped = fn
    while hasattr(wrapped, "base_dist") and not isinstance(wrapped, TransformedDistribution):
        wrapped = wrapped.base_dist
    try:
        if wrapped is not base:
            raise NotImplementedError
        table = base.enumerate_support(expand=False)
    except NotImplementedError:
        raise ValueError(
            f"site '{name}' ({type(base).__name__}) has no finite support that is the same for all; use "
            "ImportanceSampling"
        ) from None
    return table.reshape(len(table), *base.event_shape)
