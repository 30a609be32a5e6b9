"""How to run a pair: one look at its sites and plates, and the referee's word on the runs.

Example: a pair over digits x (B, 64) with one latent z (B, 8) has nesting 1, the plate "data" in both functions, and
z with 1 event dim at data dim -1. With K particles the same functions run once under one more plate, dim -2, and z is
(K, B, 8); or, where the nets take one batch dim only, on K copies of the batch, and z is (K B, 8).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pyro import poutine

from pvae.pair.contexts import called_modules, running, seeded
from pvae.pair.guards import Guard, may_leave
from pvae.pair.layout import Layout, place_of
from pvae.pair.referee import approve
from pvae.pair.run import Stochastic, trace_guide, trace_model
from pvae.pair.sites import Batch, Plate, Site, data_plate, is_enumerated, other_batch, plate_nesting, random_sites
from pvae.pair.sums.states import States
from pvae.pair.verdicts import known, remember
from pvae.support.refusals import ContractError

__all__ = ["SecondLook", "look", "read_layout"]


def read_layout(model: Stochastic, guide: Stochastic | None, batch: Batch, num_samples: int) -> Layout:
    """How to run the pair with `num_samples` particles, once the referee has seen that its numbers are right.

    What is found out about a pair holds for all batches of these shapes, as long as the pair lives and what it reads
    from Python stays as it is.

    Raises: ValueError, with the site and the reason, if a log weight would be wrong; `NoParticles` if that is so for
        several particles alone.
    """
    many = num_samples > 1
    found = known(model, guide, batch, many)
    if found is None:
        with torch.no_grad(), seeded(0, batch[0].device), called_modules() as modules:
            layout = look(model, guide, batch)
            found = approve(model, guide, batch, layout, modules, many)
        remember(model, guide, batch, many, modules, found)
    return found


def look(model: Stochastic, guide: Stochastic | None, batch: Batch) -> Layout:
    """Where the sites and plates of a pair are; nothing is said of its log weights.

    A pair that states nothing at all, such as a guide of nothing by itself, has a layout without a plate.

    Raises: ValueError for a pair without a plate over the data.
    """
    with torch.no_grad(), seeded(0, batch[0].device), called_modules():
        with running("pair", batch):
            guide_trace = trace_guide(guide, batch)
            model_trace = trace_model(model, guide_trace, batch, Guard())
        guide_sites, model_sites = random_sites(guide_trace), random_sites(model_trace)
        if not model_sites and not guide_sites:
            return Layout(nesting=0, vectorizes=True, model_plate="")
        num_data = len(batch[0])
        again = SecondLook(model, guide, batch)
        model_plate = data_plate(model_trace, num_data, again.of_model)
        guide_plate = None
        if guide_sites:
            guide_plate = data_plate(guide_trace, num_data, again.of_guide, model_plate.name)
            _require_same_dim(model_plate, guide_plate)
    layout = Layout(
        nesting=max(plate_nesting(trace) for trace in (guide_trace, model_trace)),
        vectorizes=True,
        model_plate=model_plate.name,
        guide_plate=None if guide_plate is None else guide_plate.name,
        places={
            name: place_of(site, model_plate)
            for name, site in (guide_sites | model_sites).items()
            if not site["is_observed"]
        },
    )
    summed = {name: site for name, site in model_sites.items() if name not in guide_sites}
    return replace(
        layout,
        summed=_states(summed, layout),
        branching=_states(guide_sites, layout),
        guarded=frozenset(name for name, site in model_sites.items() if may_leave(site, guide_sites.get(name))),
    )


class SecondLook:
    """The traces of a pair on so many of its data, taken once, when they are asked for."""

    def __init__(self, model: Stochastic, guide: Stochastic | None, batch: Batch) -> None:
        self.model, self.guide, self.batch = model, guide, batch
        self._taken: dict[int, tuple[poutine.Trace, poutine.Trace]] = {}

    def of_guide(self, num_data: int) -> poutine.Trace:
        """The guide's."""
        return self._traces(num_data)[0]

    def of_model(self, num_data: int) -> poutine.Trace:
        """The model's, on the guide's draws."""
        return self._traces(num_data)[1]

    def _traces(self, num_data: int) -> tuple[poutine.Trace, poutine.Trace]:
        if num_data not in self._taken:
            batch = other_batch(self.batch, num_data)
            with torch.no_grad(), seeded(0, batch[0].device), called_modules():
                guide_trace = trace_guide(self.guide, batch)
                self._taken[num_data] = guide_trace, trace_model(self.model, guide_trace, batch, Guard())
        return self._taken[num_data]


def _require_same_dim(model_plate: Plate, guide_plate: Plate) -> None:
    if model_plate.dim != guide_plate.dim:
        raise ContractError(
            f"the data plate stands at dim {guide_plate.dim} in the guide ('{guide_plate.name}') and at "
            f"{model_plate.dim} in the model ('{model_plate.name}')",
            "give both the same dim",
        )


def _states(sites: dict[str, Site], layout: Layout) -> States | None:
    """The states of those latent sites that are annotated to be enumerated."""
    sites = {name: site for name, site in sites.items() if is_enumerated(site) and not site["is_observed"]}
    shapes = {name: layout.collect(name, site["value"], 1).shape[2:] for name, site in sites.items()}
    return States(sites, shapes) if sites else None
