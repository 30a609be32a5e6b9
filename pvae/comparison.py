"""Which of two models gives the same data the higher log p(x): a paired comparison, datum by datum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvae.estimators.log_marginal import LogMarginal
from pvae.pair.entry import entry
from pvae.support.per_datum import PerDatum
from pvae.support.refusals import instance

__all__ = ["Comparison", "compare", "require_same_record"]

_Z95 = 1.959964  # the normal quantile of 0.975
_FEW_DATA = 30
_BOUND_WORDS = {"lower": "lower bounds", "upper": "upper bounds", "unbiased": "unbiased", "none": "no bounds"}


@dataclass(frozen=True)
class Comparison(PerDatum):
    """The paired difference d_n = log p_A(x_n) - log p_B(x_n) in nats; positive where A is better.

    `standard_error` is that of data and draws together. With x_n independent, and draws independent between data, the
    d_n are independent and of one law, whatever share of their spread comes from draws:
    Var d_n = Var(log p_A(x_n)/p_B(x_n)) + E(mc_A^2 + mc_B^2). Their sample variance estimates the whole of it, so
    s^2 / N is all of the error, and adding `mc_standard_error`, the part that more draws would remove, would count the
    draws twice. It holds for draws that A and B share (one seed), too, but not for draws that all data share
    (ParzenWindow).

    Attributes:
        values: d_n per datum, (N,), in the order of the data.
        mc_standard_errors: Monte-Carlo standard error of each d_n, (N,), from independent draws for A and B.
        untrusted: data whose k-hat is above the threshold in either result, (N,).
        unjudged: data that have a Monte-Carlo error but no k-hat, in either result, (N,).
        bias: what the estimators themselves add to the mean, to second order, where they are lower bounds.
        bounds: the `bound` of A and of B.
        data: what was evaluated, where the data said so.
    """

    untrusted: Tensor
    unjudged: Tensor
    bias: float
    bounds: tuple[str, str]
    data: dict[str, Any]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the expected difference: mean +- 1.96 standard errors, too short for a few data."""
        half = _Z95 * self.standard_error
        return self.mean - half, self.mean + half

    @property
    def share_a_better(self) -> float:
        """Share of data to which A gives the higher value; a tie counts half."""
        return ((self.values > 0).double() + (self.values == 0).double() / 2).mean().item()

    @property
    def better(self) -> str | None:
        """The better one, "A" or "B", if the interval lies on one side of 0, else None."""
        low, high = self.interval
        return "A" if low > 0 else "B" if high < 0 else None

    @property
    def verdict(self) -> str:
        """What the numbers say, in words, with a warning for each reason not to trust them."""
        low, high = self.interval
        if math.isnan(low):
            found = "not separable: one datum has no spread to judge by"
        elif self.better is None:
            found = f"not separable: the 95 % interval of A - B, {low:.4f} to {high:.4f} nats per datum, holds 0"
        else:
            gain = sorted((abs(low), abs(high)))
            found = (
                f"{self.better} is better by {abs(self.mean):.4f} +- {self.standard_error:.4f} nats per datum "
                f"(95 % interval {gain[0]:.4f} to {gain[1]:.4f})"
            )
        return "; ".join([found, *self.warnings])

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust the interval, one sentence each."""
        found = []
        num = len(self.values)
        if bad := int(self.untrusted.sum()):
            found.append(f"but {bad} of {num} data have untrusted weights (k-hat), so neither value nor error is sure")
        if unknown := int(self.unjudged.sum()):
            found.append(f"but {unknown} of {num} data have no k-hat to judge their weights by: draw more samples")
        if abs(self.bias) > 0.5 * self.standard_error:
            found.append(f"but about {self.bias:.4f} nats of A - B are the estimators' own bias: draw more samples")
        if self.bounds[0] != self.bounds[1]:
            a, b = (_BOUND_WORDS.get(bound, bound) for bound in self.bounds)
            found.append(f"but A's values are {a} and B's {b}, so part of A - B may be the estimators'")
        if 1 < num < _FEW_DATA:
            found.append(f"but {num} data are few for a normal interval")
        return tuple(found)

    def summary(self) -> dict[str, Any]:
        """The result as plain numbers and words, for a table or JSON."""
        return {
            "mean_difference": self.mean,
            "standard_error": self.standard_error,
            "mc_standard_error": self.mc_standard_error,
            "interval_low": self.interval[0],
            "interval_high": self.interval[1],
            "share_a_better": self.share_a_better,
            "num_untrusted": int(self.untrusted.sum()),
            "num_data": len(self.values),
            "estimator_bias": self.bias,
            "better": self.better,
            "verdict": self.verdict,
            "data": self.data,
        }


@entry
def compare(a: LogMarginal, b: LogMarginal) -> Comparison:
    """The paired difference of two estimates of log p(x) on the same data, in nats, positive where `a` is better.

    The data must be the same values in the same order, and binarised alike: for dynamic binarisation, observe them
    once and give both calls of `pvae.log_marginal` that tensor, each its own seed. The log of a mean of unbiased
    weights is low by mc^2 / 2 per datum to second order, and the difference of these is `bias`.

    Nowozin (2018), Debiasing Evidence Approximations, proposition 1.

    Raises: ValueError for results of different data: their number, name, split, kind, binarisation or size.
    """
    for name, result in (("a", a), ("b", b)):
        instance(name, result, LogMarginal, what="what pvae.log_marginal returned", usual="pvae.log_marginal(...)")
    if len(a.values) != len(b.values):
        raise ValueError(
            f"the results are of different data: {len(a.values)} and {len(b.values)} of them; "
            "estimate both on the same data"
        )
    require_same_record(a.data, b.data)
    return Comparison(
        values=a.values.double() - b.values.double(),
        mc_standard_errors=torch.hypot(a.mc_standard_errors, b.mc_standard_errors),
        untrusted=(a.khat > a.khat_threshold) | (b.khat > b.khat_threshold),
        unjudged=_unjudged(a) | _unjudged(b),
        bias=_shortfall(b) - _shortfall(a),
        bounds=(a.bound, b.bound),
        data=a.data,
    )


def require_same_record(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Refuse data whose records differ in name, split, kind, binarisation, labels or size of a datum, or are simulated.

    Raises: ValueError that names the first difference.
    """
    if a.get("simulated") or b.get("simulated"):
        raise ValueError(
            "A and B are of different data: each was simulated from its own model; compare by an estimator that takes "
            "the data as given, such as ImportanceSampling"
        )
    for key in ("name", "split", "kind", "binarize"):
        if a.get(key) != b.get(key):
            raise ValueError(
                f"A and B are of different data: {key} {a.get(key) or 'none'} and {b.get(key) or 'none'}; "
                "their log p(x) do not compare: evaluate both on the same data, binarised alike"
            )
    if a.get("beside") != b.get("beside"):
        raise ValueError(
            "A and B are of different data: what stands beside them (labels) differs; log p(x | label) and log p(x) do "
            "not compare: condition both, or neither"
        )
    if _sizes(a.get("shape", [])) != _sizes(b.get("shape", [])):
        raise ValueError(
            f"A and B are of different data: shape {a.get('shape')} and {b.get('shape')}; evaluate both on the same"
        )


def _sizes(shape: list[Any]) -> list[int]:
    """Values per datum in each part: flat rows and images are the same data."""
    parts = shape if shape and isinstance(shape[0], list) else [shape]
    return [math.prod(part) for part in parts]


def _shortfall(result: LogMarginal) -> float:
    return result.mc_standard_errors.square().mean().item() / 2 if result.bound == "lower" else 0.0


def _unjudged(result: LogMarginal) -> Tensor:
    return result.khat.isnan() & (result.mc_standard_errors != 0)
