"""Missing entries of data, filled in by a pair: E[x_mis | x_obs], multiple imputations, intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pvae.data.batches import Batches
from pvae.data.missing import missing
from pvae.data.supports import require_support
from pvae.estimators.importance import require_density
from pvae.estimators.weights.chunks import rows_at_once
from pvae.estimators.weights.psis import khat_threshold
from pvae.estimators.weights.stream import WeightStream
from pvae.estimators.weights.weighted import Picks, WeightedMean
from pvae.pair.contexts import called_modules, seeded
from pvae.pair.entry import entry
from pvae.pair.layout import place_of
from pvae.pair.pair import Pair
from pvae.pair.pair_run import PairRun
from pvae.pair.sites import Batch, random_sites
from pvae.support.arguments import check_pair, check_seed
from pvae.support.batch import as_batch
from pvae.support.progress import Progress
from pvae.support.refusals import flag, instance, number, whole

__all__ = ["Imputation", "impute"]

_Filled = dict[str, Tensor]


@dataclass(frozen=True)
class Imputation:
    """Data whose missing entries are filled in; what was observed is everywhere as it came.

    Attributes:
        mean: E[x_mis | x_obs], (N, ...); nan where the likelihood has no mean (categories): see `draws`.
        standard_error: Monte-Carlo standard error of `mean` from K draws, 0 where observed, nan for K = 1.
        draws: multiple imputations, (M, N, ...), from p(x_mis | x_obs) as far as the weights allow.
        lower, upper: (N, ...), between which a missing entry lies with probability `level`, each entry by itself:
            quantiles of the draws, exact for M of them but no wider than they reach, so M should be at least
            2 / (1 - level) - 1.
        ess: effective sample size of each datum's weights, (N,).
        khat: Pareto shape of each datum's weights, (N,); do not trust imputations with one above `khat_threshold`.
        num_samples: K.
        level: that of the intervals.
    """

    mean: Tensor
    standard_error: Tensor
    draws: Tensor
    lower: Tensor
    upper: Tensor
    ess: Tensor
    khat: Tensor
    num_samples: int
    level: float

    @property
    def khat_threshold(self) -> float:
        """The largest k-hat to trust at this K."""
        return khat_threshold(self.num_samples)


@entry
def impute(
    model: Any,
    guide: Any,
    data: tuple[Tensor, ...],
    num_samples: int = 1000,
    num_imputations: int = 100,
    *,
    level: float = 0.9,
    site: str | None = None,
    batch_size: int = 100,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Imputation:
    """Fill in missing entries by self-normalised importance sampling.

    With z_k ~ q(z | x_obs) and weights w_k = p(x_obs, z_k) / q(z_k | x_obs): the mean is sum_k w_k E[x_mis | z_k] over
    sum_k w_k, and an imputation is a draw of p(x_mis | z) at a z picked from the z_k in proportion to w_k. K goes
    through in chunks; memory is that of the M imputations of all data.

    Args:
        model: any Pyro model of a batch (x, observed, ...) whose density counts the observed entries alone.
        guide: its guide; what is missing reaches it as 0. None proposes from the model's prior.
        data: (x, observed, ...), as `pvae.data.missing` makes it; what x holds where it is missing is not read.
        num_samples: K.
        num_imputations: M.
        level: probability that an interval is to hold.
        site: the observed site that is x; may be left out where one alone has its size.
        batch_size: data at once.
        device: where to compute; by default where the pair's parameters are. The pair is moved there.
        seed: of the draws.
        progress: show a bar on a terminal.

    Raises: ValueError for data that are no such tuple, sizes below 1, a level outside (0, 1), an unknown site, or a
    model whose density reads missing entries.

    Mattei and Frellsen (2019), MIWAE: deep generative modelling and imputation of incomplete data sets.
    """
    check_pair(model, guide)
    num_samples = whole("num_samples", num_samples, usual=1000)
    num_imputations = whole("num_imputations", num_imputations, usual=100)
    batch_size = whole("batch_size", batch_size, usual=100)
    level = number("level", level, above=0, below=1, usual=0.9)
    seed, progress = check_seed(seed), flag("progress", progress)
    if site is not None:
        instance("site", site, str, what="the name of the observed site that is x", usual="'x'")
    if not isinstance(data, tuple) or len(data) < 2:
        raise ValueError(
            "data must be a tuple of tensors (x, observed); make it with pvae.data.missing(x) from x with nan"
        )
    x, observed, *beside = as_batch(data, finite=False)
    source = Batches((*missing(x, observed), *beside), batch_size)
    with Pair(model, guide).evaluated(source, device, seed), Progress(progress) as bar:
        require_support(model, source, guide)
        imputer = _Imputer(model, guide, num_samples, num_imputations, level, site, source.example())
        parts = [imputer(batch) for batch in bar.track(source.epoch(), "imputation", source.num_batches)]
    draws = torch.cat([part.pop("draws") for part in parts], 1)
    filled = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Imputation(draws=draws, num_samples=num_samples, level=level, **filled)


class _Imputer:
    """From one batch after another to what is known of its missing entries."""

    def __init__(
        self, model: Any, guide: Any, num_samples: int, num: int, level: float, site: str | None, example: Batch
    ) -> None:
        self.pair, self.prior = Pair(model, guide), Pair(model)
        self.num_samples, self.num, self.level = num_samples, num, level
        self.site = self._find(site, example)
        self._require_unread(example)

    def __call__(self, batch: Batch) -> _Filled:
        x, observed, *_ = batch
        stream, mean, picks = WeightStream(self.num_samples), WeightedMean(), Picks(self.num)
        for count in self._chunks(batch, self.num_samples):
            run = self.pair.run(batch, count, layout=self.pair.layout(batch, 2))
            require_density(run)
            log_weights = run.log_weights().values
            stream.update(log_weights)
            picks.update(log_weights, run.latents)
            mean.update(log_weights, self._values(self._drawn(run), _mean))
        estimate = stream.estimate()
        draws = self._draws(batch, picks)
        tails = (1 - self.level) / 2, (1 + self.level) / 2
        # Of M draws and one more from the same distribution, every rank of the last is as likely.
        lower, upper = torch.as_tensor(np.quantile(draws.double().cpu(), tails, axis=0, method="weibull"), device="cpu")
        found = dict(zip(("mean", "standard_error"), mean.estimate(), strict=True)) | {"lower": lower, "upper": upper}
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        entries = {name: torch.where(observed, x, value.to(x.device)) for name, value in found.items()}
        entries["standard_error"] = torch.where(observed, 0, entries["standard_error"])
        filled = {name: value.to("cpu", dtype) for name, value in entries.items()}
        return filled | {"draws": draws.cpu(), "ess": estimate.ess, "khat": estimate.khat}

    def _draws(self, batch: Batch, picks: Picks) -> Tensor:
        """Imputations at the picked latents, (M, B, ...), with what is observed."""
        x, observed, *_ = batch
        parts, start = [], 0
        for count in self._chunks(batch, self.num):
            given = {name: value[start : start + count] for name, value in picks.values.items()}
            run = self._drawn(self.prior.run(batch, count, layout=self.pair.layout(batch, 2), given=given))
            parts.append(self._values(run, _draw))
            start += count
        return torch.where(observed, x, torch.cat(parts).to(x.dtype))

    def _drawn(self, run: PairRun) -> PairRun:
        """The run with draws of the latents that it sums out."""
        if not (summed := run.draw_summed()):
            return run
        return self.prior.run(run.batch, run.num_samples, layout=run.layout, given=run.latents | summed)

    def _values(self, run: PairRun, of: Callable[[Any], Tensor]) -> Tensor:
        """What `of` gives of the site's distribution, in the shape of x: (K, B, ...)."""
        site = run.model[self.site]
        layout = replace(run.layout, places={self.site: place_of(site, run.model_plate)})
        value = layout.collect(self.site, of(site["fn"]), run.num_samples)
        return value.reshape(run.num_samples, *run.batch[0].shape)

    def _chunks(self, batch: Batch, num: int) -> list[int]:
        """Particles of each chunk, so many in all."""
        states = self.pair.layout(batch, 2).summed
        most = max(1, rows_at_once(batch) // (len(batch[0]) * (1 if states is None else states.copies)))
        return [min(most, num - start) for start in range(0, num, most)]

    def _find(self, name: str | None, batch: Batch) -> str:
        """The observed site that is x."""
        with seeded(0, batch[0].device), called_modules():
            trace = poutine.trace(self.pair.model).get_trace(*batch)
        sites = {each: site for each, site in random_sites(trace).items() if site["is_observed"]}
        fitting = [each for each, site in sites.items() if site["value"].numel() == batch[0].numel()]
        fitting = fitting if name is None else [each for each in sites if each == name]
        if len(fitting) != 1:
            got = f"{len(fitting)} of its size" if name is None else repr(name)
            raise ValueError(f"expected one observed site that is x, got {got}; set site= to one of {sorted(sites)}")
        return fitting[0]

    def _require_unread(self, batch: Batch) -> None:
        """Raise ValueError if the density changes with what stands where x is missing."""
        x, observed, *others = batch
        run = self.prior.run(batch, 1, layout=self.pair.layout(batch, 2))
        other = torch.where(observed, x, self._values(self._drawn(run), _draw)[0].to(x.dtype))
        again = self.prior.run((other, observed, *others), 1, layout=run.layout, given=run.latents)
        before, after = (each.log_likelihood + each.log_prior for each in (run.log_weights(), again.log_weights()))
        if not torch.allclose(before, after, rtol=1e-4):
            raise ValueError(
                f"the model's density reads entries of '{self.site}' that are not observed; leave them out of it with "
                "pvae.models.likelihoods.observed_only"
            )


def _draw(distribution: Any) -> Tensor:
    return distribution.sample()


def _mean(distribution: Any) -> Tensor:
    """The mean, or a draw, whose mean it is, where the distribution does not tell it."""
    try:
        return distribution.mean
    except NotImplementedError:
        return distribution.sample()
