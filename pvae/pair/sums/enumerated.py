"""Running a model with the states of discrete sites along dims of their own, as Pyro's enumeration does."""

from __future__ import annotations

import copy
from typing import Any

from pyro import poutine
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.runtime import _ENUM_ALLOCATOR
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pvae.pair.sites import Batch
from pvae.pair.sums.states import States

__all__ = ["trace_enumerated"]


def trace_enumerated(
    model: Any, proposed: poutine.Trace, batch: Batch, states: States, first_dim: int
) -> poutine.Trace:
    """The trace of a model at all states of some sites, and at the values that a trace holds of the others.

    A site to enumerate has the values (S, 1, ..., 1) of one entry, the S states standing left of all plates, from
    `first_dim` on. The trace has symbols for its dims.
    """
    given = proposed.copy()
    for name in states.tables.keys() & given.nodes.keys():
        given.remove_node(name)
    # The states have to stand before the values replayed, so that Pyro knows the dims of what depends on them.
    enumerated = _Enumerate(states, first_dim)(model)
    before = dict(vars(_ENUM_ALLOCATOR))
    try:
        trace = poutine.trace(poutine.replay(enumerated, trace=given)).get_trace(*batch)
    finally:
        vars(_ENUM_ALLOCATOR).clear()
        vars(_ENUM_ALLOCATOR).update(before)
    trace.symbolize_dims()
    return trace


class _Enumerate(EnumMessenger):
    """Enumerate the sites of some states, and no other ones, an event of several dims as one."""

    def __init__(self, states: States, first_dim: int) -> None:
        super().__init__(first_dim)
        self.states = states

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            return
        is_summed = msg["name"] in self.states.tables and not msg["is_observed"]
        msg["infer"] = {key: value for key, value in msg["infer"].items() if key not in ("expand", "num_samples")}
        msg["infer"]["enumerate"] = "parallel" if is_summed else None
        if is_summed and msg["fn"].event_dim:
            msg["fn"] = _with_support(msg["fn"], self.states.events(msg["name"]))
        super()._pyro_sample(msg)


def _with_support(distribution: Any, table: Tensor) -> Any:
    """The distribution, its events enumerated as (S, *event_shape): Pyro enumerates no event made of several."""
    distribution = copy.copy(distribution)
    values = table.reshape(len(table), *(1,) * len(distribution.batch_shape), *table.shape[1:])
    distribution.enumerate_support = lambda expand=False: values
    return distribution
