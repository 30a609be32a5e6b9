"""How to run a pair with many particles at once, found out by trying."""

from __future__ import annotations

from dataclasses import replace

import torch

from pvae.contexts import called_modules, seeded
from pvae.enumerable import entry_by_entry, trial_batch
from pvae.pair_run import PairRun
from pvae.places import Layout, place_of
from pvae.runs import Stochastic, run_pair, trace_pair
from pvae.sites import Batch, Site, data_plate, is_enumerated, plate_nesting, random_sites
from pvae.states import States

__all__ = ["read_layout"]


def read_layout(model: Stochastic, guide: Stochastic | None, batch: Batch, num_samples: int) -> Layout:
    """Find out from a trial run how to run the pair with `num_samples` particles.

    Whether the nets take a particle dim is tried, and the numbers compared with those of copied batches:
    a net that silently mixes dims would otherwise give wrong weights.
    """
    with torch.no_grad(), seeded(0, batch[0].device), called_modules():
        traces = trace_pair(model, guide, batch)
        plates = [data_plate(trace, len(batch[0])) for trace in traces if random_sites(trace)]
        layout = Layout(
            nesting=max(plate_nesting(trace) for trace in traces),
            vectorizes=True,
            data_plates=frozenset(plate.name for plate in plates),
            places={
                name: place_of(site, plates[-1])
                for trace in traces
                for name, site in random_sites(trace).items()
                if not site["is_observed"]
            },
        )
        guide_sites, model_sites = map(random_sites, traces)
        summed = {name: site for name, site in model_sites.items() if name not in guide_sites}
        layout = replace(layout, summed=_states(summed, layout), branching=_states(guide_sites, layout))
        if num_samples == 1 and layout.summed is None and layout.branching is None:
            return layout
        if (found := entry_by_entry(model, guide, batch, layout)) is not None:
            return found
        return replace(layout, vectorizes=_vectorizes(model, guide, batch, layout))


def _states(sites: dict[str, Site], layout: Layout) -> States | None:
    """The states of those latent sites that are annotated to be enumerated."""
    sites = {name: site for name, site in sites.items() if is_enumerated(site) and not site["is_observed"]}
    shapes = {name: layout.collect(name, site["value"], 1).shape[2:] for name, site in sites.items()}
    return States(sites, shapes) if sites else None


def _vectorizes(model: Stochastic, guide: Stochastic | None, batch: Batch, layout: Layout) -> bool:
    batch = trial_batch(model, guide, batch)
    num_samples = 2
    try:
        wide = run_pair(model, guide, batch, num_samples, layout)
        weights = wide.log_weights()
    except Exception:  # whatever a net trips over, it does not take particles
        return False
    if any(site["value"].dim() - layout.nesting - site["fn"].event_dim < 1 for site in _latent(wide).values()):
        return False
    try:
        auxiliary = {name: site for name, site in wide.guide.items() if name not in wide.model}
        given = wide.latents | {
            name: layout.collect(name, site["value"], num_samples) for name, site in auxiliary.items()
        }
        in_copies = replace(layout, vectorizes=False)
        copied = run_pair(model, guide, batch, num_samples, in_copies, given=given).log_weights()
    except Exception:  # then the copies are no way out
        return True
    pairs = ((weights.log_likelihood, copied.log_likelihood), (weights.log_prior, copied.log_prior))
    return all(
        torch.allclose(wide_part, long_part, rtol=1e-3, atol=1e-3)
        for wide_part, long_part in (*pairs, (weights.log_guide, copied.log_guide))
    )


def _latent(run: PairRun) -> dict[str, Site]:
    return {name: site for name, site in (run.model | run.guide).items() if not site["is_observed"]}
