"""What changes during training: the weight of the KL, and the learning rate."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

__all__ = ["cosine", "linear_warmup"]


def linear_warmup(steps: int, start: float = 0.0) -> Callable[[int], float]:
    """KL weight that rises from `start` to 1 over the first `steps` training steps (Sonderby et al. 2016).

    Raises: ValueError unless steps >= 1 and 0 <= start <= 1.
    """
    if steps < 1 or not 0 <= start <= 1:
        raise ValueError(f"expected steps >= 1 and 0 <= start <= 1, got {steps} and {start}")
    return lambda step: min(1.0, start + (1 - start) * step / steps)


def cosine(total_steps: int) -> Callable[[Optimizer], LRScheduler]:
    """Learning rate that falls to 0 along half a cosine over `total_steps` training steps."""
    return lambda optimizer: CosineAnnealingLR(optimizer, T_max=total_steps)
