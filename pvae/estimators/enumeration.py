"""Exact log p(x) of models whose latents are discrete, by summing over all their states."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import TransformedDistribution

from pvae.estimators.joint import Joint
from pvae.estimators.stream import Estimate
from pvae.params import Parameters
from pvae.sites import Batch, Site, as_batch, base_of
from pvae.store import private_store
from pvae.weights import check_num_samples

__all__ = ["Enumeration", "JointStates", "joint_states"]


class Enumeration:
    """log p(x) = log sum_z p(x, z) over every joint state z of discrete latents: exact, without a guide.

    Bernoulli, categorical, one-hot and binomial sites, over event dims and plates inside the data plate; each entry
    multiplies the number of states. `mc_standard_errors` is 0, `khat` is -inf and `ess` the number of states.

    Args:
        max_states: refuse more joint states than this.

    Attributes: `num_samples`, the number of states, known from the first batch on and 0 before.

    Raises: ValueError for a max_states below 1; on use, for latents that are continuous, without a finite support or
        with too many joint states.
    """

    bound = "unbiased"

    def __init__(self, max_states: int = 65536) -> None:
        check_num_samples(max_states)
        self.max_states = max_states
        self.num_samples = 0

    def start(self, model: Any, guide: Any, parameters: Parameters, num_batches: int) -> Callable[[Batch], Estimate]:
        """log p(x) per datum, (B,), for one batch after another; the guide is not used."""
        return lambda batch: self._estimate(model, batch)

    def _estimate(self, model: Any, batch: Batch) -> Estimate:
        joint = Joint(model, batch)
        states = _States(joint, self.max_states)
        self.num_samples = states.count
        parts = [joint.log_prob(part).logsumexp(0) for part in states.chunks()]
        values = torch.stack(parts).logsumexp(0)
        return Estimate(
            values=values.cpu(),
            mc_standard_errors=torch.zeros_like(values).cpu(),
            ess=torch.full_like(values, states.count).cpu(),
            khat=torch.full_like(values, -math.inf).cpu(),
        )


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
    with private_store(model):
        joint = Joint(model, arguments)
        parts = list(_States(joint, max_states).chunks())
        log_joint = torch.cat([joint.log_prob(part) for part in parts])
    return JointStates({name: torch.cat([part[name] for part in parts]) for name in joint.sites}, log_joint)


class _States:
    """The joint states of a batch's latents, numbered like the digits of a counter."""

    def __init__(self, joint: Joint, max_states: int) -> None:
        self.joint = joint
        self.tables = {name: _support(name, site) for name, site in joint.sites.items()}
        # A table is (S, event of the base), and a site's value holds one entry of it per coordinate.
        self.coordinates = {
            name: math.prod(joint.shapes[name]) // math.prod(table.shape[1:]) for name, table in self.tables.items()
        }
        self.count = math.prod(len(table) ** self.coordinates[name] for name, table in self.tables.items())
        if self.count > max_states:
            raise ValueError(
                f"the latents have {self.count:.3g} joint states, more than max_states={max_states}; raise it, or use "
                "ImportanceSampling"
            )

    def chunks(self) -> Iterator[dict[str, Tensor]]:
        """The states in order, as values (k, B, ...) of every site."""
        batch = self.joint.batch[0]
        for numbers in torch.arange(self.count, device=batch.device).split(self.joint.rows_at_once):
            latents, left = {}, numbers
            for name, table in self.tables.items():
                places = len(table) ** torch.arange(self.coordinates[name], device=batch.device)
                digits = left[:, None] // places % len(table)
                left = left // len(table) ** self.coordinates[name]
                values = table[digits].reshape(len(numbers), 1, *self.joint.shapes[name])
                latents[name] = values.expand(-1, len(batch), *values.shape[2:])
            yield latents


def _support(name: str, site: Site) -> Tensor:
    """The values one coordinate of a site can take: (S, event of the base distribution)."""
    fn = site["fn"]
    if not fn.support.is_discrete:
        raise ValueError(
            f"site '{name}' is continuous, which Enumeration cannot sum over; use Quadrature for up to 2 continuous "
            "dims, else ImportanceSampling"
        )
    base = base_of(fn)
    wrapped = fn
    while hasattr(wrapped, "base_dist") and not isinstance(wrapped, TransformedDistribution):
        wrapped = wrapped.base_dist
    try:
        if wrapped is not base:
            raise NotImplementedError
        table = base.enumerate_support(expand=False)
    except NotImplementedError:
        raise ValueError(
            f"site '{name}' ({type(base).__name__}) has no finite support that is the same for all; use "
            "ImportanceSampling"
        ) from None
    return table.reshape(len(table), *base.event_shape)
