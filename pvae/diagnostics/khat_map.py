"""Where importance sampling is not to be trusted: the k-hat of every datum, the worst data by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvae.estimators.log_marginal import LogMarginal
from pvae.pair.entry import entry
from pvae.support.refusals import instance, whole

__all__ = ["KhatMap", "khat_map"]


@dataclass(frozen=True)
class KhatMap:
    """The data whose importance weights have the heaviest tails, the worst first.

    Attributes:
        fraction_untrusted: share of all data above the threshold; nan where K is too small for a k-hat.
        threshold: the largest k-hat to trust.
        index: which data, in the order of the result, (worst,).
        values: their log p(x) as estimated, in nats, (worst,).
        khat: their Pareto shape, (worst,).
        ess: their effective sample size, (worst,).
        num_data: N.
    """

    fraction_untrusted: float
    threshold: float
    index: Tensor
    values: Tensor
    khat: Tensor
    ess: Tensor
    num_data: int

    @property
    def verdict(self) -> str:
        """Whether to trust the estimates, in words."""
        if math.isnan(self.fraction_untrusted):
            return "too few samples for a k-hat: raise num_samples"
        count = round(self.fraction_untrusted * self.num_data)
        if count == 0:
            return f"every one of {self.num_data} data can be trusted"
        return (
            f"{count} of {self.num_data} data are not to be trusted (k-hat above {self.threshold:.2f}): "
            "train a better guide, not just more samples"
        )

    def summary(self) -> dict[str, Any]:
        """The result as plain numbers, for a table or JSON."""
        rows = zip(self.index.tolist(), self.values.tolist(), self.khat.tolist(), self.ess.tolist(), strict=True)
        return {
            "fraction_untrusted": self.fraction_untrusted,
            "threshold": self.threshold,
            "num_data": self.num_data,
            "worst": [dict(zip(("index", "value", "khat", "ess"), row, strict=True)) for row in rows],
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        lines = [self.verdict, f"{'datum':>8} {'log p(x)':>12} {'k-hat':>8} {'ess':>10}"]
        for row in self.summary()["worst"]:
            lines.append(f"{row['index']:>8} {row['value']:>12.3f} {row['khat']:>8.2f} {row['ess']:>10.1f}")
        return "\n".join(lines)


@entry
def khat_map(result: LogMarginal, worst: int = 10) -> KhatMap:
    """List the data whose importance weights have the heaviest tails.

    Args:
        result: what `pvae.log_marginal` gave.
        worst: how many data to list, at most.

    Raises: ValueError for `worst` below 1.

    Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling.
    """
    instance("result", result, LogMarginal, what="what pvae.log_marginal returned", usual="pvae.log_marginal(...)")
    worst = whole("worst", worst, usual=10)
    told = result.khat.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    index = told.sort(descending=True, stable=True).indices[:worst]
    return KhatMap(
        fraction_untrusted=result.fraction_untrusted,
        threshold=result.khat_threshold,
        index=index,
        values=result.values[index],
        khat=result.khat[index],
        ess=result.ess[index],
        num_data=int((~torch.isnan(result.khat)).sum()) or len(result.khat),
    )
