"""log p(x) of data under a pair, with all that tells how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pvae.data.batches import Batches, Data
from pvae.data.supports import SupportWatch, require_support
from pvae.estimators.importance import ImportanceSampling
from pvae.estimators.weights.psis import khat_threshold
from pvae.estimators.weights.rounds import Rounds
from pvae.estimators.weights.stream import Estimate, joined
from pvae.pair.contexts import in_one_line
from pvae.pair.entry import entry
from pvae.pair.pair import Pair
from pvae.pair.parameters import Parameters, find_parameters
from pvae.pair.sites import Batch
from pvae.support.arguments import check_pair, check_seed
from pvae.support.per_datum import PerDatum
from pvae.support.progress import Progress
from pvae.support.refusals import flag, shown, whole

__all__ = ["Estimator", "LogMarginal", "log_marginal", "require_estimator"]

_Drawn = tuple[Batch, Estimate]
# The batches to expect of a stream, which does not tell.
_FEW = 10


class Estimator(Protocol):
    """Anything that estimates log p(x) batch by batch, and says what kind of bound it gives.

    One whose value is the log of a plain mean of weights says so by an attribute `averages_weights` = True: further
    draws may then join (`target_se`).
    """

    num_samples: int
    bound: str

    def start(self, model: Any, guide: Any, parameters: Parameters, num_batches: int) -> Callable[[Batch], Estimate]:
        """From one batch after another to log p(x) per datum, (B,)."""


@dataclass(frozen=True)
class LogMarginal(PerDatum):
    """Estimates of log p(x) in nats, bigger is better.

    Attributes:
        values: per datum, (N,), in the order of the data; -inf, with an error of inf, where no draw had any weight.
        mc_standard_errors: Monte-Carlo standard error of each value from its draws, (N,).
        ess: effective sample size of each datum's weights, (N,), at most the number of its draws.
        khat: Pareto shape of each datum's weights, (N,), of the largest round of them; above `khat_threshold` do not
            trust the value.
        num_samples: K, of the first round under a `target_se`.
        bound: "lower" (in expectation), "upper", "unbiased" or "none".
        data: what was evaluated (name, split, binarisation), where the data said so; "simulated" where an estimator
            drew data from the model in their place.
        upper_values: an upper bound (in expectation) beside each value, (N,), from estimators that give both.
        samples: draws that each datum got, (N,): K unless a `target_se` asked for more.
        unfinished: indices of the data whose error is still above the `target_se`; None without one.
    """

    ess: Tensor
    khat: Tensor
    num_samples: int
    bound: str
    data: dict[str, Any]
    upper_values: Tensor | None = None
    samples: Tensor | None = None
    unfinished: Tensor | None = None

    @property
    def gap(self) -> float:
        """Mean over data of the upper bound less the lower, nats per datum.

        Raises: ValueError if the estimator gave no upper bound.
        """
        if self.upper_values is None:
            raise ValueError("there is no upper bound; estimate with pvae.estimators.BidirectionalMonteCarlo")
        return (self.upper_values - self.values).mean().item()

    @property
    def khat_threshold(self) -> float:
        """The largest k-hat to trust at this K."""
        return khat_threshold(self.num_samples)

    @property
    def fraction_untrusted(self) -> float:
        """Share of data whose k-hat is above the threshold; nan where K is too small to tell."""
        told = self.khat[~self.khat.isnan()]
        return (told > self.khat_threshold).double().mean().item() if len(told) else math.nan

    def summary(self) -> dict[str, Any]:
        """The result as plain numbers, for a table or JSON."""
        upper = {} if self.upper_values is None else {"upper_mean": self.upper_values.mean().item(), "gap": self.gap}
        return {
            **super().summary(),
            "median_ess": self.ess.median().item(),
            "median_khat": self.khat.nanmedian().item(),
            "max_khat": max((k for k in self.khat.tolist() if not math.isnan(k)), default=math.nan),
            "khat_threshold": self.khat_threshold,
            "fraction_untrusted": self.fraction_untrusted,
            "num_samples": self.num_samples,
            "unfinished": None if self.unfinished is None else len(self.unfinished),
            "num_data": len(self.values),
            "bound": self.bound,
            "data": self.data,
        } | upper


def require_estimator(estimator: Any) -> Estimator:
    """The estimator. Raises ValueError for what is none, or a class that has to be built first."""
    if isinstance(estimator, type) or not callable(getattr(estimator, "start", None)):
        raise ValueError(
            f"estimator must be one of pvae.estimators, built, got {shown(estimator)}; give for example "
            "pvae.estimators.ImportanceSampling(1000)"
        )
    return estimator


@entry
def log_marginal(
    model: Any,
    guide: Any,
    data: Data,
    estimator: Estimator | None = None,
    *,
    batch_size: int = 100,
    target_se: float | None = None,
    max_samples: int = 1_000_000,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> LogMarginal:
    """Estimate log p(x) for every datum, with nets in evaluation mode and no gradients.

    Args:
        model: any Pyro model within the contract of a pair.
        guide: its guide (`None` for estimators that need none).
        data: a tensor or array of numpy, a tuple of them, a `DataSet` (its test split) or a `DataLoader`.
        estimator: by default `ImportanceSampling(1000)`.
        batch_size: data at once; a `DataLoader` keeps its own.
        target_se: go on drawing, in rounds that double, until the Monte-Carlo error of each datum is at most this many
            nats; None for one round of the estimator's `num_samples`. `samples` and `unfinished` of the result tell
            what it took. Stopping at an error that is itself drawn favours data whose large weights have not shown up
            yet, so no bound is left: `bound` is then "none".
        max_samples: draws per datum, at most, under a `target_se`.
        device: where to compute; by default where the pair's parameters are. The pair is moved there.
        seed: of the draws, and of the binarisation of grey data. The same seed gives the same values, and to rounding
            with another number of threads or on another machine.
        progress: show a bar on a terminal.

    Raises: ValueError for empty or non-finite data, for a pair that breaks the contract, and for a `target_se` beside
    an estimator whose draws cannot be pooled.
    """
    estimator = require_estimator(ImportanceSampling() if estimator is None else estimator)
    check_pair(model, guide)
    seed, progress = check_seed(seed), flag("progress", progress)
    batch_size = whole("batch_size", batch_size, usual=100)
    whole("max_samples", max_samples, usual=1_000_000)
    rounds = None if target_se is None else Rounds(estimator, target_se, max_samples)
    source = Batches(data, batch_size, split="test")
    with Pair(model, guide).evaluated(source, device, seed) as parameters:
        watch = require_support(model, source, guide)
        if source.remainder and source.num_batches != 1:
            # What fails on the last batch alone is not to fail after all the others.
            find_parameters(model, guide, tuple(part[: source.remainder] for part in source.example()))
        source.reseed(seed)
        with Progress(progress) as bar:

            def draw(with_: Estimator, batches: Iterable[Batch], count: int | None, what: str) -> Iterator[_Drawn]:
                estimate = with_.start(model, guide, parameters, _FEW if count is None else count)
                for batch in bar.track(batches, what, count):
                    with in_one_line(batch):
                        found = estimate(batch)
                    yield batch, found

            first = draw(estimator, _watched(source, watch), source.num_batches, "log p(x)")
            found = joined([each for _, each in first]) if rounds is None else rounds.run(first, draw, batch_size)
    return LogMarginal(
        values=found.values,
        mc_standard_errors=found.mc_standard_errors,
        ess=found.ess,
        khat=found.khat,
        num_samples=estimator.num_samples,
        bound=estimator.bound if rounds is None else "none",
        data=source.describe() | ({"simulated": True} if getattr(estimator, "simulates", False) else {}),
        upper_values=found.upper,
        samples=torch.full(found.values.shape, estimator.num_samples, device="cpu")
        if rounds is None
        else rounds.samples,
        unfinished=None if rounds is None else rounds.unfinished,
    )


def _watched(source: Batches, watch: SupportWatch) -> Iterator[Batch]:
    """One epoch; of a stream each batch is looked at as it comes."""
    start = 0
    for batch in source.epoch():
        if source.runs_user_code:
            watch(batch, start)
            start += len(batch[0])
        yield batch
