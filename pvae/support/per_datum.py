"""A number per datum, with its errors: what an estimate of log p(x), a comparison and a gap have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["PerDatum"]


@dataclass(frozen=True)
class PerDatum:
    """A number per datum in nats, `values` (N,), and its Monte-Carlo standard errors (N,), on the CPU."""

    values: Tensor
    mc_standard_errors: Tensor

    @property
    def mean(self) -> float:
        """Mean over data."""
        return self.values.mean().item()

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over data: how much another sample of data (and another seed) would move it."""
        if self.mean == -math.inf:
            return math.inf
        return self.values.std().item() / math.sqrt(len(self.values)) if len(self.values) > 1 else math.nan

    @property
    def mc_standard_error(self) -> float:
        """Standard error of the mean from the draws alone: how much another seed would move it."""
        return self.mc_standard_errors.square().sum().sqrt().item() / len(self.values)

    def summary(self) -> dict[str, Any]:
        """Mean and both errors."""
        return {
            "mean": self.mean,
            "standard_error": self.standard_error,
            "mc_standard_error": self.mc_standard_error,
        }

    def __str__(self) -> str:
        return f"{self.mean:.4f} (se {self.standard_error:.2g} over data, {self.mc_standard_error:.2g} from draws)"
