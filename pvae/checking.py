"""One look at a pair: what is wrong with it, and what to do."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.infer
import torch
from torch import Tensor

from pvae.graphs import trace as tracing
from pvae.objectives.elbo import ELBO
from pvae.objectives.objective import Objective
from pvae.pair.entry import entry
from pvae.pair.findings import Finding
from pvae.pair.look import read_layout
from pvae.pair.parameters import find_parameters
from pvae.pair.referee import NoParticles
from pvae.pair.sites import Batch, as_batch
from pvae.pair.store import private_store
from pvae.pair.verdicts import forget
from pvae.support.arguments import check_pair
from pvae.support.refusals import instance
from pvae.training.contract import breaches

__all__ = ["Finding", "check"]


@entry
def check(
    model: Any, guide: Any, batch: Tensor | tuple[Tensor, ...], objective: pyro.infer.ELBO | None = None
) -> list[Finding]:
    """Run a pair once on a batch and list what breaks its contract; an empty list is a clean bill.

    Finds missing and extra guide sites, shapes that differ between model and guide, latents outside the data
    plate, forgotten `to_event`, data outside the likelihood's support, sites without a pathwise gradient under
    an objective that needs one, nets and tensors to be trained that no `pyro.module` or `pyro.param` states, and batch
    statistics in training mode.
    Of a pair without errors it says why, if its training steps cannot be traced and so run eagerly.
    """
    check_pair(model, guide)
    if objective is not None:
        instance("objective", objective, pyro.infer.ELBO, what="one of pvae.objectives, built", usual="ELBO()")
    arguments = as_batch(batch)
    with private_store(model, guide, look=True), torch.enable_grad():
        findings = breaches(model, guide, arguments, objective)
        if not any(finding.level == "error" for finding in findings):
            findings += _weighing(model, guide, arguments)
        if not any(finding.level == "error" for finding in findings):
            findings += _tracing(model, guide, arguments, ELBO() if objective is None else objective)
    return findings


def _weighing(model: Any, guide: Any, batch: Batch) -> list[Finding]:
    """What the referee of the log weights says, asked anew."""
    forget(model, guide)
    try:
        read_layout(model, guide, batch, 2)
    except NoParticles as error:
        return [Finding.of("pair", error, "note")]
    except ValueError as error:
        return [Finding.of("pair", error)]
    return []


def _tracing(model: Any, guide: Any, batch: Batch, objective: pyro.infer.ELBO) -> list[Finding]:
    parameters = find_parameters(model, guide, batch)
    leaves = [*parameters.leaves.values()]
    if not leaves or not isinstance(objective, Objective):
        return []

    def step(*inputs: Tensor) -> list[Tensor | None]:
        loss = -objective.bound(model, guide, inputs).mean()
        return [loss.detach(), *torch.autograd.grad(loss, leaves, allow_unused=True)]

    try:
        tracing.trace(step, parameters, batch)
    except tracing.Untraceable as reason:
        fix = "compute with torch's operations alone to have its steps traced and compiled; they run eagerly now"
        return [Finding("pair", f"cannot be traced: {reason}", fix, "note")]
    return []
