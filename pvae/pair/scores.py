"""How the sites of a run count: which masks and scales reach a log density, and which stand outside.

Example: all sites of a pair stand under `poutine.scale(scale=w)`, w (B,), so w stands outside every logarithm: the
bound is w (B,) times that of the sites without it. Under `poutine.mask(mask=keep)` with keep (B, T) and a plate of T
steps within the data plate, what `keep` leaves out counts 0, as Pyro has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import RelaxedBernoulliStraightThrough, RelaxedOneHotCategoricalStraightThrough
from torch import Tensor

from pvae.pair.guards import density_of
from pvae.pair.sites import Plate, Site, plates_of
from pvae.pair.supports import bounds_of, support_of
from pvae.support.refusals import ContractError

__all__ = [
    "CommonScale",
    "Placed",
    "agree",
    "bounds_at",
    "common_scale",
    "left_out",
    "log_prob_of",
    "own_scale",
]

# A site and the data plate that it stands in.
Placed = tuple[Site, Plate]

# Their density is that of what was rounded to a value, which a tensor of their own draws alone remembers.
_QUANTISED = (RelaxedBernoulliStraightThrough, RelaxedOneHotCategoricalStraightThrough)
# Two handlers may multiply the same numbers in another order.
_SAME_SCALE = 1e-5
# Sums over hundreds of pixels agree to about 1e-6 in float32; a GPU's convolutions may round to 10 bits.
_RELATIVE, _ABSOLUTE, _EXACT, _ON_GPU = 1e-4, 1e-3, 1e-7, 10


def agree(found: Tensor, expected: Any) -> bool:
    """Whether log densities are the same to rounding."""
    expected = torch.as_tensor(expected, device=found.device)
    is_exact = found.dtype == torch.float64 == expected.dtype
    relative, absolute = (_EXACT, _EXACT) if is_exact else (_RELATIVE, _ABSOLUTE)
    relative *= _ON_GPU if found.is_cuda else 1
    return torch.allclose(found.double(), expected.double(), rtol=relative, atol=absolute, equal_nan=True)


def log_prob_of(placed: Placed, skipped: Tensor | None = None, masked: float = 0.0) -> Tensor:
    """The log density of a site in its own batch shape, `masked` where its own mask leaves it out.

    Args:
        placed: the site and its data plate.
        skipped: data (B,) for which the mask does not count, as `left_out` gives them.
        masked: the log density of what is left out.

    Raises: ValueError for a distribution that knows no density at this value.
    """
    site = placed[0]
    try:
        _require_origin(site)
        log_prob = density_of(site)
    except (NotImplementedError, KeyError) as error:
        raise ContractError(
            f"site '{site['name']}' has no density at a value that it did not draw itself",
            "use a flow with an inverse, or an objective with gradient='pathwise'",
        ) from error
    return _masked(placed, log_prob, skipped, masked)


def bounds_at(placed: Placed, skipped: Tensor | None = None) -> list[Tensor]:
    """Where the support of a site begins and ends, added up within each event: 0 where its mask leaves it out.

    Bounds that are numbers, and hold for all data, are left out.
    """
    fn, value = placed[0]["fn"], placed[0]["value"]
    batch_shape = torch.broadcast_shapes(fn.batch_shape, value.shape[: value.dim() - fn.event_dim])
    bounds = bounds_of(support_of(fn, around=placed[0]["is_observed"]))
    return [
        _masked(placed, bound.expand(batch_shape + fn.event_shape).reshape(*batch_shape, -1).sum(-1), skipped, 0.0)
        for bound in bounds
        if isinstance(bound, Tensor)
    ]


def _masked(placed: Placed, values: Tensor, skipped: Tensor | None, masked: float) -> Tensor:
    site, plate = placed
    if site["mask"] is None:
        return values
    mask = torch.as_tensor(site["mask"], device=values.device)
    if skipped is not None:
        mask = mask | at_data(skipped, plate, mask, values)
    return torch.where(mask, values, masked)


def _require_origin(site: Site) -> None:
    """Raise NotImplementedError if the density is that of what was rounded, and the value does not remember it."""
    fn = site["fn"]
    while not isinstance(fn, _QUANTISED) and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    if isinstance(fn, _QUANTISED) and not hasattr(site["value"], "_unquantize"):
        raise NotImplementedError


def left_out(sites: Sequence[Placed], num_data: int) -> Tensor | None:
    """The data (B,) that every site leaves out by a mask over data alone; None where a site has no such mask.

    A mask over data alone has size 1 in every other dim. It says which data to train on, not which terms of a datum
    count, so log p(x) of a datum that all sites leave out is that of the pair without it.
    """
    kept: Tensor | None = None
    for site, plate in sites:
        rows = _rows(site, plate)
        if rows is None:
            return None
        rows = rows.reshape(-1, min(num_data, len(rows))).any(0)
        kept = rows if kept is None else kept | rows
    return None if kept is None else (~kept).expand(num_data)


def _rows(site: Site, plate: Plate) -> Tensor | None:
    """A mask over data alone as one row per datum (rows,), or (1,) for all; None for any other mask."""
    if site["mask"] is None:
        return None
    mask = torch.as_tensor(site["mask"])
    others = [each for each in plates_of(site) if each.name != plate.name]
    # Over a plate of one entry, such as a series of one step, a mask over entries looks like one over data.
    if any(each.size == 1 and mask.dim() >= -each.dim for each in others):
        return None
    size = mask.shape[plate.dim] if mask.dim() >= -plate.dim else 1
    return mask.reshape(-1) if mask.numel() == size else None


def own_scale(placed: Placed) -> Tensor | float:
    """The scale that the author gave a site by `poutine.scale` or by plates within a datum, that of data taken out."""
    site, plate = placed
    frame = next(each for each in site["cond_indep_stack"] if each.name == plate.name)
    scale = site["scale"] if frame.full_size in (None, frame.size) else site["scale"] * (frame.size / frame.full_size)
    return scale if isinstance(scale, Tensor) else float(scale)


@dataclass(frozen=True)
class CommonScale:
    """What stands outside every logarithm: `outside` for the data that `shared` says, (B,) or one for all; else 1.

    A tensor `outside` is in float64, to be carried to the dtype of what it multiplies.
    """

    outside: Tensor | float = 1.0
    shared: Tensor | bool = False

    def times(self, values: Tensor) -> Tensor:
        """Values (..., B) times what stands outside."""
        outside = self.outside
        return values * (outside.to(values.dtype) if isinstance(outside, Tensor) else outside)

    def inside(self, placed: Placed, values: Tensor) -> Tensor:
        """Values of a site, in its batch shape, times that part of its scale which does not stand outside."""
        scale = own_scale(placed)
        if isinstance(self.shared, Tensor):
            scale = torch.as_tensor(scale, dtype=values.dtype, device=values.device)
            return values * torch.where(at_data(self.shared, placed[1], scale, values), 1.0, scale)
        return values if self.shared or (not isinstance(scale, Tensor) and scale == 1.0) else values * scale


def common_scale(sites: Sequence[Placed], num_data: int) -> CommonScale:
    """The scale that all sites share, within each datum, compared by value."""
    scales = [own_scale(placed) for placed in sites]
    if not scales:
        return CommonScale()
    numbers = [scale for scale in scales if not isinstance(scale, Tensor)]
    if len(numbers) == len(scales):
        shared = all(math.isclose(number, numbers[0], rel_tol=_SAME_SCALE) for number in numbers)
        return CommonScale(numbers[0] if shared else 1.0, shared)
    device = next(scale.device for scale in scales if isinstance(scale, Tensor))
    ends = [
        _ends(torch.as_tensor(scale, dtype=torch.float64, device=device), plate, num_data)
        for scale, (_, plate) in zip(scales, sites, strict=True)
    ]
    first = ends[0][0]
    same = torch.stack([torch.isclose(end, first, rtol=_SAME_SCALE, atol=0.0) for pair in ends for end in pair]).all(0)
    return CommonScale(torch.where(same, first, 1.0), same)


def _ends(scale: Tensor, plate: Plate, num_data: int) -> tuple[Tensor, Tensor]:
    """The least and the largest scale within each datum, each (B,)."""
    if scale.dim() < -plate.dim:
        rows = scale.reshape(-1, 1)
    else:
        rows = scale.movedim(plate.dim, -1)
        rows = rows.reshape(-1, min(num_data, rows.shape[-1]))
    return rows.amin(0).expand(num_data), rows.amax(0).expand(num_data)


def at_data(rows: Tensor, plate: Plate, *others: Tensor) -> Tensor:
    """One value per datum, (B,), at the dim of the data plate: (B, 1, ..., 1), over as many copies as `others` hold."""
    sizes = [other.shape[plate.dim] for other in others if other.dim() >= -plate.dim]
    copies = max([len(rows), *sizes]) // len(rows)
    return rows.repeat(copies).reshape(-1, *(1,) * (-plate.dim - 1))
