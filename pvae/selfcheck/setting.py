"""What a run of the checks is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pvae.truth import Truth

__all__ = ["Setting"]


@dataclass(frozen=True)
class Setting:
    """Truths to be met, where, from which seed and with how many draws."""

    builders: tuple[Callable[..., Truth], ...]
    device: torch.device
    seed: int
    num_samples: int
