"""What the log weights of a program are, computed slowly: one datum, particle, site and plate entry at a time.

Nothing of pvae, of Pyro or of torch takes part.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.programs.densities import log_prob, log_sum_exp, observation
from tests.programs.program import STATES, Body, Mask, Program, Scale, Site

Value = list[float]
Entry = dict[str, int]


@dataclass
class Term:
    """The log probability of one entry of a site, and what its masks and scales say of it."""

    site: Site
    log_prob: float
    dist_mask: bool
    mask: bool
    scale: float


class Reference:
    """The log weights of a program at given draws.

    Args:
        program: the program.
        x: the data, B rows of numbers.
        index: which of all data each row is.
        draws: values by the name of the drawn site, (K, B, *plates from the left, *event), as nested sequences can be
            indexed.
    """

    def __init__(self, program: Program, x: Any, index: list[int], draws: Mapping[str, Any]) -> None:
        self.program, self.index, self.draws = program, index, draws
        self._inner = functools.cache(lambda plates: tuple(plate for plate in program.plates if plate.name in plates))
        self._positions = {plate.name: position for position, plate in enumerate(program.plates)}
        self._entries_of = functools.cache(self._all_entries)
        self.x = [[float(number) for number in row] for row in x]

    def log_weight(self, k: int, b: int) -> float:
        """log p(x, z) - log q(z | x) without any scale."""
        exempt = self._is_exempt(k, b)
        guide = sum(self.counted(term, exempt) for term in self.terms("guide", k, b, {}) if term.site.role != "factor")
        joint = [
            sum(self.counted(term, exempt) for term in self.terms("model", k, b, states)) for states in self.states()
        ]
        return log_sum_exp(joint) - guide if guide > -math.inf else math.nan

    def log_joint(self, k: int, b: int) -> float:
        """log p(x, z), the sites that are to be summed out summed."""
        return log_sum_exp(
            [sum(self.counted(term) for term in self.terms("model", k, b, states)) for states in self.states()]
        )

    def bound(self, b: int, num_samples: int, *, of_weights: bool) -> float:
        """The ELBO of the draws, or with `of_weights` the importance-weighted bound, as training scales it."""
        scales = {
            round(term.scale, 12) for name in ("model", "guide") for term in self.terms(name, 0, b, next(self.states()))
        }
        shared = scales.pop() if self.shares_scale() else 1.0
        weights, factors = [], []
        for k in range(num_samples):
            guide = list(self.terms("guide", k, b, {}))
            joint = [
                sum(self._scaled(term, shared) for term in self.terms("model", k, b, states))
                for states in self.states()
            ]
            drawn = sum(self._scaled(term, shared) for term in guide if term.site.role != "factor")
            weights.append(log_sum_exp(joint) - drawn)
            factors.append(sum(self._scaled(term, shared) for term in guide if term.site.role == "factor"))
        mean = log_sum_exp(weights) - math.log(num_samples) if of_weights else sum(weights) / num_samples
        return shared * (mean - sum(factors) / num_samples)

    def shares_scale(self) -> bool:
        """Whether all sites of both functions have one scale, the same all over a datum."""
        for b in range(self.program.num_data):
            states = next(self.states())
            terms = [term for name in ("model", "guide") for term in self.terms(name, 0, b, states)]
            if max(term.scale for term in terms) - min(term.scale for term in terms) > 1e-12:
                return False
        return True

    def states(self) -> Iterator[dict[tuple[str, tuple[int, ...]], Value]]:
        """Every joint state of the sites that are summed out."""
        entries = [
            (site, self._key(site, entry))
            for site in self.program.model.sites
            if site.role == "summed"
            for entry in self._entries(site)
        ]
        choices = [
            list(itertools.product(map(float, range(STATES[site.family])), repeat=max(site.event, 1)))
            for site, _ in entries
        ]
        for chosen in itertools.product(*choices):
            yield {key: list(value) for (_, key), value in zip(entries, chosen, strict=True)}

    def terms(self, name: str, k: int, b: int, states: Mapping[tuple[str, tuple[int, ...]], Value]) -> Iterator[Term]:
        """The terms of a function's log probability for one particle and datum, at a state of the summed sites."""
        body: Body = getattr(self.program, name)
        values: dict[tuple[str, tuple[int, ...]], Value] = {}
        for site in body.sites:
            for entry in self._entries(site):
                key = self._key(site, entry)
                at = self._predictor(body, site, b, entry, values)
                terms, values[key] = self._at(name, site, k, b, entry, at, states.get(key))
                if not site.is_random:
                    continue
                masks = [self._mask(mask, b, entry) for mask in (*body.masks, *site.masks) if mask.how == "poutine"]
                of_dist = all(self._mask(mask, b, entry) for mask in site.masks if mask.how == "dist")
                scale = math.prod(self._scale(s, b, entry) for s in (*body.all_scales, *site.scales))
                yield Term(site, terms, of_dist, all(masks), scale)

    def _at(
        self, name: str, site: Site, k: int, b: int, entry: Entry, at: Value, state: Value | None
    ) -> tuple[float, Value]:
        """The log probability of a site's entry, and its value."""
        if site.role == "factor":
            return at[0], [0.0]
        if site.role == "deterministic":
            return 0.0, at
        number = self._number(site, entry)
        if site.role == "summed":
            assert state is not None
            value = state
        elif site.role == "latent":
            value = self.draw(site, k, b, entry)
        else:
            value = [observation(site.family, self.x[b], number, e) for e in range(len(at))]
        if site.centered is None or name == "guide":
            each = zip(at, value, strict=True)
            return sum(log_prob(site.family, loc, site.spread, number) for loc, number in each), value
        c, total, moved = site.centered, 0.0, []
        for loc, drawn in zip(at, value, strict=True):
            total += log_prob("normal", c * loc, site.spread**c, drawn)
            moved.append(loc + site.spread ** (1 - c) * (drawn - c * loc))
        return total, moved

    def _predictor(
        self, body: Body, site: Site, b: int, entry: Entry, values: Mapping[tuple[str, tuple[int, ...]], Value]
    ) -> Value:
        at = site.bias + site.slope * self.x[b][0] + 0.25 * self._number(site, entry)
        for j, parent in enumerate(site.parents):
            at += site.weight / (j + 1) * self._parent(body, parent, entry, values)
        if site.chain:
            (loop,) = (plate for plate in self._inner(site.plates) if plate.how == "markov")
            if entry[loop.name]:
                at += 0.5 * sum(values[self._key(site, {**entry, loop.name: entry[loop.name] - 1})])
        if self.program.subsampling == "index":
            at += 0.1 * self.index[b]
        if site.breach in ("mean", "neighbour"):
            at += 0.7 * self.x[b][3]
        if site.breach == "count":
            at += 0.3
        return [at + 0.2 * e for e in range(max(site.event, 1))]

    def _parent(
        self, body: Body, name: str, entry: Entry, values: Mapping[tuple[str, tuple[int, ...]], Value]
    ) -> float:
        parent = next(site for site in body.sites if site.name == name)
        found = [
            sum(values[self._key(parent, each)])
            for each in self._entries(parent)
            if all(each[plate] == i for plate, i in entry.items() if plate in each)
        ]
        return sum(found) / len(found)

    def draw(self, site: Site, k: int, b: int, entry: Entry) -> Value:
        name = site.name if site.centered is None else f"{site.name}_decentered"
        inner = self._inner(site.plates)
        name += "".join(f"_{entry[plate.name]}" for plate in inner if plate.is_loop)
        value = self.draws[name][k][b]
        for plate in sorted((plate for plate in inner if not plate.is_loop), key=lambda plate: plate.dim):
            value = value[entry[plate.name]]
        return [float(number) for number in value] if site.event else [float(value)]

    def _entries(self, site: Site) -> list[Entry]:
        return self._entries_of(site.plates)

    def _all_entries(self, plates: tuple[str, ...]) -> list[Entry]:
        inner = self._inner(plates)
        # A plate that follows the batch holds one datum where a datum is alone.
        ranges = [range(1 if plate.how == "again" else plate.size) for plate in inner]
        return [
            {plate.name: i for plate, i in zip(inner, numbers, strict=True)} for numbers in itertools.product(*ranges)
        ]

    def _key(self, site: Site, entry: Entry) -> tuple[str, tuple[int, ...]]:
        return site.name, tuple([entry[plate.name] for plate in self._inner(site.plates)])

    def _number(self, site: Site, entry: Entry) -> float:
        return sum([(self._positions[plate.name] + 1) * entry[plate.name] for plate in self._inner(site.plates)])

    def _mask(self, mask: Mask, b: int, entry: Entry) -> bool:
        number = sum(entry.values())
        return {
            "datum": self.x[b][1] > 0,
            "within": math.floor(3 * self.x[b][1]) % 3 != number % 3,
            "entries": number % 2 == 1,
            "off": False,
            "on": True,
            "False": False,
        }[mask.kind]

    def _scale(self, scale: Scale, b: int, entry: Entry) -> float:
        if scale.kind == "datum":
            return scale.value * (1 + self.x[b][1] ** 2)
        return scale.value * (1 + sum(entry.values())) if scale.kind == "within" else scale.value

    def _is_exempt(self, k: int, b: int) -> bool:
        """Whether all sites of both functions carry a mask of one entry per datum, and all mask out this one."""
        for name in ("model", "guide"):
            body: Body = getattr(self.program, name)
            for site in filter(lambda site: site.is_random, body.sites):
                masks = [mask for mask in (*body.masks, *site.masks) if mask.how == "poutine"]
                if not masks or self._may_change_within(masks, site):
                    return False
                # A loop's entries are sites of their own, and every site has to be masked out.
                if any(all(self._mask(mask, b, entry) for mask in masks) for entry in self._entries(site)):
                    return False
        return True

    def _may_change_within(self, masks: list[Mask], site: Site) -> bool:
        """Whether masks have entries within a datum, by their shape: more than one, or a dim for a plate of one."""
        plates = [plate for plate in self._inner(site.plates) if not plate.is_loop]
        dims = {mask.kind: [-plate.dim for plate in plates] for mask in masks if mask.kind in ("within", "entries")}
        is_wide = bool(dims) and any(plate.size > 1 for plate in plates)
        reach = max([0, *(dim for each in dims.values() for dim in each)])
        if any(mask.kind in ("datum", "within") for mask in masks):
            reach = max(reach, -self.program.data_dim)
        return is_wide or any(plate.size == 1 and -plate.dim <= reach for plate in plates)

    @staticmethod
    def counted(term: Term, exempt: bool = False) -> float:
        if term.site.role == "summed":
            return term.log_prob
        return term.log_prob if term.dist_mask and (term.mask or exempt) else 0.0

    @staticmethod
    def _scaled(term: Term, shared: float) -> float:
        if term.site.role == "summed":
            return term.log_prob * term.scale / shared
        return term.log_prob * term.scale / shared if term.dist_mask and term.mask else 0.0
