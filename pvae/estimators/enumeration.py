"""Exact log p(x) of models whose latents are discrete, by summing over all their states."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pvae.estimators.density.joint import Joint
from pvae.estimators.weights.stream import Estimate
from pvae.pair.contexts import seeded
from pvae.pair.pair import Pair
from pvae.pair.parameters import Parameters
from pvae.pair.sites import Batch, as_batch
from pvae.pair.sums.enumerable import entry_by_entry
from pvae.pair.sums.states import States
from pvae.support.refusals import whole

__all__ = ["Enumeration", "JointStates", "joint_states"]

# What a tensor of whole numbers holds.
_MOST_TO_TELL = 2**62


class Enumeration:
    """log p(x) = log sum_z p(x, z) over every joint state z of discrete latents: exact, without a guide.

    Bernoulli, categorical, one-hot and binomial sites, over event dims and plates inside the data plate. Entries of a
    plate are summed one by one, and chains step by step, where the model's nets take dims left of the batch; elsewhere
    each entry multiplies the number of states. `mc_standard_errors` is 0, `khat` -inf and `ess` the number of states.

    Args:
        max_states: refuse more joint states than this where they have to be taken one by one, or at one entry.

    Attributes: `num_samples`, the number of joint states, at most 2^62, known from the first batch on and 0 before.

    Raises: ValueError for a max_states below 1; on use, for latents that are continuous, without a finite support or
        with too many joint states.
    """

    bound = "unbiased"

    def __init__(self, max_states: int = 65536) -> None:
        self.max_states = whole("max_states", max_states, usual=65536)
        self.num_samples = 0

    def start(self, model: Any, guide: Any, parameters: Parameters, num_batches: int) -> Callable[[Batch], Estimate]:
        """log p(x) per datum, (B,), for one batch after another; the guide is not used."""
        return lambda batch: self._estimate(model, batch)

    def _estimate(self, model: Any, batch: Batch) -> Estimate:
        joint = Joint(model, batch, sums_out=False)
        states = States(joint.sites, joint.shapes)
        self.num_samples = min(states.count, _MOST_TO_TELL)
        values = self._entry_by_entry(joint, states)
        if values is None:
            log_joints = [joint.log_prob(part) for part in _chunks(joint, self.max_states)]
            values = torch.stack([part.logsumexp(0) for part in log_joints]).logsumexp(0)
        return Estimate(
            values=values.cpu(),
            mc_standard_errors=torch.zeros_like(values).cpu(),
            ess=torch.full_like(values, self.num_samples).cpu(),
            khat=torch.full_like(values, -math.inf).cpu(),
        )

    def _entry_by_entry(self, joint: Joint, states: States) -> Tensor | None:
        """log p(x), (B,), with each entry of a plate summed by itself; None where chunks of joint states are better."""
        most = joint.rows_at_once if states.count <= self.max_states else self.max_states
        if states.largest > most:
            return None
        with torch.no_grad(), seeded(0, joint.batch[0].device):
            layout = entry_by_entry(joint.pair.model, None, joint.batch, replace(joint.layout, summed=states))
        if layout is None or layout.summed is None or layout.summed.copies > most:
            return None
        weights = joint.pair.run(joint.batch, 1, layout=layout).log_weights()
        return (weights.log_likelihood.double() + weights.log_prior.double())[0]


class JointStates(NamedTuple):
    """Every joint state of discrete latents: values by site, (S, B, ...), and log p(x, z), (S, B) in float64."""

    latents: dict[str, Tensor]
    log_joint: Tensor

    @property
    def log_prob(self) -> Tensor:
        """log p(x), (B,)."""
        return self.log_joint.logsumexp(0)

    @property
    def posterior(self) -> Tensor:
        """p(z | x) of each state, (S, B)."""
        return self.log_joint.softmax(0)


def joint_states(model: Any, batch: Tensor | Batch, max_states: int = 65536) -> JointStates:
    """All joint states of a model's discrete latents and their log p(x, z), differentiable in the model's parameters.

    Raises: ValueError as `Enumeration` does.
    """
    arguments = as_batch(batch)
    with Pair(model).inside():
        joint = Joint(model, arguments, sums_out=False)
        parts = list(_chunks(joint, max_states))
        log_joint = torch.cat([joint.log_prob(part) for part in parts])
    return JointStates({name: torch.cat([part[name] for part in parts]) for name in joint.sites}, log_joint)


def _chunks(joint: Joint, max_states: int) -> Iterator[dict[str, Tensor]]:
    """The joint states of a batch's latents in order, as values (k, B, ...) of every site.

    Raises: ValueError for more than `max_states`.
    """
    states = States(joint.sites, joint.shapes)
    if states.count > max_states:
        raise ValueError(
            f"the latents have {states.count_in_words} joint states, more than max_states={max_states}; raise it, or "
            "use ImportanceSampling"
        )
    batch = joint.batch[0]
    for numbers in torch.arange(states.count, device=batch.device).split(joint.rows_at_once):
        yield states.values(numbers, len(batch))
