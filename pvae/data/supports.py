"""Whether data lie where their likelihood can score them: all data, once.

Example: x (B, 64) with grey pixels under a Bernoulli likelihood lies outside {0, 1}, whatever the latents are. A count
x under Binomial(n) with a latent n lies outside for some n alone: that is no fault of the data, such an n weighs zero.

Most models observe a part of their batch, or a view of it, under a support that one look tells. Then no model runs to
hold 60,000 images (1, 28, 28) to {0, 1}; each block of them is looked at by itself. For another, such as one of
log1p(x), or of a support that depends on the data, the model runs on every block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from pvae.data.batches import Batches
from pvae.pair.contexts import called_modules, running, seeded
from pvae.pair.findings import Finding
from pvae.pair.guards import outside
from pvae.pair.look import SecondLook
from pvae.pair.pair_run import PairRun
from pvae.pair.run import trace_pair
from pvae.pair.sites import Site, base_of, data_plate, random_sites
from pvae.pair.supports import bounds_of, ends, entry, same, support_of
from pvae.support.batch import Batch

__all__ = ["SupportWatch", "outside_support", "require_scored", "require_support"]


def require_support(model: Any, source: Batches, guide: Any = None) -> SupportWatch:
    """Hold all data to the supports of what the model observes.

    Of a stream it is the first batch; the watch that is given back takes the others as they come. Pyro itself would
    refuse such data with a page of numbers, or, with its validation off, score them all the same.

    Raises: ValueError, with the number of the datum, if the data are none that the model's likelihood can score.
    """
    watch = SupportWatch(model, guide, source.example())
    for start, batch in source.in_blocks():
        watch(batch, start)
    return watch


class SupportWatch:
    """Refuses a batch that the likelihood of a model cannot score; `example` is one to look at the model with.

    A support that depends on latents is none to judge data by: where a draw makes them impossible, it weighs zero.
    """

    def __init__(self, model: Any, guide: Any, example: Batch) -> None:
        self.model, self.guide = model, guide
        with torch.no_grad(), pyro.validation_enabled(False):
            sites = random_sites(_model_trace(model, None, example, 0)).values()
        found = [_told_by_parts(site, example) for site in sites if site["is_observed"]]
        # None where the model has to run to tell.
        self._told = None if any(each is None for each in found) else [pair for each in found for pair in each or ()]

    def __call__(self, batch: Batch, start: int = 0) -> None:
        """Raise ValueError if a datum of the batch, whose first is number `start`, lies outside its support."""
        if self._told is not None and all(_lies_inside(support, batch[index]) for index, support in self._told):
            return
        with torch.no_grad(), pyro.validation_enabled(False):
            trace = _model_trace(self.model, None, batch, 0)
            findings = outside_support(trace, self.model, self.guide, batch, start)
        if findings:
            raise ValueError(" | ".join(str(finding) for finding in findings))


def require_scored(run: PairRun, model: Any, guide: Any) -> None:
    """Raise ValueError if a run observed data that are none that the model's likelihood can score.

    Where a guard noticed them, the support depends on latents, and such data weigh zero.
    """
    sites = [site for site in run.model.values() if site["is_observed"] and "outside" not in site]
    if any(_unscored(site) is not None for site in sites):
        SupportWatch(model, guide, run.batch)(run.batch)


def outside_support(trace: poutine.Trace, model: Any, guide: Any, batch: Batch, start: int = 0) -> list[Finding]:
    """Data outside the support of their likelihood, unless other draws of the latents move it."""
    sites = {name: site for name, site in random_sites(trace).items() if site["is_observed"]}
    found = {name: each for name, site in sites.items() if (each := _unscored(site)) is not None}
    if any(isinstance(bound, Tensor) for name in found for bound in bounds_of(support_of(sites[name]["fn"]))):
        others = [_model_trace(model, None, batch, seed) for seed in (1, 2)]
        others += [] if guide is None else [_model_trace(model, guide, batch, 3)]
        for other in map(random_sites, others):
            for name in [name for name in found if name in other]:
                if not same(support_of(sites[name]["fn"]), support_of(other[name]["fn"])):
                    del found[name]
    if not found:
        return []
    try:
        dim = data_plate(trace, len(batch[0]), SecondLook(model, guide, batch).of_model).dim
    except ValueError:
        dim = None
    return [_finding(sites[name], each, dim, start) for name, each in found.items()]


def _model_trace(model: Any, guide: Any, batch: Batch, seed: int) -> poutine.Trace:
    """The trace of the model on draws of the guide, or on its own without one."""
    with running("model", batch), seeded(seed, batch[0].device), called_modules():
        return trace_pair(model, guide, batch)[1]


def _told_by_parts(site: Site, batch: Batch) -> Sequence[tuple[int, constraints.Constraint]] | None:
    """The parts of a batch that a site observes, as they are or as views, and the support that holds them.

    None where the values are computed, or their support is not one for all.
    """
    support, value = support_of(site["fn"], around=True), site["value"]
    if entry(support) is constraints.real:
        return []
    if any(isinstance(bound, Tensor) for bound in bounds_of(support)) or isinstance(_unscored(site), RuntimeError):
        return None
    storage = value.untyped_storage().data_ptr()
    parts = [
        index
        for index, part in enumerate(batch)
        if part.untyped_storage().data_ptr() == storage and part.dtype == value.dtype
    ]
    # Another constraint may be one of the entry's place, such as of the columns of a table.
    is_by_entry = ends(support) is not None
    if not parts or not (is_by_entry or all(batch[index].shape == value.shape for index in parts)):
        return None
    return [(index, entry(support) if is_by_entry else support) for index in parts]


def _lies_inside(support: constraints.Constraint, part: Tensor) -> bool:
    """Whether all of a part lies inside, or False where that takes a closer look."""
    try:
        if ends(support) is None:
            return bool(support.check(part).all())
        if entry(support) is constraints.boolean and part.is_floating_point():
            # x - x^2 is 0 for 0 and 1 alone: one look in place of two.
            return not any(map(bool, torch.addcmul(part, part, part, value=-1).aminmax()))
        # What the least and the largest entry lie in, all do, for a quarter of the time.
        if not support.check(torch.stack(part.aminmax())).all():
            return False
        # The extremes of the fractions cost a half of comparing with rounded values.
        return not support.is_discrete or not part.is_floating_point() or not any(map(bool, part.frac().aminmax()))
    except (NotImplementedError, RuntimeError, ValueError):
        return False


def _unscored(site: Site) -> Tensor | RuntimeError | None:
    """Which events lie outside, or why none can be scored; None where all can, or where that cannot be told."""
    fn, value = site["fn"], site["value"]
    try:
        if not value.is_floating_point():
            fn.log_prob(value)
    except RuntimeError as error:
        return error
    try:
        found = outside(site)
    except (NotImplementedError, RuntimeError, ValueError):
        return None
    return found if found is not None and bool(found.any()) else None


def _finding(site: Site, bad: Tensor | RuntimeError, data_dim: int | None, start: int) -> Finding:
    name, value = f"site '{site['name']}'", site["value"]
    if isinstance(bad, RuntimeError):
        return Finding(name, f"cannot score values of dtype {value.dtype}", "convert them with .float()")
    likelihood = type(base_of(site["fn"])).__name__
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
    if data_dim is not None and bad.dim() >= -data_dim:
        rows = bad.movedim(data_dim, 0).reshape(bad.shape[data_dim], -1).any(1).nonzero()[:, 0].tolist()
        where = f", at datum {start + rows[0]}" + (f" and {len(rows) - 1} more" if len(rows) > 1 else "")
    return Finding(name, f"{found}, range [{low:.4g}, {high:.4g}]{where}", fix)
