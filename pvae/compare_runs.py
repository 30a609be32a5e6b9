"""Two trained runs on the same test data, observed once for both."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

import pvae
from pvae.comparison import Comparison, compare, require_same_record
from pvae.contexts import called_modules, seeded
from pvae.data.batches import Batches
from pvae.data.dataset import DataSet
from pvae.estimators.log_marginal import Estimator, LogMarginal
from pvae.sites import random_sites
from pvae.store import private_store

__all__ = ["compare_runs"]

Loaded = tuple[tuple[Any, Any], DataSet]


def compare_runs(
    a: Loaded, b: Loaded, estimator: Estimator, *, batch_size: int, device: str, seed: int, progress: bool
) -> tuple[LogMarginal, LogMarginal, Comparison]:
    """log p(x) of the test data under two pairs, each with its own data set as loaded, and their comparison.

    Grey data are drawn binary once, for both, as `pvae logp --seed` draws them; A then draws its particles from
    `seed` (its values are those of `pvae logp`), B from `seed + 2`: `seed + 1` made the data.

    Raises: ValueError, before anything is estimated, for runs whose data or binarisation differ, whose files of one
        name hold different data, or of which one gives a density and the other a probability.
    """
    (pair_a, data_a), (pair_b, data_b) = a, b
    source = Batches(data_a, batch_size, split="test")
    record = source.describe() | ({"simulated": True} if getattr(estimator, "simulates", False) else {})
    require_same_record(record, Batches(data_b, batch_size, split="test").describe())
    assert data_a.test is not None
    assert data_b.test is not None
    if not torch.equal(data_a.test.flatten(1), data_b.test.flatten(1)):
        raise ValueError(
            f"A and B both name their data {data_a.name}, but the test data behind the names differ; "
            "evaluate both on the same file"
        )
    source.to(device)
    source.reseed(seed)
    observed = torch.cat([batch[0] for batch in source.epoch()])
    observed_b = observed.reshape(-1, *data_b.shape)
    _require_same_measure(pair_a[0], pair_b[0], observed[:2], observed_b[:2])
    results = []
    for pair, x, own_seed in ((pair_a, observed, seed), (pair_b, observed_b, seed + 2)):
        found = pvae.log_marginal(
            *pair, x, estimator, batch_size=batch_size, device=device, seed=own_seed, progress=progress
        )
        results.append(dataclasses.replace(found, data=record))
    return results[0], results[1], compare(*results)


def _require_same_measure(model_a: Any, model_b: Any, x_a: Tensor, x_b: Tensor) -> None:
    """A density has units of 1/x and no upper limit, a probability is at most 1: their logs do not compare."""
    a, b = _is_discrete(model_a, x_a), _is_discrete(model_b, x_b)
    if a is not None and b is not None and a != b:
        words = ["a probability" if discrete else "a density" for discrete in (a, b)]
        raise ValueError(
            f"log p(x) of A is the log of {words[0]}, of B that of {words[1]}; they do not compare: train both with "
            "likelihoods of the same kind"
        )


def _is_discrete(model: Any, x: Tensor) -> bool | None:
    """Whether what a model observes has a discrete support; None if it does not say, or has both."""
    with (
        private_store(model),
        torch.no_grad(),
        seeded(0, x.device),
        called_modules(),
        pyro.validation_enabled(False),
        poutine.trace() as run,
    ):
        model(x)
    try:
        kinds = {site["fn"].support.is_discrete for site in random_sites(run.trace).values() if site["is_observed"]}
    except NotImplementedError:
        return None
    return kinds.pop() if len(kinds) == 1 else None
