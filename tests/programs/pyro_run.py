"""One run of a function of a program: its plates, handlers and statements, in tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from tests.programs.program import DATA, Body, Mask, Plate, Program, Scale, Site

Entry = dict[str, int]


class Run:
    """One run of a function on a batch."""

    def __init__(
        self, program: Program, name: str, batch: tuple[Tensor, ...], read: Callable[[str], Tensor] | None = None
    ) -> None:
        self.program, self.name, self.read = program, name, read
        self.body: Body = getattr(program, name)
        self.x = batch[0]
        self.index = batch[1] if len(batch) > 1 else None
        self.values: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def __call__(self) -> None:
        self.plates = {DATA: self._data_plate()} | {plate.name: self._plate(plate) for plate in self.program.plates}
        with ExitStack() as around:
            for mask in self.body.masks:
                around.enter_context(poutine.mask(mask=self._mask(mask, (), {})))
            for scale in self.body.scales:
                around.enter_context(poutine.scale(scale=self._scale(scale, (), {})))
            for site in self.body.sites:
                self._open(site, site.plates, {})

    def _data_plate(self) -> Any:
        program, dim = self.program, self.program.data_dim if self.program.writes_dim else None
        total = program.num_data + program.num_more
        if program.subsampling == "index":
            return pyro.plate(DATA, total, subsample=self.index, dim=dim)
        if program.subsampling == "size":
            return pyro.plate(DATA, total, subsample_size=len(self.x), dim=dim)
        return pyro.plate(DATA, len(self.x), dim=dim)

    def _plate(self, plate: Plate) -> Any:
        if plate.how == "sequential":
            return pyro.plate(plate.name, plate.size)
        if plate.how == "markov":
            return None
        dim = plate.dim if plate.writes_dim else None
        if plate.how == "subsampled":
            return pyro.plate(plate.name, plate.size + 4, subsample_size=plate.size, dim=dim)
        return pyro.plate(plate.name, len(self.x) if plate.how == "again" else plate.size, dim=dim)

    def _open(self, site: Site, names: tuple[str, ...], entry: Entry) -> None:
        """Open the plates one after the other, then make the statement."""
        if not names:
            self._statement(site, entry)
            return
        first, *rest = names
        if first != DATA and self.program.plate(first).is_loop:
            plate = self.program.plate(first)
            loop = self.plates[first] if plate.how == "sequential" else pyro.markov(range(plate.size))
            for i in loop:
                self._open(site, tuple(rest), {**entry, first: i})
        else:
            with self.plates[first]:
                self._open(site, tuple(rest), entry)

    def _statement(self, site: Site, entry: Entry) -> None:
        # Entries of loops make names, in the order of the plates' declaration.
        entry = {plate.name: entry[plate.name] for plate in self.program.inner(site) if plate.name in entry}
        name = "".join([site.name, *(f"_{i}" for i in entry.values())])
        inner = [plate for plate in self.program.inner(site) if not plate.is_loop]
        at = self._predictor(site, inner, entry)
        with ExitStack() as around:
            for mask in site.masks:
                if mask.how == "poutine":
                    around.enter_context(poutine.mask(mask=self._mask(mask, inner, entry)))
            for scale in site.scales:
                around.enter_context(poutine.scale(scale=self._scale(scale, inner, entry)))
            if site.role == "factor":
                pyro.factor(name, at, has_rsample=True if self.name == "guide" else None)
                value = at
            elif site.role == "deterministic":
                value = pyro.deterministic(name, at)
            else:
                fn = self._distribution(site, at, inner, entry)
                value = pyro.sample(self._renamed(site, name), fn, **self._how(site, entry))
        self.values[site.name, tuple(entry.values())] = (value.sum(-1) if site.event else value).double()

    def _renamed(self, site: Site, name: str) -> str:
        return f"{name}_decentered" if self.name == "guide" and site.centered is not None else name

    def _how(self, site: Site, entry: Entry) -> dict[str, Any]:
        if site.role == "observed":
            return {"obs": self.observation(site, entry)}
        if site.role == "summed" and self.body.wrapper != "config_enumerate":
            return {"infer": {"enumerate": "parallel"}}
        return {}

    def _distribution(self, site: Site, at: Tensor, inner: list[Plate], entry: Entry) -> Any:
        spread = self._number(site, "spread").to(at)
        fn = _family(site.family, at, spread)
        fn = fn.to_event(1) if site.event else fn
        for mask in site.masks:
            fn = fn.mask(self._mask(mask, inner, entry)) if mask.how == "dist" else fn
        return fn

    def _predictor(self, site: Site, inner: list[Plate], entry: Entry) -> Tensor:
        at = self._number(site, "bias") + 0.25 * self._place(site, inner, entry)
        if site.slope:
            at = at + site.slope * self._datum(0)
        for j, parent in enumerate(site.parents):
            at = at + site.weight / (j + 1) * self._parent(site, parent, entry)
        if site.chain:
            at = at + self._previous(site, entry)
        if self.index is not None:
            at = at + 0.1 * self._shaped(self.index).double()
        if site.breach:
            at = self._breached(site, at)
        if self.program.picky and at.dim() > self.program.nesting:
            raise RuntimeError(f"a net of {self.program.nesting} batch dims got {at.dim()}")
        return at.unsqueeze(-1) + 0.2 * torch.arange(site.event, dtype=torch.float64) if site.event else at

    def _breached(self, site: Site, at: Tensor) -> Tensor:
        dim, other = self.program.data_dim, self._datum(3)
        if site.breach == "mean":
            return at + 0.7 * other.mean(dim, keepdim=True)
        if site.breach == "neighbour":
            return at + 0.7 * other.roll(1, dim)
        if site.breach == "count":
            return at + 0.3 * len(self.x)
        if site.breach == "order":
            return at + 0.2 * self._shaped(torch.arange(len(self.x))).double()
        if site.breach == "particles" and at.dim() > self.program.nesting:
            return at.mean(0, keepdim=True).expand(at.shape)
        return at

    def _previous(self, site: Site, entry: Entry) -> Tensor | float:
        loops = [plate for plate in self.program.inner(site) if plate.name in entry]
        back = {plate.name: entry[plate.name] - (plate.how == "markov") for plate in loops}
        key = site.name, tuple(back.values())
        return 0.5 * self.values[key] if key in self.values else 0.0

    def _parent(self, site: Site, name: str, entry: Entry) -> Tensor:
        """A parent's value, averaged over those of its plates that the site is not in."""
        parent = next(each for each in self.body.sites if each.name == name)
        found = [
            self.values[name, tuple(each.values())]
            for each in self.loop_entries(parent)
            if all(entry.get(loop, i) == i for loop, i in each.items())
        ]
        value = sum(found[1:], found[0]) / len(found)
        for plate in self.program.inner(parent):
            if not plate.is_loop and plate.name not in site.plates and value.dim() >= -plate.dim:
                value = value.mean(plate.dim, keepdim=True)
        return value

    def observation(self, site: Site, entry: Entry) -> Tensor:
        """The data of a site, over all of its plates."""
        inner = [plate for plate in self.program.inner(site) if not plate.is_loop]
        real = self._datum(2) + 0.4 * self._place(site, inner, entry)
        real = real.unsqueeze(-1) - 0.3 * torch.arange(site.event, dtype=torch.float64) if site.event else real
        if site.family == "bernoulli":
            return (real > 0).to(real)
        if site.family in ("categorical", "poisson"):
            count = (2 * real.abs()).floor()
            return count % 3 if site.family == "categorical" else count
        if site.family == "beta":
            return real.sigmoid()
        return real.exp() if site.family in ("lognormal", "gamma") else real

    def loop_entries(self, site: Site) -> list[Entry]:
        entries: list[Entry] = [{}]
        for plate in self.program.inner(site):
            if plate.is_loop:
                entries = [{**entry, plate.name: i} for entry in entries for i in range(plate.size)]
        return entries

    def _number(self, site: Site, which: str) -> Tensor:
        assert self.read is not None
        return self.read(f"{self.name}_{site.name}_{which}")

    def _place(self, site: Site, inner: list[Plate], entry: Entry) -> Tensor:
        """The number of a plate entry, in the inner plates' dims."""
        total = double(sum((self.program.position(self.program.plate(loop)) + 1) * i for loop, i in entry.items()))
        for plate in inner:
            total = total + (self.program.position(plate) + 1) * self._entries(plate)
        return total

    def _entries(self, plate: Plate) -> Tensor:
        size = 1 if plate.how == "again" else plate.size
        return torch.arange(size, dtype=torch.float64).reshape(-1, *(1,) * (-plate.dim - 1))

    def _datum(self, column: int) -> Tensor:
        return self._shaped(self.x[:, column])

    def _shaped(self, per_datum: Tensor) -> Tensor:
        return per_datum.reshape(-1, *(1,) * (-self.program.data_dim - 1))

    def _mask(self, mask: Mask, inner: list[Plate] | tuple[()], entry: Entry) -> Any:
        number = sum([self._entries(plate) for plate in inner], double(sum(entry.values())))
        if mask.kind == "datum":
            return self._datum(1) > 0
        if mask.kind == "within":
            return (3 * self._datum(1)).floor() % 3 != number % 3
        if mask.kind == "entries":
            return number % 2 == 1
        return False if mask.kind == "False" else torch.tensor(mask.kind == "on")

    def _scale(self, scale: Scale, inner: list[Plate] | tuple[()], entry: Entry) -> Any:
        if scale.kind == "number":
            return scale.value
        if scale.kind == "datum":
            return scale.value * (1 + self._datum(1) ** 2)
        number = sum([self._entries(plate) for plate in inner], double(sum(entry.values())))
        return double(scale.value) * (1 + number) if scale.kind == "within" else double(scale.value)


def _family(family: str, at: Tensor, spread: Tensor) -> Any:
    squashed = at.tanh()
    if family == "normal":
        return dist.Normal(at, spread)
    if family == "lognormal":
        return dist.LogNormal(squashed, spread)
    if family == "gamma":
        return dist.Gamma(squashed.exp(), spread)
    if family == "beta":
        return dist.Beta(squashed.exp(), 1 + spread)
    if family == "uniform":
        return dist.Uniform(at - 1.5, at + 1.5)
    if family == "bernoulli":
        return dist.Bernoulli(logits=at)
    if family == "categorical":
        return dist.Categorical(logits=torch.stack([torch.zeros_like(at), at, -0.5 * at], -1))
    return dist.Poisson(squashed.exp())


def double(value: float) -> Tensor:
    """A number as a tensor in double precision."""
    return torch.tensor(value, dtype=torch.float64)
