"""What one run of a model or guide shows: its latent sites, its plates, its data plate."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from pvae.pair.contexts import called_modules, running, seeded
from pvae.pair.store import private_store
from pvae.pair.supports import bounds_of, family_of, onto, same, shared, support_of
from pvae.support.arguments import MODEL
from pvae.support.batch import Batch as Batch
from pvae.support.batch import as_batch as as_batch
from pvae.support.refusals import ContractError, built

__all__ = [
    "LatentSite",
    "Plate",
    "base_of",
    "data_plate",
    "find_latent_sites",
    "is_enumerated",
    "latent_sites",
    "other_batch",
    "plate_named",
    "plate_nesting",
    "random_sites",
    "require_latents",
    "score_all",
    "subsampled_plate",
]

Site = Any

_NO_SITE = "no sample statement was found", "write at least one `pyro.sample` in the data plate"


@dataclass(frozen=True)
class Plate:
    """A plate as a trace shows it: `dim` counts from the right of the batch shape."""

    name: str
    size: int
    dim: int


@dataclass(frozen=True)
class LatentSite:
    """A latent site of a model.

    `event_shape` excludes every plate; `support` is that of one event; `plates` are the plates
    inside the data plate, outermost first. `family` names its distribution; `moves` says whether the support
    differs from datum to datum, along a plate, or with other draws.
    """

    name: str
    event_shape: torch.Size
    support: constraints.Constraint
    plates: tuple[Plate, ...]
    data_plate: Plate
    family: str = ""
    moves: bool = False

    @property
    def bijection(self) -> Transform:
        """From the reals to the support.

        Raises: ValueError for a support that moves, or that no bijection leads to.
        """
        self.require_fixed_support()
        return onto(self.name, self.family, self.support)

    def require_fixed_support(self) -> None:
        """Raise ValueError for a support that moves: no guide that was built beforehand can draw there."""
        if self.moves:
            raise moving_support(self.name, self.family)


def moving_support(name: str, family: str) -> ValueError:
    """Why a site cannot be served whose support is not one for all."""
    return ContractError(
        f"site '{name}' ({family}) has a support that is not the same for all: it depends on another latent, on the "
        "data or on a plate",
        "draw it on a fixed support and transform it in the model",
    )


def random_sites(trace: poutine.Trace) -> dict[str, Site]:
    """The `sample` statements of a trace by name, without index draws of plates and `pyro.deterministic` records."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not isinstance(site["fn"], _Subsample)
        and not (site["infer"] or {}).get("_deterministic")
    }


def is_enumerated(site: Site) -> bool:
    """Whether a site is annotated to be summed out, as by `pyro.infer.config_enumerate`."""
    return (site["infer"] or {}).get("enumerate") is not None


def base_of(distribution: Any) -> Any:
    """The distribution inside `to_event`, masks, expansions and transforms: the one a person would name."""
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return distribution


def plates_of(site: Site) -> tuple[Plate, ...]:
    """The vectorised plates around a site, outermost first."""
    frames = (frame for frame in site["cond_indep_stack"] if frame.vectorized)
    return tuple(Plate(frame.name, frame.size, frame.dim) for frame in frames)


def plate_nesting(trace: poutine.Trace) -> int:
    """How many batch dims the plates of a trace use."""
    return max((-plate.dim for site in random_sites(trace).values() for plate in plates_of(site)), default=0)


def data_plate(
    trace: poutine.Trace, num_data: int, look_again: Callable[[int], poutine.Trace], like: str | None = None
) -> Plate:
    """The plate over the data: the outermost that every site shares and whose size follows the number of data.

    Two looks tell it from a plate within a datum that happens to be of that size. A function that runs on exactly these
    data, such as one with a parameter per datum, has but one look.

    Args:
        trace: of a run on `num_data` data.
        num_data: B.
        look_again: gives the trace of a run on that many data (see `other_batch`).
        like: the name to choose by where several do.

    Raises: ValueError if a site lies outside every shared plate, or no plate holds the batch.
    """
    shared = _shared_plates(trace)
    fitting = [plate for plate in shared if plate.size == num_data]
    if not fitting:
        raise ContractError(
            f"the data plate '{shared[0].name}' holds {shared[0].size} data, the batch {num_data}",
            "give the plate the length of the batch (a subsampling plate takes subsample_size=len(x))",
        )
    found = _that_follow(fitting, num_data, look_again) or fitting
    return next((plate for plate in found if plate.name == like), found[0])


def _that_follow(plates: list[Plate], num_data: int, look_again: Callable[[int], poutine.Trace]) -> list[Plate]:
    """The plates whose size is the number of data of another run, too; none where it runs on its own number alone.

    Few data are tried, but not one, which fits everywhere; one is tried of two data that a plate has no more of.
    """
    for length in [min(num_data - 1, 7)] if num_data > 2 else [num_data + 1, 1]:
        try:
            with pyro.validation_enabled(False):
                trace = look_again(length)
            score_all(trace)
            sizes = {plate.name: plate.size for plate in _shared_plates(trace)}
        except Exception:  # whatever the function trips over
            continue
        return [plate for plate in plates if sizes.get(plate.name) == length]
    return []


def other_batch(batch: Batch, num_data: int) -> Batch:
    """A batch of that many data, made of those of `batch`."""
    rows = torch.arange(num_data, device=batch[0].device) % len(batch[0])
    return tuple(part[rows] for part in batch)


def score_all(trace: poutine.Trace) -> None:
    """Ask every site for its density: a value, mask or scale that fits no plate shows there alone, by an error."""
    for site in random_sites(trace).values():
        if not hasattr(site["fn"], "refusal"):
            scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"])


def _shared_plates(trace: poutine.Trace) -> list[Plate]:
    """The vectorised plates around every site, outermost first.

    Raises: ValueError if there are none.
    """
    shared: list[Plate] = []
    for position, (name, site) in enumerate(random_sites(trace).items()):
        plates = plates_of(site)
        kept = [plate for plate in shared if plate in plates] if position else list(plates)
        if not kept:
            raise ContractError(
                f"site '{name}' lies outside the data plate",
                "open `with pyro.plate('data', len(x)):` "
                "around every site, and make what is shared by all data a parameter",
            )
        shared = kept
    if not shared:
        raise ContractError(*_NO_SITE)
    return shared


def plate_named(sites: dict[str, Site], name: str, num_data: int | None = None) -> Plate:
    """The plate over the data in a run whose plate of that name holds `num_data`, copies included, if that is told.

    Raises: ValueError if a site stands outside of it, or it holds another number.
    """
    found: Plate | None = None
    for each, site in sites.items():
        plate = next((plate for plate in plates_of(site) if plate.name == name), None)
        fits = plate is not None and (num_data is None or plate.size == num_data)
        if plate is None or not fits or (found is not None and plate.dim != found.dim):
            got = "none" if plate is None else f"one of {plate.size} at dim {plate.dim}"
            raise ContractError(
                f"site '{each}' is to stand in the data plate '{name}' of the {num_data} data of a run, and stands in "
                f"{got}",
                "give the plate the length of the batch, and one dim, around every site",
            )
        found = plate
    if found is None:
        raise ContractError(*_NO_SITE)
    return found


def subsampled_plate(site: Site, data_plate: str) -> Any:
    """The frame of a plate within a datum that looks at a part of its entries only; None where there is none."""
    for frame in site["cond_indep_stack"]:
        if frame.name != data_plate and frame.full_size not in (None, frame.size):
            return frame
    return None


def latent_sites(model: Callable[..., Any], batch: Tensor | tuple[Tensor, ...]) -> tuple[LatentSite, ...]:
    """Read the latent sites of `model` from one run on `batch`; nothing of the model changes.

    Sites annotated with infer={"enumerate": "parallel"} are left out: no guide draws what is summed out.

    Raises: ValueError if the model cannot run, or breaks the contract (no data plate, no latent site).
    """
    sites = find_latent_sites(model, batch)
    require_latents(sites, "a guide has nothing to infer, use pvae.guides.Empty")
    return sites


def require_latents(
    latents: Collection[Any], fix: str = "ImportanceSampling with pvae.guides.Empty gives its log p exactly"
) -> None:
    """Raise ValueError, with the fix, where there are no latents."""
    if not latents:
        raise ContractError("the model has no latent site", fix)


def find_latent_sites(model: Callable[..., Any], batch: Tensor | tuple[Tensor, ...]) -> tuple[LatentSite, ...]:
    """As `latent_sites`, of a model that may have none."""
    built("model", model, usual=MODEL)
    arguments = as_batch(batch)
    with private_store(model, look=True):
        trace = _look(model, arguments, 0)
        data = data_plate(trace, len(arguments[0]), lambda length: _look(model, other_batch(arguments, length), 0))
        sites = {
            name: site
            for name, site in random_sites(trace).items()
            if not site["is_observed"] and not is_enumerated(site)
        }
        supports = {name: support_of(site["fn"]) for name, site in sites.items()}
        fixed = {name: shared(support) for name, support in supports.items()}
        # What all data share in one run may be another support in the next.
        if any(isinstance(bound, Tensor) for support in supports.values() for bound in bounds_of(support)):
            again = random_sites(_look(model, arguments, 1))
            for name, support in fixed.items():
                other = shared(support_of(again[name]["fn"])) if name in again else support
                if support is None or other is None or not same(support, other):
                    fixed[name] = None
    return tuple(
        LatentSite(
            name,
            site["fn"].event_shape,
            fixed[name] or supports[name],
            tuple(plate for plate in plates_of(site) if plate != data),
            data,
            family_of(site["fn"]),
            moves=fixed[name] is None,
        )
        for name, site in sites.items()
    )


def _look(model: Callable[..., Any], batch: Batch, seed: int) -> poutine.Trace:
    """The trace of a model, nets in evaluation mode, random state as before."""
    with (
        running("model", batch),
        torch.no_grad(),
        seeded(seed, batch[0].device),
        called_modules(),
        # Called inside the handler, not through it: that would add a table of shapes to an error.
        poutine.trace() as run,
    ):
        model(*batch)
    trace: poutine.Trace = run.trace
    return trace
