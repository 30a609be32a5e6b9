"""Whether the sites that a model sums out may be summed entry by entry, found out by trying and comparing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pvae.pair.layout import Layout, Place, place_of
from pvae.pair.pair_run import PairRun
from pvae.pair.run import run_pair
from pvae.pair.scores import agree
from pvae.pair.sites import Batch
from pvae.pair.sums.states import States, Way

__all__ = ["entry_by_entry"]

_NUM_SAMPLES = 2
_MOST_STATES = 65536
_MOST_BYTES = 2**29


def entry_by_entry(model: Any, guide: Any, batch: Batch, layout: Layout) -> Layout | None:
    """The layout for summing entry by entry; None where the pair takes its states only one by one.

    Tried with the states along dims of their own, then as copies in each of which all entries of a plate are alike;
    each with a dim of particles, then with copies of the batch. At a random joint state, every log probability has to
    be that of a run of its own: a net that mixes dims, and an entry that depends on another one's state, are found so.
    """
    states = layout.summed
    if states is None or states.largest > _MOST_STATES:
        return None
    ways: list[tuple[Way, bool]] = [(way, vectorizes) for way in ("dims", "alike") for vectorizes in (True, False)]
    for way, vectorizes in ways:
        tried = replace(layout, vectorizes=vectorizes, summed=states.summed(way))
        if way == "alike" and states.summed(way).count >= min(states.count, _MOST_STATES):
            continue
        try:
            with _Bounded():
                num_states = _agreed_states(model, guide, batch, tried)
        except Exception:  # whatever a net trips over, it does not take states beside each other
            continue
        if num_states is not None and num_states <= _MOST_STATES:
            return replace(tried, summed=states.summed(way, num_states))
    return None


def _agreed_states(model: Any, guide: Any, batch: Batch, layout: Layout) -> int | None:
    """How many states a site is evaluated at, at most; None if the numbers are not those of runs of their own."""
    run = run_pair(model, guide, batch, _NUM_SAMPLES, layout)
    weights, elimination = run.scaled_log_weights(), run.elimination()
    assert layout.summed is not None
    numbers, values = _random(layout.summed, len(batch[0]), batch[0].device)
    auxiliary = {name: site["value"] for name, site in run.guide.items() if name not in run.model}
    values |= run.latents | {name: layout.collect(name, value, _NUM_SAMPLES) for name, value in auxiliary.items()}
    indices = {
        name: elimination.packed(name, _over_plates(layout, name, layout.places[name]).arrange(name, number))
        for name, number in numbers.items()
    }
    found = {**elimination.log_probs} | {
        name: elimination.unpacked(elimination.at(factor, indices)) for name, factor in elimination.factors.items()
    }
    for k in range(_NUM_SAMPLES):
        given = {name: value[k : k + 1] for name, value in values.items()}
        alone = run_pair(model, guide, batch, 1, layout, given=given)
        expected = alone.log_probs(layout.summed.tables)
        if expected.keys() != found.keys():
            return None
        if guide is not None and not agree(weights.log_guide[k], alone.scaled_log_weights().log_guide[0]):
            return None
        for name, log_prob in expected.items():
            if not agree(_collected(run, name, found[name], _NUM_SAMPLES)[k], _collected(run, name, log_prob, 1)[0]):
                return None
    return elimination.num_states


def _random(states: States, num_data: int, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """States drawn uniformly for every entry: their numbers, (K, B, *plates), and the values, (K, B, ...)."""
    numbers, values = {}, {}
    for name in states.tables:
        events, shape = states.events(name), states.shapes[name]
        plates = shape[: len(shape) - states.event_dims[name]]
        numbers[name] = torch.randint(len(events), (_NUM_SAMPLES, num_data, *plates), device=device)
        values[name] = events.to(device)[numbers[name]]
    return numbers, values


def _collected(run: PairRun, name: str, log_prob: Tensor, num_samples: int) -> Tensor:
    """The log probability of a site in a run as (K, B, *plates)."""
    place = place_of(run.model[name], run.model_plate)
    return _over_plates(run.layout, name, place).collect(name, log_prob, num_samples)


def _over_plates(layout: Layout, name: str, place: Place) -> Layout:
    """The layout of a site's log probabilities, which have no event."""
    return replace(layout, places={name: place._replace(event_dim=0)})


class _Bounded(TorchFunctionMode):
    """Raise MemoryError once a tensor is larger than any trial should need."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().nbytes() > _MOST_BYTES:
            raise MemoryError
        return result
