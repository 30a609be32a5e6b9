"""A measured number beside its known answer, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["LIMIT", "Check", "Measured", "Row", "apart", "mean_of", "not_above", "of_data", "value_and_parameters"]

LIMIT = 5.0
# What rounding leaves of a standard error of 0.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class Measured:
    """An estimate, its known answer, its standard error and how many of them it is off; and what being close means."""

    quantity: str
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
class Row:
    """One line of the table.

    Attributes:
        group: "estimators", "bounds" or "gradients".
        what: the estimator, objective or identity.
        on: the name of the truth, or of the pair.
        quantity: what of it is shown: of many numbers the one with the largest error.
        estimate: what was measured.
        truth: the known answer.
        standard_error: of the estimate; where nothing is drawn, a fifth of the tolerance.
        error: how far the estimate is off, in standard errors.
        verdict: "ok"; "off" beyond 5 standard errors; "biased" where a known bias showed; "not claimed" where the two
            need not agree; "failed" for a check that could not run.
        note: why it could not.
    """

    group: str
    what: str
    on: str
    quantity: str
    estimate: float
    truth: float
    standard_error: float
    error: float
    verdict: str
    note: str = ""

    @property
    def passes(self) -> bool:
        """Whether the row says nothing against the library."""
        return self.verdict not in ("off", "failed")


@dataclass(frozen=True)
class Check:
    """Something to measure, with a row for each number."""

    group: str
    what: str
    on: str
    measure: Callable[[], Sequence[Measured]]

    def rows(self) -> list[Row]:
        """What came out; one row with the reason if nothing did."""
        try:
            found = self.measure()
        except Exception as error:  # a machine may fail in any way, and the other checks still tell something
            nothing = Row(self.group, self.what, self.on, "", math.nan, math.nan, math.nan, math.nan, "failed")
            return [replace(nothing, note=" ".join(f"{type(error).__name__}: {error}".split()))]
        return [
            Row(
                self.group,
                self.what,
                self.on,
                each.quantity,
                each.estimate,
                each.truth,
                each.standard_error,
                each.error,
                each.verdict,
            )
            for each in found
        ]


def of_data(values: Tensor, truth: Tensor, standard_errors: Tensor, bias: Tensor | float = 0.0) -> Measured:
    """Estimates of log p(x), (N,): that of the worst datum, or their mean where it is worse.

    A known bias is taken off the error.
    """
    spread = standard_errors.double()
    rows = torch.stack([values.double(), truth.double(), spread, (values - truth - bias).double()])
    means = torch.stack([*rows[:2].mean(1), spread.square().sum().sqrt() / len(values), rows[3].mean()])
    every = torch.cat([rows, means[:, None]], 1)
    names = [*(f"log p(x[{datum}])" for datum in range(len(values))), "mean log p(x)"]
    return _worst(names, every[0], every[1], every[2].clamp(min=_ROUNDING), every[3])


def mean_of(
    draws: Tensor, truth: Tensor | float, names: Sequence[str], *, if_close: str = "ok", if_far: str = "off"
) -> Measured:
    """The means of independent draws (N, P): of the P numbers the one with the largest error."""
    draws = draws.detach().double().cpu().reshape(len(draws), -1)
    known = torch.as_tensor(truth, dtype=torch.float64).detach().cpu().reshape(-1)
    spread = (draws.std(0) / math.sqrt(len(draws))).clamp(min=_ROUNDING)
    found = _worst(names, draws.mean(0), known, spread, draws.mean(0) - known)
    return replace(found, if_close=if_close, if_far=if_far)


def not_above(bounds: Sequence[Tensor], names: Sequence[str]) -> Measured:
    """Means of independent draws (N,), none of which is to be above the next; below counts as no error."""
    means, errors = (
        torch.stack([part(bound) for bound in bounds]).double()
        for part in (torch.mean, lambda bound: bound.std() / math.sqrt(len(bound)))
    )
    spread = torch.hypot(errors[:-1], errors[1:]).clamp(min=_ROUNDING)
    excess = (means[:-1] - means[1:]).clamp(min=0)
    links = [f"{low} <= {high}" for low, high in pairwise(names)]
    return _worst(links, means[:-1], means[1:], spread, excess)


def apart(values: Tensor, truth: Tensor, tolerance: float, quantity: str) -> Measured:
    """Numbers without any chance in them: the largest difference, the tolerance standing for 5 standard errors."""
    values, truth = (part.detach().double().cpu() for part in torch.broadcast_tensors(values, truth))
    unit = torch.full_like(values, tolerance / LIMIT).flatten()
    return _worst([quantity] * len(unit), values.flatten(), truth.flatten(), unit, (values - truth).flatten())


def value_and_parameters(leaves: Mapping[str, Tensor]) -> list[str]:
    """Names for a value and its derivatives by each number in some parameters."""
    names = ["value"]
    for name, leaf in leaves.items():
        names += [f"d {name}"] if leaf.numel() == 1 else [f"d {name}[{at}]" for at in range(leaf.numel())]
    return names


def _worst(names: Sequence[str], values: Tensor, truth: Tensor, spread: Tensor, errors: Tensor) -> Measured:
    ratios = errors / spread
    worst = int(ratios.abs().argmax())  # nan counts as the largest
    value, known, error, ratio = (float(part[worst]) for part in (values, truth, spread, ratios))
    return Measured(names[worst], value, known, error, ratio)
