"""All checks, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from pvae import truth
from pvae.pair.contexts import seeded
from pvae.pair.entry import entry
from pvae.pair.parameters import as_device
from pvae.selfcheck import of_batches, of_bounds, of_estimators, of_gradients, of_simulations
from pvae.selfcheck.rows import Row
from pvae.selfcheck.setting import Setting
from pvae.support.arguments import check_seed
from pvae.support.progress import Progress
from pvae.support.refusals import flag, function, instance, whole
from pvae.truth import Truth

__all__ = ["run"]

_LEAST_SAMPLES = 1000
_PARTS = (of_estimators, of_simulations, of_bounds, of_gradients, of_batches)


@entry
def run(
    device: torch.device | str | None = None,
    seed: int = 0,
    *,
    num_samples: int = 20_000,
    builders: Sequence[Callable[..., Truth]] | None = None,
    progress: bool = False,
) -> list[Row]:
    """Hold every estimator, bound and gradient to its known answer.

    Errors are in standard errors, and beyond 5 the verdict is "off". Right code gets that by chance in about one run in
    a thousand. Nothing global changes: random state, param store and number of threads are as before.

    Args:
        device: where to compute, in float64; by default a GPU if there is one.
        seed: of all draws.
        num_samples: draws per datum of most estimators; a gradient takes ten times as many.
        builders: what builds the truths, given data `x=` or none; by default all of `pvae.truth`.
        progress: show a bar on a terminal.

    Raises: ValueError for a device that is not there or has no float64, and for fewer than 1000 samples, whose errors
        are not normal.
    """
    num_samples = whole("num_samples", num_samples, _LEAST_SAMPLES, usual=20_000)
    seed, progress = check_seed(seed), flag("progress", progress)
    if builders is not None:
        for builder in instance("builders", builders, (list, tuple), what="a list of functions", usual="[truth.ring]"):
            function("each of builders", builder, usual="pvae.truth.ring")
    chosen = as_device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    try:
        torch.zeros((), dtype=torch.float64, device=chosen)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device '{chosen}' has no float64, which the truths are in; give cpu") from error
    setting = Setting(tuple(truth.TRUTHS if builders is None else builders), chosen, seed, num_samples)
    rows: list[Row] = []
    with _one_thread(), Progress(progress) as bar:
        with seeded(seed, chosen):
            checks = [check for part in _PARTS for check in part.checks(setting)]
        for check in bar.track(checks, "selfcheck", len(checks)):
            with seeded(seed, chosen):
                rows += check.rows()
    return rows


@contextmanager
def _one_thread() -> Iterator[None]:
    """The tensors are so small that further threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
