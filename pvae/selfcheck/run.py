"""All checks, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pvae import truth
from pvae.contexts import seeded
from pvae.params import as_device
from pvae.progress import Progress
from pvae.selfcheck import of_bounds, of_estimators, of_gradients
from pvae.selfcheck.rows import Row
from pvae.selfcheck.setting import Setting
from pvae.truth import Truth
from pvae.weights import check_num_samples

__all__ = ["run"]


def run(
    device: torch.device | str | None = None,
    seed: int = 0,
    *,
    num_samples: int = 10_000,
    builders: Sequence[Callable[..., Truth]] = truth.TRUTHS,
    progress: bool = False,
) -> list[Row]:
    """Hold every estimator, bound and gradient to its known answer.

    An error is in standard errors; beyond 5 the verdict is "off". With right code that happens by chance in about one
    run in a thousand.

    Args:
        device: where to compute, in float64; by default a GPU if there is one.
        seed: of all draws; the caller's random state stays as it is.
        num_samples: draws per datum of most estimators, and per gradient. With few the errors are not normal.
        builders: what builds the truths, by default all of `pvae.truth`.
        progress: show a bar on a terminal.

    Raises: ValueError for a device that is not there or has no float64, and for num_samples below 1000.
    """
    check_num_samples(num_samples)
    if num_samples < 1000:
        raise ValueError(f"num_samples must be at least 1000 for errors that are normal, got {num_samples}; try 10000")
    chosen = as_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        torch.zeros((), dtype=torch.float64, device=chosen)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device '{chosen}' has no float64, which the truths are in; give cpu") from error
    setting = Setting(tuple(builders), chosen, seed, num_samples)
    checks = [check for part in (of_estimators, of_bounds, of_gradients) for check in part.checks(setting)]
    rows: list[Row] = []
    with Progress(progress) as bar:
        for check in bar.track(checks, "selfcheck", len(checks)):
            with seeded(seed, chosen):
                rows += check.rows()
    return rows
