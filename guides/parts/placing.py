"""Where the numbers of an amortized guide go: from one row per datum to the dims of a site, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor

from pvae.pair import supports
from pvae.pair.sites import LatentSite

__all__ = ["arrange", "arrange_given", "collect", "free_shape", "in_plates", "width"]


def free_shape(site: LatentSite) -> torch.Size:
    """The shape of one draw of the site once its support is mapped to the reals."""
    return supports.free_shape(site.bijection, site.event_shape)


def inner_shape(site: LatentSite) -> tuple[int, ...]:
    """Sizes of the plates inside the data plate, from the left."""
    return tuple(plate.size for plate in sorted(site.plates, key=lambda plate: plate.dim))


def width(site: LatentSite) -> int:
    """How many unconstrained numbers a datum has at the site, its plates inside the data plate included."""
    return free_shape(site).numel() * torch.Size(inner_shape(site)).numel()


def arrange(site: LatentSite, rows: Tensor, event_shape: Sequence[int]) -> Tensor:
    """Numbers (*lead, B, n) in the shape of the site, (*lead, plates..., *event_shape)."""
    lead = rows.dim() - 2
    values = rows.reshape(*rows.shape[:-1], *inner_shape(site), *event_shape)
    values = values.movedim(lead, lead + _position(site))
    return values.reshape(*rows.shape[:lead], *batch_shape(site, rows.shape[-2]), *event_shape)


def arrange_given(site: LatentSite, rows: Tensor, event_shape: Sequence[int], depth: int) -> Tensor:
    """`arrange` of rows (B, n), or (K, B, n) computed from draws of `depth` batch dims, 0 without particles."""
    values = arrange(site, rows, event_shape)
    if rows.dim() == 2:
        return values
    if not depth:
        return values[0]
    between = depth - 1 - len(batch_shape(site, 1))
    return values.reshape(len(values), *(1,) * between, *values.shape[1:])


def collect(site: LatentSite, values: Tensor, event_dim: int) -> Tensor:
    """The inverse: a site's values (*lead, plates..., *event) as rows (K, B, n), K being all of `lead`."""
    event_shape = values.shape[values.dim() - event_dim :]
    inner = inner_shape(site)
    position = _position(site)
    num_data = values.shape[site.data_plate.dim - event_dim]
    values = values.reshape(-1, *inner[:position], num_data, *inner[position:], *event_shape)
    values = values.movedim(1 + position, 1)
    return values.reshape(*values.shape[:2], -1)


def batch_shape(site: LatentSite, num_data: int) -> tuple[int, ...]:
    """Sizes of the site's plates at their dims, 1 where there is none."""
    sizes = {site.data_plate.dim: num_data} | {plate.dim: plate.size for plate in site.plates}
    return tuple(sizes.get(dim, 1) for dim in range(min(sizes), 0))


def _position(site: LatentSite) -> int:
    """How many plates inside the data plate stand left of it."""
    return sum(plate.dim < site.data_plate.dim for plate in site.plates)


@contextmanager
def in_plates(sites: Sequence[LatentSite], num_data: int) -> Iterator[Callable[[LatentSite], Any]]:
    """Open the data plate; gives a function from a site to a context of the plates inside it."""
    plates: dict[str, Any] = {}
    for site in sites:
        for plate in site.plates:
            plates.setdefault(plate.name, pyro.plate(plate.name, plate.size, dim=plate.dim))

    def inside(site: LatentSite) -> ExitStack:
        stack = ExitStack()
        for plate in site.plates:
            stack.enter_context(plates[plate.name])
        return stack

    with pyro.plate(sites[0].data_plate.name, num_data, dim=sites[0].data_plate.dim):
        yield inside
