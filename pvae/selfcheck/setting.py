"""What a run of the checks is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pvae.truth import Truth

__all__ = ["Setting"]


@dataclass(frozen=True)
class Setting:
    """Truths to be met, where, from which seed and with how many draws."""

    builders: tuple[Callable[..., Truth], ...]
    device: torch.device
    seed: int
    num_samples: int

    def place(self, model: Any, guide: Any, x: Tensor) -> tuple[Any, Any, Tensor]:
        """A pair and its data, on the device."""
        for part in (model, guide):
            if isinstance(part, nn.Module):
                part.to(self.device)
        return model, guide, x.to(self.device)
