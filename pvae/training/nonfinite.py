"""Where a loss stopped being finite: the site and the parameter to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

from pvae.pair.implicit import refusal_of
from pvae.pair.pair import Pair
from pvae.pair.supports import family_of

__all__ = ["describe_nonfinite"]


def describe_nonfinite(
    model: Any,
    guide: Any,
    batch: tuple[Tensor, ...],
    leaves: Mapping[str, Tensor],
    gradients: Sequence[Tensor | None],
) -> str:
    """Run the pair on the batch once more and name the first site and parameter that are not finite."""
    with torch.no_grad(), pyro.validation_enabled(False):
        site = _bad_site(model, guide, batch)
    return f"{site}; {_bad_parameter(leaves, gradients)}"


def _bad_site(model: Any, guide: Any, batch: tuple[Tensor, ...]) -> str:
    try:
        pair = Pair(model, guide)
        run = pair.run(batch, 1, layout=pair.look(batch))
    except (RuntimeError, ValueError) as error:
        return f"the pair fails: {error}"
    for sites, place in ((run.guide, "guide"), (run.model, "model")):
        for name, site in sites.items():
            if not torch.isfinite(site["value"]).all():
                return f"site '{name}' in the {place} has a value that is not finite"
            if "outside" in site and site["outside"].any():
                fix = (
                    "train by IWAE, or with a guide that draws only where the data are possible"
                    if site["is_observed"]
                    else "draw it in the guide from a distribution on that support"
                )
                support = f"the support of its {family_of(site['fn'])} in the {place}"
                return f"site '{name}' has values outside {support}, which weigh zero: {fix}"
            if refusal_of(site) is not None:
                continue
            log_prob = site["fn"].log_prob(site["value"])
            if not torch.isfinite(log_prob).all():
                return f"site '{name}' in the {place} has a log_prob that is not finite"
    names = ", ".join(f"'{name}'" for name in run.model)
    return f"every site ({names}) is finite on a second look"


def _bad_parameter(leaves: Mapping[str, Tensor], gradients: Sequence[Tensor | None]) -> str:
    for name, leaf in leaves.items():
        if not torch.isfinite(leaf).all():
            return f"parameter '{name}' is not finite"
    for name, gradient in zip(leaves, gradients, strict=True):
        if gradient is not None and not torch.isfinite(gradient).all():
            return f"the gradient of parameter '{name}' is the first that is not finite"
    largest = max(leaves, key=lambda name: leaves[name].abs().max().item(), default="none")
    return f"every parameter is finite, '{largest}' is the largest"
