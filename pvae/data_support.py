"""Whether data lie where their likelihood can score them.

Example: x (B, 64) with grey pixels under a Bernoulli likelihood lies outside {0, 1}, whatever the latents are. A count
x under Binomial(n) with a latent n lies outside for some n alone: that is no fault of the data, such an n weighs zero.
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pvae.contexts import called_modules, seeded
from pvae.findings import Finding
from pvae.guards import inside
from pvae.layout import SecondLook
from pvae.runs import trace_pair
from pvae.sites import Batch, Site, base_of, data_plate, random_sites
from pvae.supports import Image, bounds_of, entry, same, support_of

__all__ = ["outside_support", "require_support"]


def require_support(model: Any, batch: Batch, guide: Any = None) -> None:
    """Raise ValueError if the data are none that the model's likelihood can score; call inside a private store.

    Pyro itself would refuse them with a page of numbers, or, with its validation off, score them all the same. A
    support that depends on latents is none to judge data by: where a draw makes them impossible, it weighs zero.
    """
    with torch.no_grad(), pyro.validation_enabled(False):
        findings = [
            str(finding) for finding in outside_support(_model_trace(model, None, batch, 0), model, guide, batch)
        ]
    if findings:
        raise ValueError(" | ".join(findings))


def _model_trace(model: Any, guide: Any, batch: Batch, seed: int) -> poutine.Trace:
    """The trace of the model on draws of the guide, or on its own without one."""
    with seeded(seed, batch[0].device), called_modules():
        return trace_pair(model, guide, batch)[1]


def outside_support(trace: poutine.Trace, model: Any, guide: Any, batch: Batch) -> list[Finding]:
    """Data outside the support of their likelihood, unless other draws of the latents move it."""
    try:
        dim = data_plate(trace, len(batch[0]), SecondLook(model, guide, batch).of_model).dim
    except ValueError:
        dim = None
    sites = {name: site for name, site in random_sites(trace).items() if site["is_observed"]}
    findings = {name: found for name, site in sites.items() if (found := _support(name, site, dim))}
    if any(isinstance(bound, Tensor) for name in findings for bound in bounds_of(support_of(sites[name]["fn"]))):
        others = [_model_trace(model, None, batch, seed) for seed in (1, 2)]
        others += [] if guide is None else [_model_trace(model, guide, batch, 3)]
        for other in map(random_sites, others):
            for name in [name for name in findings if name in other]:
                if not same(support_of(sites[name]["fn"]), support_of(other[name]["fn"])):
                    del findings[name]
    return list(findings.values())


def _support(name: str, site: Site, data_dim: int | None) -> Finding | None:
    fn, value = site["fn"], site["value"]
    try:
        if not value.is_floating_point():
            fn.log_prob(value)
    except RuntimeError:
        return Finding(f"site '{name}'", f"cannot score values of dtype {value.dtype}", "convert them with .float()")
    try:
        support = support_of(fn, around=True)
        is_inside = inside(support, value) if isinstance(entry(support), Image) else fn.support.check(value)
    except (NotImplementedError, RuntimeError, ValueError):
        return None
    if is_inside is None or bool(is_inside.all()):
        return None
    likelihood = type(base_of(fn)).__name__
    low, high = value.min().item(), value.max().item()
    grey = likelihood == "Bernoulli" and low >= 0 and high <= 1
    fix = (
        "binarise the data (binarize='dynamic', 'static' or 'threshold' in pvae.data.load) or use a likelihood for "
        "grey values (ContinuousBernoulli, DiscretizedLogistic or Gaussian)"
        if grey
        else f"rescale the data, or use a likelihood whose support holds [{low:.4g}, {high:.4g}]"
    )
    found = f"holds values outside the support of {likelihood}" + (" (grey pixels)" if grey else "")
    where = ""
    if data_dim is not None and is_inside.dim() >= -data_dim:
        rows = (~is_inside).movedim(data_dim, 0).reshape(is_inside.shape[data_dim], -1).any(1).nonzero()[:, 0].tolist()
        where = f", at datum {rows[0]}" + (f" and {len(rows) - 1} more" if len(rows) > 1 else "")
    return Finding(f"site '{name}'", f"{found}, range [{low:.4g}, {high:.4g}]{where}", fix)
