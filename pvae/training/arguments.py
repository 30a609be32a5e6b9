"""Checks of what `fit` is given, before anything is looked at."""

from __future__ import annotations

from typing import Any

import pyro.infer

from pvae.objectives.objective import Objective
from pvae.support.refusals import function, instance, nearest, shown, whole

__all__ = ["check_functions", "check_lengths", "check_suited"]


def check_lengths(epochs: int | None, steps: int | None, early_stopping: int | None) -> None:
    """Raise ValueError unless a run is `epochs` or `steps` long."""
    if (epochs is None) == (steps is None):
        given = "neither" if epochs is None else "both"
        raise ValueError(f"give either epochs or steps, to say how long to train; got {given}")
    for name, size, many in (("epochs", epochs, 100), ("steps", steps, 10_000), ("early_stopping", early_stopping, 10)):
        if size is not None:
            whole(name, size, usual=many)


def check_functions(objective: Any, optimizer: Any, schedule: Any, kl_schedule: Any, callbacks: Any) -> None:
    """Raise ValueError for what is no objective, or no function where one is asked for."""
    if objective is not None:
        instance("objective", objective, pyro.infer.ELBO, what="one of pvae.objectives, built", usual="ELBO()")
    if isinstance(schedule, str) and schedule != "cosine":
        raise ValueError(
            f"unknown schedule {shown(schedule)}: {nearest(schedule, ['cosine'])}, or a function from an optimizer to "
            "a torch scheduler; leave it out for a constant rate"
        )
    for name, value, usual in (
        ("optimizer", optimizer, "lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)"),
        ("schedule", None if isinstance(schedule, str) else schedule, "'cosine'"),
        ("kl_schedule", kl_schedule, "pvae.training.linear_warmup(1000)"),
    ):
        if value is not None:
            function(name, value, usual=usual)
    for callback in instance("callbacks", callbacks, (list, tuple), what="a list of functions", usual="[print]"):
        function("each of callbacks", callback, usual="print")


def check_suited(objective: Any, guide: Any, kl_schedule: Any, step_mode: str, early_stopping: int | None) -> None:
    """Raise ValueError for an objective that cannot be trained in the way that is asked for."""
    if not isinstance(objective, Objective) and (guide is None or kl_schedule or step_mode not in ("auto", "eager")):
        raise ValueError(
            f"{type(objective).__name__} is Pyro's own: it takes a guide, no KL schedule, and runs eagerly; use "
            "pvae.objectives"
        )
    if isinstance(objective, Objective) and objective.is_adversarial and early_stopping is not None:
        raise ValueError(
            f"early_stopping compares validation bounds, and the value of {type(objective).__name__} is no bound, only "
            "what its discriminator of that epoch makes of the pair; leave early_stopping out"
        )
