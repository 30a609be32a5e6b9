"""States of discrete sites that were run as copies, all entries of a plate alike: their dims told apart again."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pvae.pair.layout import PARTICLES, Layout
from pvae.pair.sites import Plate, Site
from pvae.pair.sums.states import States

__all__ = ["spread"]


def spread(
    sites: Mapping[str, Site], log_probs: Mapping[str, Tensor], states: States, layout: Layout, data: Plate
) -> tuple[dict[str, Site], dict[str, Tensor]]:
    """The sites and their log probabilities as if each site of `states` had run along a dim of its own.

    A site is taken to depend on those before it whose plates are around it, too, at its own entry: a run where all
    entries of a plate are in one state tells no more. Of the rest it is read at the first state.
    """
    summed = [name for name in sites if name in states.tables]
    counts = [len(states.events(name)) for name in summed]
    dims = {name: -2 - layout.nesting - index for index, name in enumerate(summed)}
    plates = sorted({name for site in sites.values() for name in _plates(site)})
    copied = Plate(PARTICLES, 0, -1 - layout.nesting) if PARTICLES in plates else data
    before: list[str] = []
    for name in sites:
        before.append(name)
        log_prob = log_probs[name]
        padding = (1,) * (1 + layout.nesting - log_prob.dim())
        # The first site's state changes fastest from copy to copy, and its dim is the rightmost.
        log_prob = log_prob.reshape(padding + log_prob.shape).unflatten(copied.dim, (*reversed(counts), -1))
        first = log_prob.dim() + copied.dim - len(counts)
        log_prob = log_prob.movedim([*range(first, first + len(counts))], [*range(len(counts))])
        for other, dim in dims.items():
            if other not in before or not _plates(sites[other]) <= _plates(sites[name]):
                log_prob = log_prob.narrow(dim, 0, 1)
        log_probs = {**log_probs, name: log_prob}
    return {name: _with_letters(site, plates, copied, states.count, dims) for name, site in sites.items()}, {
        **log_probs
    }


def _with_letters(site: Site, plates: list[str], copied: Plate, num_copies: int, dims: Mapping[str, int]) -> Site:
    """A site whose plates have the sizes of one copy, and whose dims have the symbols that Pyro would give them."""
    frames = [
        frame._replace(size=frame.size // num_copies) if frame.name == copied.name else frame
        for frame in site["cond_indep_stack"]
    ]
    letters = {frame.dim: chr(ord("a") + plates.index(frame.name)) for frame in frames if frame.vectorized}
    letters |= {dim: chr(ord("z") + 1 + index) for index, dim in enumerate(dims.values())}
    infer = {**site["infer"], "_dim_to_symbol": letters, "_enumerate_symbol": letters.get(dims.get(site["name"], 0))}
    return {**site, "cond_indep_stack": tuple(frames), "infer": infer}


def _plates(site: Site) -> set[str]:
    return {frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
