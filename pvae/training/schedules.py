"""What changes during training: the weight of the KL, and the learning rate."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

__all__ = ["cosine", "cyclical", "linear_warmup"]


def linear_warmup(steps: int, start: float = 0.0) -> Callable[[int], float]:
    """KL weight that rises from `start` to 1 over the first `steps` training steps (Sonderby et al. 2016).

    Raises: ValueError unless steps >= 1 and 0 <= start <= 1.
    """
    if steps < 1 or not 0 <= start <= 1:
        raise ValueError(f"expected steps >= 1 and 0 <= start <= 1, got {steps} and {start}")
    return lambda step: min(1.0, start + (1 - start) * step / steps)


def cyclical(steps: int, *, rise: float = 0.5) -> Callable[[int], float]:
    """KL weight that rises from 0 to 1 over the first share `rise` of every cycle of `steps`, then stays at 1.

    Raises: ValueError unless steps >= 1 and 0 < rise <= 1.

    Fu, Li, Liu, Gao, Celikyilmaz and Carin (2019), Cyclical Annealing Schedule.
    """
    if steps < 1 or not 0 < rise <= 1:
        raise ValueError(f"expected steps >= 1 and 0 < rise <= 1, got {steps} and {rise}")
    return lambda step: min(1.0, (step % steps) / (rise * steps))


def cosine(total_steps: int) -> Callable[[Optimizer], LRScheduler]:
    """Learning rate that falls to 0 along half a cosine over `total_steps` training steps."""
    return lambda optimizer: CosineAnnealingLR(optimizer, T_max=total_steps)
