"""A measured number beside its known answer, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["LIMIT", "Check", "Row", "apart", "mean_of", "not_above", "of_data"]

LIMIT = 5.0
# What rounding leaves of an estimate without any spread, in nats.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group: "estimators", "bounds", "gradients" or "identities".
        what: the estimator, objective or identity.
        quantity: what of it was measured.
        on: the name of the truth, or of the pair.
        estimate: what was measured; where it is several numbers, that of the largest error or their mean.
        truth: the known answer.
        standard_error: of the estimate; for what draws nothing, the tolerance.
        error: how far the estimate is off, in standard errors.
        verdict: "ok"; "off" beyond 5 standard errors; "biased" for a bias that is known and met; "not claimed" where
            the two need not agree; "failed" for a check that could not run.
        note: why it could not.
    """

    group: str
    what: str
    quantity: str
    on: str
    estimate: float
    truth: float
    standard_error: float
    error: float
    verdict: str
    note: str = ""

    @property
    def passes(self) -> bool:
        """Whether the row speaks for the library."""
        return self.verdict not in ("off", "failed")


@dataclass(frozen=True)
class Measured:
    """An estimate, its known answer, its standard error and how many of them it is off; and what being close means."""

    estimate: float
    truth: float
    standard_error: float
    error: float
    if_close: str = "ok"
    if_far: str = "off"

    @property
    def verdict(self) -> str:
        """In a word; what is not a number is far."""
        return self.if_close if abs(self.error) <= LIMIT else self.if_far


@dataclass(frozen=True)
class Check:
    """Something to measure: `measure` gives one or several numbers by their names."""

    group: str
    what: str
    on: str
    measure: Callable[[], Mapping[str, Measured]]

    def rows(self) -> list[Row]:
        """What came out; one row with the reason if nothing did."""
        row = Row(self.group, self.what, "", self.on, math.nan, math.nan, math.nan, math.nan, "failed")
        try:
            measured = self.measure()
        except Exception as error:  # a machine may fail in any way, and the other checks still tell something
            return [replace(row, note=" ".join(f"{type(error).__name__}: {error}".split()))]
        return [
            replace(
                row,
                quantity=quantity,
                estimate=found.estimate,
                truth=found.truth,
                standard_error=found.standard_error,
                error=found.error,
                verdict=found.verdict,
            )
            for quantity, found in measured.items()
        ]


def of_data(values: Tensor, truth: Tensor, standard_errors: Tensor, bias: Tensor | float = 0.0) -> Measured:
    """Estimates of data, (N,), by their error in the mean or that of the worst datum, whichever is more.

    A known bias is taken off each value before it is judged.
    """
    errors = (values - truth - bias).double()
    spread = standard_errors.double().clamp(min=_ROUNDING)
    together = spread.square().sum().sqrt()
    candidates = torch.cat([errors / spread, (errors.sum() / together)[None]])
    return Measured(
        values.mean().item(), truth.mean().item(), together.item() / len(values), _largest(candidates)[1].item()
    )


def mean_of(draws: Tensor, truth: Tensor | float, if_close: str = "ok", if_far: str = "off") -> Measured:
    """The mean of independent draws (N,) or (N, P), of P numbers the one with the largest error."""
    draws = draws.detach().double().cpu().reshape(len(draws), -1)
    known = torch.as_tensor(truth).detach().double().cpu().reshape(-1).expand(draws.shape[1])
    spread = (draws.std(0) / math.sqrt(len(draws))).clamp(min=_ROUNDING)
    mean = draws.mean(0)
    worst, error = _largest((mean - known) / spread)
    return Measured(mean[worst].item(), known[worst].item(), spread[worst].item(), error.item(), if_close, if_far)


def not_above(below: Tensor, above: Tensor) -> Measured:
    """Means of independent draws (N,), of which the first is not to be the larger one; below it counts as no error."""
    error = math.hypot(below.std().item(), above.std().item()) / math.sqrt(len(below))
    excess = (below.mean() - above.mean()).item()
    return Measured(below.mean().item(), above.mean().item(), error, max(excess, 0.0) / max(error, _ROUNDING))


def apart(values: Tensor, truth: Tensor, tolerance: float) -> Measured:
    """What draws nothing, or the same draws: the largest difference, a tolerance standing for 5 standard errors."""
    values, truth = torch.broadcast_tensors(values.detach().double().cpu(), truth.detach().double().cpu())
    unit = tolerance / LIMIT
    worst, error = _largest(((values - truth) / unit).flatten())
    return Measured(values.flatten()[worst].item(), truth.flatten()[worst].item(), unit, error.item())


def _largest(errors: Tensor) -> tuple[int, Tensor]:
    worst = int(errors.abs().argmax())  # nan counts as the largest
    return worst, errors[worst]
