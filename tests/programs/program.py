"""The plain description of a Pyro pair: what its plates, sites, masks and scales are, and a listing to read.

Numbers are chosen by rules that `pyro_side` writes with tensors and `reference` with loops, each on its own. A site's
predictor at datum b and plate entries i is

    bias + slope x[b, 0] + sum_j weight / (j + 1) parent_j + sum over plates 0.25 (position + 1) i + 0.2 e
         + 0.5 previous (of a chain) + 0.1 index[b] (with data by index),

e being the place in an event; a parent's event is summed, and its plates that the site is not in are averaged over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

DATA = "data"
CONTINUOUS = ("normal", "lognormal", "gamma", "beta", "uniform")
NUM_COLUMNS = 4
# The families of a latent site with a finite support, and how many states an entry has.
STATES = {"bernoulli": 2, "categorical": 3}


@dataclass(frozen=True)
class Plate:
    """An inner plate.

    `how`: "plate", "subsampled" (from 4 entries more than it holds), "sequential", "markov" (a loop, no plate), or
    "again", which follows the batch.
    """

    name: str
    size: int
    dim: int = 0
    how: str = "plate"
    writes_dim: bool = True

    @property
    def is_loop(self) -> bool:
        return self.how in ("sequential", "markov")


@dataclass(frozen=True)
class Mask:
    """A mask. `kind`: "datum" (x[b, 1] > 0), "within" (changes within a datum), "entries" (the same for all data), a
    0-dim tensor "off" or "on", or the number "False". `how`: "poutine" or "dist"."""

    kind: str
    how: str = "poutine"


@dataclass(frozen=True)
class Scale:
    """A `poutine.scale`. `kind`: "number", "tensor" (0-dim), "datum" (value * (1 + x[b, 1]^2)), or "within"."""

    kind: str
    value: float = 0.5


@dataclass(frozen=True)
class Site:
    """One statement of a function, inside its plates in the order they are opened, "data" among them.

    `role`: "latent", "summed" (out), "observed", "conditioned", "factor" or "deterministic". `centered` is the number
    of a LocScaleReparam in the model; the guide draws the renamed site.
    """

    name: str
    role: str
    family: str = "normal"
    plates: tuple[str, ...] = (DATA,)
    parents: tuple[str, ...] = ()
    chain: bool = False
    event: int = 0
    bias: float = 0.0
    slope: float = 0.0
    weight: float = 0.5
    spread: float = 1.0
    masks: tuple[Mask, ...] = ()
    scales: tuple[Scale, ...] = ()
    centered: float | None = None
    breach: str = ""

    @property
    def is_random(self) -> bool:
        return self.role != "deterministic"

    @property
    def is_given(self) -> bool:
        return self.role in ("observed", "conditioned", "factor")


@dataclass(frozen=True)
class Body:
    """A model or a guide. `wrapper`: "", "partial", "lambda", "scale" or "config_enumerate".

    `numbers` says where bias and spread live: "tensor", "param", "module", "frozen" or "pyro_module".
    """

    sites: tuple[Site, ...]
    masks: tuple[Mask, ...] = ()
    scales: tuple[Scale, ...] = ()
    wrapper: str = ""
    numbers: str = "tensor"

    @property
    def all_scales(self) -> tuple[Scale, ...]:
        return (*self.scales, *((Scale("number", 0.7),) if self.wrapper == "scale" else ()))


@dataclass(frozen=True, repr=False)
class Program:
    """A pair over B data. `subsampling`: "", "size" or "index"; `picky`: its nets take the dims of one run alone."""

    num_data: int
    model: Body
    guide: Body
    plates: tuple[Plate, ...] = ()
    data_dim: int = -1
    writes_dim: bool = True
    subsampling: str = ""
    num_more: int = 0
    picky: bool = False
    seed: int = 0
    num_samples: int = 3

    @property
    def nesting(self) -> int:
        return max(-self.data_dim, *(-plate.dim for plate in self.plates), 1)

    def plate(self, name: str) -> Plate:
        return next(plate for plate in self.plates if plate.name == name)

    def inner(self, site: Site) -> tuple[Plate, ...]:
        """The plates of a site besides the data plate, in the order of their declaration."""
        return tuple(plate for plate in self.plates if plate.name in site.plates)

    def position(self, plate: Plate) -> int:
        return self.plates.index(plate)

    def states(self) -> int:
        """How many joint states the sites that are summed out have."""
        entries = {
            site: math.prod(plate.size for plate in self.inner(site)) * max(site.event, 1) for site in self.model.sites
        }
        return math.prod(STATES[s.family] ** entries[s] for s in self.model.sites if s.role == "summed")

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.model.sites + self.guide.sites

    @property
    def breach(self) -> str:
        """How the program breaks the contract, if it does."""
        return next((site.breach for site in self.sites if site.breach), "")

    def __repr__(self) -> str:
        return listing(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        # This is what hypothesis prints.
        printer.text(listing(self))


def listing(program: Program) -> str:
    """The program as a short listing in the style of Pyro."""
    batch = "x, index" if program.subsampling == "index" else "x"
    full = f"size={program.num_data + program.num_more}" if program.subsampling else "len(x)"
    lines = [
        f"Program: {program.num_data} data, {program.num_samples} particles, seed {program.seed}"
        + ", nets of one run" * program.picky
    ]
    dim = f", dim={program.data_dim}" if program.writes_dim else f" (dim {program.data_dim})"
    how = {"": "", "size": ", subsample_size=len(x)", "index": ", subsample=index"}[program.subsampling]
    lines.append(f"  data = plate({full}{how}{dim})")
    for plate in program.plates:
        where = f", dim={plate.dim}" if plate.writes_dim else f" (dim {plate.dim})"
        lines.append(f"  {plate.name} = {plate.how}({plate.size}{'' if plate.is_loop else where})")
    for name in ("model", "guide"):
        body: Body = getattr(program, name)
        around = [*map(_word, body.masks), *map(_word, body.scales), *([body.wrapper] if body.wrapper else [])]
        lines.append(f"  {name}({batch}): numbers={body.numbers} {' '.join(around)}".rstrip())
        lines += [f"    {_statement(site)}" for site in body.sites]
    return "\n".join(lines)


def _word(part: Mask | Scale) -> str:
    if isinstance(part, Mask):
        return f"{part.how}.mask({part.kind})"
    return f"scale({part.kind} {part.value})"


def _statement(site: Site) -> str:
    terms = [f"{site.bias}"] + [f"{site.slope} x"] * bool(site.slope)
    terms += [f"{site.weight / (j + 1):.3g} {parent}" for j, parent in enumerate(site.parents)]
    terms += ["0.5 previous"] * site.chain + [f"BREACH({site.breach})"] * bool(site.breach)
    family = f"{site.family}({' + '.join(terms)}; {site.spread})" + f".to_event({site.event})" * bool(site.event)
    extra = [f"reparam {site.centered}"] if site.centered is not None else []
    extra += [*map(_word, site.masks), *map(_word, site.scales)]
    return f"{' '.join(extra)}{' ' * bool(extra)}with {', '.join(site.plates)}: {site.name} <- {site.role} {family}"
