"""What changes during training: the weight of the KL, and the learning rate."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from pvae.support.refusals import number, one_line, whole

__all__ = ["cosine", "cyclical", "linear_warmup", "weight_at"]


def linear_warmup(steps: int, start: float = 0.0) -> Callable[[int], float]:
    """KL weight that rises from `start` to 1 over the first `steps` training steps (Sonderby et al. 2016).

    Raises: ValueError unless steps >= 1 and 0 <= start <= 1.
    """
    steps, start = whole("steps", steps, usual=1000), number("start", start, least=0, most=1, usual=0.0)
    return lambda step: min(1.0, start + (1 - start) * step / steps)


def cyclical(steps: int, *, rise: float = 0.5) -> Callable[[int], float]:
    """KL weight that rises from 0 to 1 over the first share `rise` of every cycle of `steps`, then stays at 1.

    Raises: ValueError unless steps >= 1 and 0 < rise <= 1.

    Fu, Li, Liu, Gao, Celikyilmaz and Carin (2019), Cyclical Annealing Schedule.
    """
    steps, rise = whole("steps", steps, usual=1000), number("rise", rise, above=0, most=1, usual=0.5)
    return lambda step: min(1.0, (step % steps) / (rise * steps))


def cosine(total_steps: int) -> Callable[[Optimizer], LRScheduler]:
    """Learning rate that falls to 0 along half a cosine over `total_steps` training steps.

    Raises: ValueError for fewer than 1 step.
    """
    total_steps = whole("total_steps", total_steps, usual=10_000)
    return lambda optimizer: CosineAnnealingLR(optimizer, T_max=total_steps)


def weight_at(schedule: Callable[[int], float], step: int) -> float:
    """The weight of the KL that a schedule, perhaps of the user's own, gives for a step.

    Raises: ValueError if it fails, or gives anything but a finite number of at least 0.
    """
    try:
        weight = schedule(step)
    except Exception as error:  # a function of the user's may fail in any way
        raise ValueError(f"kl_schedule fails at step {step}: {one_line(str(error), 200)}") from error
    name = f"the KL weight that kl_schedule gives for step {step}"
    return number(name, weight, least=0, usual="pvae.training.linear_warmup(1000)")
