"""Running a pair under Pyro's handlers: with K particles, at given latents, or cut at its draws."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pvae.pair.guards import Guard, guarding
from pvae.pair.layout import PARTICLES, Layout
from pvae.pair.pair_run import PairRun
from pvae.pair.sites import Batch, Plate, Site, plate_named, random_sites
from pvae.pair.sums.enumerated import trace_enumerated
from pvae.pair.sums.marginal import repeated
from pvae.support.refusals import ContractError

__all__ = ["run_pair", "setting", "trace_guide", "trace_model", "trace_pair", "unmatched_sites"]

Stochastic = Callable[..., Any]


def run_pair(
    model: Stochastic,
    guide: Stochastic | None,
    batch: Batch,
    num_samples: int,
    layout: Layout,
    *,
    given: Mapping[str, Tensor] | None = None,
    split: bool = False,
    branch: bool = False,
) -> PairRun:
    """Run the guide, then the model on its draws, with K particles, in the param store that is open.

    Args:
        model: the model.
        guide: its guide; None proposes from the model's own prior.
        batch: the data.
        num_samples: K.
        layout: that of the pair for K particles.
        given: values of latent sites to use instead of draws, each (K, B, ...).
        split: cut the graph between a draw and what is computed from it (see `PairRun.drawn`).
        branch: run K particles at each joint state of the guide's annotated sites (see `PairRun.branches`).

    Raises: ValueError if a site lies outside the data plate.
    """
    given = given or {}
    drawn: dict[str, Tensor] = {}
    branches = layout.branching.besides(given) if branch and layout.branching is not None else None
    if branches is not None:
        given = repeated(given, branches, num_samples, batch)
        num_samples *= branches.count
    guarded = layout.guarded.union(given)
    states = layout.states_besides(given)
    with _particles(batch, num_samples, layout, given) as rows:
        guide_trace = trace_guide(guide, rows, guarding(given, replaces=False), *([_Split(drawn)] if split else []))
        proposes = guide is None and (states is None or not layout.sums_all_but(given, states))
        if proposes or states is None:
            draws = _without_indices(guide_trace, rows, batch, layout)
            model_trace = trace_model(model, draws, rows, guarding(guarded))
    model_rows = rows
    if states is not None and states.way == "dims":
        proposed = model_trace if proposes else guide_trace
        first_dim = -1 - layout.nesting - (num_samples > 1 and layout.vectorizes)
        with _particles(batch, num_samples, layout, given) as model_rows:
            draws = _without_indices(proposed, model_rows, batch, layout)
            with guarding(guarded):
                model_trace = trace_enumerated(model, draws, model_rows, states, first_dim)
    elif states is not None:
        proposed = model_trace if proposes else guide_trace
        latents = {
            name: layout.collect(name, site["value"], num_samples)
            for name, site in random_sites(proposed).items()
            if not site["is_observed"] and name not in states.tables and not site["infer"].get("is_auxiliary")
        }
        values = repeated({**given, **latents}, states, num_samples, batch)
        with _particles(batch, num_samples * states.count, layout, values) as model_rows:
            draws = _without_indices(proposed, model_rows, batch, layout)
            model_trace = trace_model(model, draws, model_rows, guarding(guarded))
    guide_sites, model_sites = random_sites(guide_trace), random_sites(model_trace)
    missing, extra = unmatched_sites(guide_sites, model_sites, () if layout.summed is None else layout.summed.tables)
    if guide is not None and (missing or extra):
        raise ContractError(
            f"the guide does not fit the model: it lacks {missing or 'nothing'} and adds {extra or 'nothing'}",
            "sample exactly the model's latent sites in the guide",
        )
    model_plate = plate_named(model_sites, layout.model_plate, len(model_rows[0]))
    guide_plate = None
    if guide_sites:
        guide_plate = plate_named(guide_sites, layout.guide_plate or layout.model_plate, len(rows[0]))
    reverse = {name: guide_sites.pop(name) for name in list(guide_sites) if _extends_model(guide_sites[name])}
    factors = {name: guide_sites.pop(name) for name in list(guide_sites) if guide_sites[name]["is_observed"]}
    return PairRun(
        batch=batch,
        guide=guide_sites,
        model=model_sites,
        num_samples=num_samples,
        num_data=len(batch[0]),
        num_total=_subsampled_from(model_trace, model_plate) or len(batch[0]),
        layout=layout,
        guide_plate=guide_plate,
        model_plate=model_plate,
        drawn=drawn,
        states=states,
        branches=branches,
        reverse=reverse,
        factors=factors,
    )


def _extends_model(site: Site) -> bool:
    return bool((site["infer"] or {}).get("extends_model"))


def unmatched_sites(
    guide: dict[str, Site], model: dict[str, Site], summed: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Latent sites that the guide lacks, `summed` ones aside, and guide sites that are no latents of the model."""
    latent = {name for name, site in model.items() if not site["is_observed"]}
    missing = [name for name in model if name in latent and name not in guide and name not in summed]
    extra = [name for name, site in guide.items() if name not in latent and not site["infer"].get("is_auxiliary")]
    return missing, extra


def trace_pair(
    model: Stochastic, guide: Stochastic | None, batch: Batch, around_guide: Messenger | None = None
) -> tuple[poutine.Trace, poutine.Trace]:
    """The trace of the guide, and that of the model on the guide's draws."""
    guide_trace = trace_guide(guide, batch, *([] if around_guide is None else [around_guide]))
    return guide_trace, trace_model(model, guide_trace, batch, Guard())


def trace_guide(guide: Stochastic | None, batch: Batch, *around: AbstractContextManager[Any]) -> poutine.Trace:
    """The trace of the guide; an empty one without a guide."""
    with ExitStack() as handlers:
        for each in around:
            handlers.enter_context(each)
        return poutine.trace(guide).get_trace(*batch) if guide is not None else poutine.Trace()


def trace_model(
    model: Stochastic, guide_trace: poutine.Trace, batch: Batch, guard: AbstractContextManager[Any]
) -> poutine.Trace:
    """The trace of the model on the guide's draws."""
    with guard:
        return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*batch)


@contextmanager
def _particles(batch: Batch, num_samples: int, layout: Layout, given: Mapping[str, Tensor]) -> Iterator[Batch]:
    """Run what is inside with K particles, at given values of some sites; gives the batch to run it on."""
    with ExitStack() as handlers:
        if given:
            handlers.enter_context(_Given(_arranged(layout, given)))
        if num_samples > 1 and layout.vectorizes:
            handlers.enter_context(pyro.plate(PARTICLES, num_samples, dim=-1 - layout.nesting))
        elif num_samples > 1:
            handlers.enter_context(_InOrder(layout.data_plates))
            batch = _copies(batch, num_samples)
        yield batch


def setting(layout: Layout, given: Mapping[str, Tensor]) -> Messenger:
    """A handler that sets latent sites, each (1, B, ...), in a run of one particle."""
    return _Given(_arranged(layout, given))


def _arranged(layout: Layout, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: layout.arrange(name, value) for name, value in given.items()}


def _copies(batch: Batch, num_samples: int) -> Batch:
    """The batch K times over along dim 0: row k * B + b is datum b."""
    return tuple(part.repeat(num_samples, *(1,) * (part.dim() - 1)) for part in batch)


def _subsampled_from(trace: poutine.Trace, plate: Plate) -> int | None:
    """How many data a subsampling plate stands for; None for a plain plate."""
    drawn = trace.nodes[plate.name]["fn"] if plate.name in trace.nodes else None
    if isinstance(drawn, _Subsample) and (drawn.subsample_size is not None or drawn.size != plate.size):
        return drawn.size
    return None


def _without_indices(trace: poutine.Trace, rows: Batch, batch: Batch, layout: Layout) -> poutine.Trace:
    """A trace to take draws from; on copies of the batch, the plates over the data find their indices by themselves."""
    if len(rows[0]) == len(batch[0]):
        return trace
    draws = trace.copy()
    for name in layout.data_plates & draws.nodes.keys():
        draws.remove_node(name)
    return draws


class _Given(Messenger):
    """Set the values of latent sites by name."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class _Split(Messenger):
    """Give what follows a draw a leaf of the same value, and keep the draw with its history."""

    def __init__(self, drawn: dict[str, Tensor]) -> None:
        super().__init__()
        self.drawn = drawn

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        self.drawn[msg["name"]] = msg["value"]
        leaf = msg["value"].detach()
        msg["value"] = leaf.requires_grad_() if leaf.is_floating_point() else leaf


class _InOrder(Messenger):
    """Give a plate over the data its batch in order, where it would draw which data to look at.

    The batch is the subsample already, and a subsampling plate would refuse to hold more copies than data. Indices that
    come with the batch stay as they are: they are copied with it.
    """

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, _Subsample) and msg["name"] in self.names and msg["value"] is None:
            size = fn.size if fn.subsample_size is None else fn.subsample_size
            msg["value"] = torch.arange(size, device=fn.device)
