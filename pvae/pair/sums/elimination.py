"""Summing discrete sites out one plate entry after the other, by variable elimination on the factors of a run."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping
from functools import reduce
from typing import Any

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from torch import Tensor

from pvae.pair.layout import PARTICLES
from pvae.pair.sites import Plate, Site

__all__ = ["Elimination"]

# A tensor whose dims are named by the letters of its attribute `_pyro_dims`, dims of size 1 left out.
Packed = Any


class Elimination:
    """The log probabilities of a model's sites as factors, and the discrete sites whose values run along their dims.

    With n factors f_i over states y, entries of a plate being independent given the rest, a sum over all joint states
    is taken entry by entry: sum_y prod_i f_i costs as much as the largest factor, not as the number of joint states.
    Chains are summed step by step (the forward algorithm).

    Args:
        sites: the sites of a model whose trace has symbols for its dims (`pyro.poutine.Trace.symbolize_dims`).
        log_probs: the log probability of each.
        summed: names of those to sum out.
        data: the plate over the data.

    Raises: NotImplementedError for a site that depends on an entry of a plate that it lies outside of.

    Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs.
    """

    def __init__(
        self, sites: Mapping[str, Site], log_probs: Mapping[str, Tensor], summed: Collection[str], data: Plate
    ) -> None:
        self.sites, self.log_probs = {**sites}, log_probs
        self.symbols = {name: sites[name]["infer"]["_enumerate_symbol"] for name in sites if name in summed}
        every = {name: packed.pack(log_probs[name], _letters(sites[name])) for name in self.sites}
        self.free = [name for name, factor in every.items() if not self._depends(factor)]
        self.factors = {name: factor for name, factor in every.items() if name not in self.free}
        kept = {data.name, PARTICLES}
        self._kept = frozenset(letter for name in sites for letter in _plates(sites[name], kept))
        self._require_nested()

    @property
    def num_states(self) -> int:
        """At how many states a site was evaluated, at most."""
        letters = {*self.symbols.values()}
        return max(
            (_size(factor, letters.intersection(factor._pyro_dims)) for factor in self.factors.values()), default=1
        )

    def log_sum(self, names: Collection[str], *, normalized: bool) -> list[Tensor]:
        """The logarithm of the sum over all states of the product of these sites' factors, plates but two multiplied.

        Sites without a factor over states are left aside. Where the distributions are `normalized`, a site to sum out
        that no other one depends on is dropped.

        Returns: a tensor with the dims of the data and particle plates where they are in a run; none for a sum of 1.
        """
        factors = {name: factor for name, factor in self.factors.items() if name in names}
        if normalized:
            factors = self._without_leaves(factors)
        if not factors:
            return []
        return [self.unpacked(self._contract(factors, self._ring()))]

    def draw(self) -> dict[str, Tensor]:
        """The number of a state for every entry of every site to sum out, from their joint posterior.

        Each is a tensor over the plates of the site, as in a run.
        """
        ring = self._ring()
        self._contract(self.factors, ring)
        names = {letter: name for name, letter in self.symbols.items()}
        indices: dict[str, Packed] = {}
        # What a sum over a site left open was summed over after it, and is drawn by now.
        for letter, term in reversed(ring.summed):
            site = self.sites[names[letter]]
            logits = ring.broadcast(self.at(term, indices), frozenset(_plates(site)))
            dims = logits._pyro_dims
            logits = logits.movedim(dims.index(letter), -1)
            index = torch.distributions.Categorical(logits=logits, validate_args=False).sample()
            index._pyro_dims = dims.replace(letter, "")
            indices[names[letter]] = index
        only = torch.zeros((), dtype=torch.long, device=next(iter(self.sites.values()))["value"].device)
        return {
            name: (self.unpacked(indices[name]) if name in indices else only).expand(_plate_shape(self.sites[name]))
            for name in self.symbols
        }

    def at(self, factor: Packed, indices: Mapping[str, Packed]) -> Packed:
        """A factor at states of some sites, given as packed tensors of their numbers."""
        for name, index in indices.items():
            if self.symbols[name] in factor._pyro_dims:
                factor = packed.gather(factor, index, self.symbols[name])
        return factor

    def packed(self, name: str, value: Tensor) -> Packed:
        """A tensor over the plates of a site, packed."""
        return packed.pack(value, _letters(self.sites[name]))

    def unpacked(self, value: Packed) -> Tensor:
        """A packed tensor with its dims where they are in a run."""
        dims = {letter: dim for site in self.sites.values() for dim, letter in _letters(site).items()}
        return packed.unpack(value, dims)

    def _ring(self) -> _LogSums:
        sizes = {_letters(site)[f.dim]: f.size for site in self.sites.values() for f in _frames(site)}
        for factor in self.factors.values():
            sizes.update(zip(factor._pyro_dims, factor.shape, strict=True))
        return _LogSums(cache={}, dim_to_size=sizes)

    def _contract(self, factors: Mapping[str, Packed], ring: _LogSums) -> Packed:
        tree: OrderedDict[frozenset[str], list[Packed]] = OrderedDict()
        for name, factor in factors.items():
            tree.setdefault(frozenset(_plates(self.sites[name])), []).append(factor)
        return contract_to_tensor(tree, {*self.symbols.values()}, target_ordinal=self._kept, ring=ring)

    def _without_leaves(self, factors: dict[str, Packed]) -> dict[str, Packed]:
        """The factors that are left when sites whose own factor sums to 1 are summed out."""
        held = Counter(letter for factor in factors.values() for letter in factor._pyro_dims)
        # What depends on a site comes after it.
        for name in reversed([each for each in factors if each in self.symbols]):
            if held[self.symbols[name]] == 1 and not _is_masked(self.sites[name]["fn"]):
                held.subtract(factors.pop(name)._pyro_dims)
        return factors

    def _depends(self, factor: Packed) -> bool:
        return any(letter in factor._pyro_dims for letter in self.symbols.values())

    def _require_nested(self) -> None:
        for summed, letter in self.symbols.items():
            inside = frozenset(_plates(self.sites[summed]))
            for name, factor in self.factors.items():
                if letter in factor._pyro_dims and not inside.issubset(_plates(self.sites[name])):
                    raise NotImplementedError(f"site '{name}' lies outside a plate of '{summed}', on which it depends")
            if not self._kept <= inside:
                raise NotImplementedError(f"site '{summed}' lies outside the data plate")


class _LogSums(LogRing):
    """Sums of products of exponentials by `logsumexp`, which no difference between factors' sizes underflows.

    `summed` holds, in order, the letter of each dim that was summed out and the sum of the terms that had it.
    """

    def __init__(self, cache: dict[Any, Any], dim_to_size: dict[str, int]) -> None:
        super().__init__(cache, dim_to_size)
        self.summed: list[tuple[str, Packed]] = []

    def sumproduct(self, terms: Iterable[Packed], dims: Iterable[str]) -> Packed:
        """Add the terms up, and sum `dims` out one after the other, the cheapest first."""
        left = [*terms]
        wanted = sorted(set(dims).intersection(*[{letter for term in left for letter in term._pyro_dims}]))
        costs = {letter: _cost(left, letter) for letter in wanted}
        while costs:
            letter = min(costs, key=costs.__getitem__)
            del costs[letter]
            term = _added([term for term in left if letter in term._pyro_dims], first=letter)
            self.summed.append((letter, term))
            rest, term = term._pyro_dims.replace(letter, ""), term.logsumexp(0)
            term._pyro_dims = rest
            left = [other for other in left if letter not in other._pyro_dims] + [term]
            costs |= {other: _cost(left, other) for other in costs if other in rest}
        return _added(left)


def _cost(terms: list[Packed], letter: str) -> int:
    sizes: dict[str, int] = {}
    for term in terms:
        if letter in term._pyro_dims:
            sizes.update(zip(term._pyro_dims, term.shape, strict=True))
    return math.prod(sizes.values())


def _added(terms: list[Packed], first: str = "") -> Packed:
    """The sum of packed tensors, the small ones first; `first` becomes the leftmost dim."""
    terms = sorted(terms, key=Tensor.numel)
    dims = terms[-1]._pyro_dims
    dims = "".join(sorted({letter for term in terms for letter in term._pyro_dims} - set(dims))) + dims
    dims = first + dims.replace(first, "") if first else dims
    total: Packed = reduce(torch.add, [_aligned(term, dims) for term in terms])[...]
    total._pyro_dims = dims
    return total


def _aligned(term: Packed, dims: str) -> Tensor:
    own = [letter for letter in dims if letter in term._pyro_dims]
    sizes = dict(zip(term._pyro_dims, term.shape, strict=True))
    return term.permute([term._pyro_dims.index(letter) for letter in own]).reshape([sizes.get(d, 1) for d in dims])


def _letters(site: Site) -> dict[int, str]:
    return site["infer"]["_dim_to_symbol"]


def _frames(site: Site) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def _plates(site: Site, names: Collection[str] | None = None) -> list[str]:
    """The letters of the plates around a site."""
    return [_letters(site)[frame.dim] for frame in _frames(site) if names is None or frame.name in names]


def _plate_shape(site: Site) -> list[int]:
    shape = [1] * max(-frame.dim for frame in _frames(site))
    for frame in _frames(site):
        shape[frame.dim] = frame.size
    return shape


def _size(factor: Packed, letters: Collection[str]) -> int:
    pairs = zip(factor._pyro_dims, factor.shape, strict=True)
    return math.prod(size for letter, size in pairs if letter in letters)


def _is_masked(distribution: Any) -> bool:
    while hasattr(distribution, "base_dist"):
        if isinstance(distribution, MaskedDistribution):
            return True
        distribution = distribution.base_dist
    return False
