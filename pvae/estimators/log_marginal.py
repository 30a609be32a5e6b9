"""log p(x) of data under a pair, with all that tells how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pvae.checking import require_support
from pvae.contexts import evaluation, seeded
from pvae.data.batches import Batches, Data
from pvae.estimators.importance import ImportanceSampling
from pvae.estimators.psis import khat_threshold
from pvae.estimators.stream import Estimate
from pvae.params import Parameters, settle
from pvae.progress import Progress
from pvae.sites import Batch
from pvae.store import private_store

__all__ = ["Estimator", "LogMarginal", "log_marginal"]


class Estimator(Protocol):
    """Anything that estimates log p(x) batch by batch, and says what kind of bound it gives."""

    num_samples: int
    bound: str

    def start(self, model: Any, guide: Any, parameters: Parameters, num_batches: int) -> Callable[[Batch], Estimate]:
        """From one batch after another to log p(x) per datum, (B,)."""


@dataclass(frozen=True)
class LogMarginal:
    """Estimates of log p(x) in nats, bigger is better.

    Attributes:
        values: per datum, (N,), in the order of the data.
        mc_standard_errors: Monte-Carlo standard error of each value from its K draws, (N,).
        ess: effective sample size of each datum's weights, (N,), at most K.
        khat: Pareto shape of each datum's weights, (N,); above `khat_threshold` do not trust the value.
        num_samples: K.
        bound: "lower" (in expectation), "upper", "unbiased" or "none".
        data: what was evaluated (name, split, binarisation), where the data said so.
        upper_values: an upper bound (in expectation) beside each value, (N,), from estimators that give both.
    """

    values: Tensor
    mc_standard_errors: Tensor
    ess: Tensor
    khat: Tensor
    num_samples: int
    bound: str
    data: dict[str, Any]
    upper_values: Tensor | None = None

    @property
    def mean(self) -> float:
        """Mean over data, nats per datum."""
        return self.values.mean().item()

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over data: how much another sample of data would move it."""
        return self.values.std().item() / math.sqrt(len(self.values)) if len(self.values) > 1 else math.nan

    @property
    def mc_standard_error(self) -> float:
        """Standard error of the mean from drawing K particles: how much another seed would move it."""
        return self.mc_standard_errors.square().sum().sqrt().item() / len(self.values)

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
        return {
            "mean": self.mean,
            "standard_error": self.standard_error,
            "mc_standard_error": self.mc_standard_error,
            "median_ess": self.ess.median().item(),
            "median_khat": self.khat.nanmedian().item(),
            "max_khat": max((k for k in self.khat.tolist() if not math.isnan(k)), default=math.nan),
            "khat_threshold": self.khat_threshold,
            "fraction_untrusted": self.fraction_untrusted,
            "num_samples": self.num_samples,
            "num_data": len(self.values),
            "bound": self.bound,
            "data": self.data,
        }


def log_marginal(
    model: Any,
    guide: Any,
    data: Data,
    estimator: Estimator | None = None,
    *,
    batch_size: int = 100,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> LogMarginal:
    """Estimate log p(x) for every datum, with nets in evaluation mode and no gradients.

    Args:
        model: any Pyro model within the contract of a pair.
        guide: its guide (`None` for estimators that need none).
        data: a tensor, a tuple of tensors, a `DataSet` (its test split) or a `DataLoader`.
        estimator: by default `ImportanceSampling(1000)`.
        batch_size: data at once; a `DataLoader` keeps its own.
        device: where to compute; by default where the pair's parameters are. The pair is moved there.
        seed: of the draws, and of the binarisation of grey data.
        progress: show a bar on a terminal.

    Raises: ValueError for empty or non-finite data, and for a pair that breaks the contract.
    """
    estimator = ImportanceSampling() if estimator is None else estimator
    if isinstance(estimator, type) or not hasattr(estimator, "start"):
        raise ValueError(
            f"estimator must be one such as pvae.estimators.ImportanceSampling(1000), got {estimator!r}; build one"
        )
    source = Batches(data, batch_size, split="test")
    with private_store(model, guide), torch.no_grad():
        parameters = settle(model, guide, source, device)
        require_support(model, source.example())
        estimates: list[Estimate] = []
        source.reseed(seed)
        with (
            seeded(seed, parameters.device),
            evaluation(parameters.modules),
            Progress(progress) as bar,
        ):
            estimate = estimator.start(model, guide, parameters, len(source))
            for batch in bar.track(source.epoch(), "log p(x)", len(source)):
                estimates.append(estimate(batch))
    uppers = [part.upper for part in estimates if part.upper is not None]
    return LogMarginal(
        values=torch.cat([part.values for part in estimates]),
        mc_standard_errors=torch.cat([part.mc_standard_errors for part in estimates]),
        ess=torch.cat([part.ess for part in estimates]),
        khat=torch.cat([part.khat for part in estimates]),
        num_samples=estimator.num_samples,
        bound=estimator.bound,
        data=source.describe(),
        upper_values=torch.cat(uppers) if uppers else None,
    )
