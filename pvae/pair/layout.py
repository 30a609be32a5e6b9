"""Where the dims of a pair's sites are, and how to run it with many particles."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from pvae.pair.sites import Plate, Site, plates_of
from pvae.pair.sums.states import States

__all__ = ["PARTICLES", "Layout", "Place", "place_of"]

# The plate over particles.
PARTICLES = "_pvae_particles"


class Place(NamedTuple):
    """Where a site's dims are, counted from the right: those of an event, the data plate's, and all of its plates."""

    event_dim: int
    data_dim: int
    num_plates: int


@dataclass(frozen=True)
class Layout:
    """How to run a pair with K particles.

    `nesting` is how many batch dims its plates use; the particle plate stands left of them. A pair whose
    nets cannot take that extra dim is run on K copies of the batch instead (`vectorizes` is False).
    `model_plate` and `guide_plate` name the plates over the data, which may have to hold those copies (None for a
    guide without sites, or one that was not looked at and has the model's); `places` says for each latent site where
    its dims are. `summed` holds the states of the model's latents that are summed out: those annotated with
    infer={"enumerate": "parallel"} that the guide lacks; `branching` those of the guide's own latents with that
    annotation, which an objective may run at every state instead of drawing them. `guarded` names the model's sites
    whose value may lie outside their support (see `pvae.pair.guards`).
    """

    nesting: int
    vectorizes: bool
    model_plate: str
    guide_plate: str | None = None
    places: Mapping[str, Place] = field(default_factory=dict)
    summed: States | None = None
    branching: States | None = None
    guarded: frozenset[str] = frozenset()

    @property
    def data_plates(self) -> frozenset[str]:
        """The names of the plates over the data."""
        return frozenset(name for name in (self.model_plate, self.guide_plate) if name is not None)

    @property
    def draws(self) -> bool:
        """Whether a run draws any latent, or the pair has none but those that are summed out."""
        return bool(self.places.keys() - (self.summed.tables.keys() if self.summed is not None else set()))

    def states_besides(self, names: Collection[str]) -> States | None:
        """The joint states to sum over where the values of some sites are given; None if there are none."""
        rest = None if self.summed is None else self.summed.besides(names)
        return rest if rest is not None and rest.tables else None

    def sums_all_but(self, names: Collection[str], states: States) -> bool:
        """Whether no latent site is left to draw once some are given and others summed out."""
        return self.places.keys() <= {*names, *states.tables}

    def arrange(self, name: str, value: Tensor) -> Tensor:
        """A latent value (K, B, ...) in the shape that the site has in a run with this layout."""
        num_samples, num_data = value.shape[:2]
        place = self.places[name]
        data_dim = place.data_dim - place.event_dim
        if num_samples > 1 and self.vectorizes:
            value = value.movedim(1, data_dim)
            return value.reshape(num_samples, *(1,) * (self.nesting - place.num_plates), *value.shape[1:])
        return value.reshape(num_samples * num_data, *value.shape[2:]).movedim(0, data_dim)

    def collect(self, name: str, value: Tensor, num_samples: int) -> Tensor:
        """The inverse: a site's value in a run with this layout as (K, B, ...)."""
        place = self.places[name]
        data_dim, own = place.data_dim - place.event_dim, place.num_plates + place.event_dim
        value = value.expand(*(1,) * (own - value.dim()), *value.shape)
        if num_samples > 1 and self.vectorizes:
            value = value.reshape(num_samples, *value.shape[value.dim() - own :])
            return value.movedim(data_dim, 1)
        value = value.reshape(value.shape[value.dim() - own :]).movedim(data_dim, 0)
        return value.unflatten(0, (num_samples, -1))


def place_of(site: Site, plate: Plate) -> Place:
    """Where the dims of a site are, `plate` being the one over the data."""
    outermost = max(-each.dim for each in plates_of(site) if each.name != PARTICLES)
    return Place(site["fn"].event_dim, plate.dim, outermost)
