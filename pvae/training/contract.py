"""The contract of a pair, held against it before training: what breaks it, and what to do.

Example: a model that samples z and x in a plate over a batch (3, 64), and a guide that samples w in place of z, give
two findings: site 'z' is missing from the guide, and site 'w' is absent from the model.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.infer
import torch
from pyro import poutine
from torch import nn

from pvae.data.supports import outside_support
from pvae.objectives.objective import PATHWISE_FIX, Objective, site_without_gradient
from pvae.pair.contexts import called_modules, failure, seeded
from pvae.pair.findings import Finding
from pvae.pair.guards import Guard
from pvae.pair.implicit import refusal_of
from pvae.pair.look import SecondLook
from pvae.pair.parameters import find_parameters
from pvae.pair.run import unmatched_sites
from pvae.pair.sites import (
    Batch,
    Site,
    base_of,
    data_plate,
    is_enumerated,
    plates_of,
    random_sites,
    subsampled_plate,
)
from pvae.pair.strays import stray_leaves

__all__ = ["breaches", "require_contract"]


def require_contract(model: Any, guide: Any, batch: Batch, objective: pyro.infer.ELBO) -> None:
    """Raise ValueError with every error that there is before training.

    Its warnings are about evaluation: in training, batch statistics are where they belong.
    """
    errors = [str(finding) for finding in breaches(model, guide, batch, objective) if finding.level == "error"]
    if errors:
        raise ValueError(" | ".join(errors))


def breaches(model: Any, guide: Any, batch: Batch, objective: pyro.infer.ELBO | None) -> list[Finding]:
    """What breaks the contract, as one run of each function shows."""
    findings: list[Finding] = []
    traces: dict[str, poutine.Trace] = {}
    replayed = poutine.Trace()
    with torch.no_grad(), seeded(0, batch[0].device), called_modules(), pyro.validation_enabled(False):
        for place, function in (("guide", guide), ("model", model)):
            if function is None:
                continue
            try:
                # Called inside the handlers, not through them: that would add a table of shapes to an error.
                with Guard(), poutine.trace() as run, poutine.replay(trace=replayed):
                    function(*batch)
            except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
                return [*findings, Finding.of(place, failure(error, batch, advice="see the shapes"))]
            traces[place] = replayed = run.trace
    sites = {place: random_sites(trace) for place, trace in traces.items()}
    findings += _densities(sites, objective)
    if guide is not None:
        findings += _matching(sites["guide"], sites["model"])
    again = SecondLook(model, guide, batch)
    for place, trace in traces.items():
        if not sites[place]:
            continue
        try:
            plate = data_plate(trace, len(batch[0]), again.of_guide if place == "guide" else again.of_model)
        except ValueError as error:
            findings.append(Finding.of(place, error))
            continue
        for name, site in sites[place].items():
            findings += _shape(name, site, place, plate.dim)
            findings += _subsampling(name, site, plate.name)
    with torch.no_grad(), pyro.validation_enabled(False):
        findings += outside_support(traces["model"], model, guide, batch)
    if objective is None or _is_pathwise(objective):
        findings += [
            Finding(
                f"site '{name}'",
                f"{type(base_of(site['fn'])).__name__} has no pathwise gradient",
                PATHWISE_FIX,
            )
            for name, site in sites.get("guide", {}).items()
            if site_without_gradient(site) and not (is_enumerated(site) and getattr(objective, "sums_out_guide", True))
        ]
    return findings + _nets(model, guide, batch)


def _subsampling(name: str, site: Site, data_plate: str) -> list[Finding]:
    frame = subsampled_plate(site, data_plate)
    if frame is None:
        return []
    found = f"stands in the plate '{frame.name}', which looks at {frame.size} of {frame.full_size} entries of a datum"
    fix = "train with it; log p(x) needs the whole plate, and is refused"
    return [Finding(f"site '{name}'", found, fix, "warning")]


def _is_pathwise(objective: pyro.infer.ELBO) -> bool:
    if isinstance(objective, Objective):
        return objective.needs_pathwise
    return isinstance(objective, pyro.infer.TraceMeanField_ELBO)


def _densities(sites: dict[str, dict[str, Site]], objective: pyro.infer.ELBO | None) -> list[Finding]:
    """Sites whose density the objective asks for, and that have none."""
    scores = objective.scores if isinstance(objective, Objective) else Objective.scores
    found = []
    for place in scores:
        for name, site in sites.get(place, {}).items():
            if (refusal := refusal_of(site)) is not None:
                found.append(Finding.of(f"site '{name}'", refusal))
    return found


def _matching(guide: dict[str, Site], model: dict[str, Site]) -> list[Finding]:
    missing, extra = unmatched_sites(guide, model)
    findings = [
        Finding(f"site '{name}'", "is latent in the model and missing from the guide", f"sample '{name}' in the guide")
        for name in missing
        if model[name]["infer"].get("enumerate") is None
    ]
    for name in extra:
        what = "observed in" if name in model else "absent from"
        fix = f"drop it, or rename it to one of {sorted(missing)}" if missing else "drop it from the guide"
        findings.append(Finding(f"site '{name}'", f"is in the guide but {what} the model", fix))
    for name in [name for name in guide if name in model and name not in extra]:
        shapes = [tuple(site[name]["fn"].event_shape) for site in (guide, model)]
        if shapes[0] != shapes[1]:
            fix = "build the guide for this model, with the same to_event"
            findings.append(
                Finding(f"site '{name}'", f"has event shape {shapes[0]} in the guide, {shapes[1]} in the model", fix)
            )
    return findings


def _shape(name: str, site: Site, place: str, data_dim: int) -> list[Finding]:
    """Batch dims that no plate accounts for are dims that `to_event` should have taken."""
    plates = {plate.dim for plate in plates_of(site)}
    batch_shape = site["fn"].batch_shape
    stray = [size for i, size in enumerate(batch_shape) if i - len(batch_shape) not in plates and size != 1]
    sizes = [plate.size for plate in plates_of(site) if plate.dim == data_dim]
    if stray or (batch_shape and batch_shape[data_dim] not in (1, *sizes)):
        return [
            Finding(
                f"site '{name}'",
                f"has batch shape {tuple(batch_shape)} in the {place}, the data plate holds {sizes}",
                "call .to_event(n) on its distribution, n being the dims of one datum",
            )
        ]
    return []


def _is_batch_norm(module: nn.Module) -> bool:
    scripted = str(getattr(module, "original_name", ""))
    return isinstance(module, nn.modules.batchnorm._BatchNorm) or scripted.startswith("BatchNorm")


def _nets(model: Any, guide: Any, batch: Batch) -> list[Finding]:
    findings = []
    parameters = find_parameters(model, guide, batch)
    for net in parameters.unregistered:
        fix = "call pyro.module('name', net) where it is used, or freeze it with requires_grad_(False)"
        findings.append(Finding(f"net {net}", "is used but registered by no pyro.module, so it is not trained", fix))
    for name, leaf in stray_leaves(model, guide, batch, parameters):
        findings.append(
            Finding(
                "a tensor" if name is None else f"tensor '{name}'",
                f"of shape {tuple(leaf.shape)} asks for a gradient, but no pyro.param or pyro.module states it, so it "
                "is not trained",
                "state it by pyro.param, hold it in a module given to pyro.module, or freeze it with "
                "requires_grad_(False)",
            )
        )
    if any(_is_batch_norm(module) and module.training for module in parameters.modules):
        findings.append(
            Finding(
                "BatchNorm",
                "is in training mode, so one datum's density depends on the others in its batch",
                "call .eval() before you evaluate by hand (pvae.log_marginal does)",
                "warning",
            )
        )
    return findings
