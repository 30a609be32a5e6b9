"""The joint states of discrete sites, as values of each."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from copy import copy
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import TransformedDistribution

from pvae.pair.sites import Site, base_of
from pvae.support.refusals import ContractError

__all__ = ["States", "Way"]

Way = Literal["joint", "dims", "alike"]


class States:
    """Every joint state of some sites with finite supports, numbered like the digits of a counter.

    Bernoulli, categorical, one-hot and binomial sites, over event dims and plates inside the data plate; each entry
    multiplies the number of states.

    Args:
        sites: the sites of a trace by name.
        shapes: shape of one datum's value of each: its plates inside the data plate, then the event.

    Attributes:
        way: how a sum over them is taken: "joint", over every joint state; "dims", entry by entry, the states along
            dims of their own (see `pvae.pair.sums.enumerated`); "alike", entry by entry, from copies in each of which
            all entries of a plate are in the same state (see `pvae.pair.sums.alike`).
        copies: how many times over a run evaluates a model to sum them out.

    Raises: ValueError for a site that is continuous, or without a finite support.
    """

    def __init__(self, sites: Mapping[str, Site], shapes: Mapping[str, torch.Size]) -> None:
        self.shapes = {name: shapes[name] for name in sites}
        # A table is (S, event of the base), and a site's value holds one entry of it per coordinate.
        self.tables = {name: _support(name, site) for name, site in sites.items()}
        self.event_dims = {name: site["fn"].event_dim for name, site in sites.items()}
        self.way: Way = "joint"
        self._num_states = 1

    @property
    def count(self) -> int:
        """How many states a run in copies takes: joint ones, or those where all entries of a plate are alike."""
        return math.prod(len(table) ** self._digits(name) for name, table in self.tables.items())

    @property
    def count_in_words(self) -> str:
        """The count, which may be too large for a float, for a message."""
        return f"{self.count:.3g}" if self.count < 10**300 else f"10^{int(math.log10(self.count))}"

    @property
    def copies(self) -> int:
        """How many times over a run evaluates a model to sum them out."""
        return self._num_states if self.way == "dims" else self.count

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

    @property
    def largest(self) -> int:
        """The largest number of states that one event of a site has."""
        return max(len(t) ** (self._event_shape(n).numel() // t.shape[1:].numel()) for n, t in self.tables.items())

    def summed(self, way: Way, num_states: int = 1) -> States:
        """The same states, to be summed out in some way; by "dims" at so many states of a site at once."""
        found = copy(self)
        found.way, found._num_states = way, num_states
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
            num_digits = self._digits(name)
            places = len(table) ** torch.arange(num_digits, device=numbers.device)
            digits = left[:, None] // places % len(table)
            left = left // len(table) ** num_digits
            shape = self.shapes[name]
            if self.way == "alike":
                shape = torch.Size((1,) * (len(shape) - self.event_dims[name])) + self._event_shape(name)
            values = table.to(numbers.device)[digits].reshape(len(numbers), 1, *shape)
            latents[name] = values.expand(-1, num_data, *self.shapes[name])
        return latents

    def _event_shape(self, name: str) -> torch.Size:
        return self.shapes[name][len(self.shapes[name]) - self.event_dims[name] :]

    def _digits(self, name: str) -> int:
        """How many coordinates of a site have states of their own."""
        shape = self._event_shape(name) if self.way == "alike" else self.shapes[name]
        return shape.numel() // self.tables[name].shape[1:].numel()


def _support(name: str, site: Site) -> Tensor:
    """The values one coordinate of a site can take: (S, event of the base distribution)."""
    fn = site["fn"]
    if not fn.support.is_discrete:
        raise ContractError(
            f"site '{name}' is continuous, which Enumeration cannot sum over",
            "use Quadrature for up to 2 continuous dims, else ImportanceSampling",
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
        raise ContractError(
            f"site '{name}' ({type(base).__name__}) has no finite support that is the same for all",
            "use ImportanceSampling",
        ) from None
    return table.reshape(len(table), *base.event_shape)
