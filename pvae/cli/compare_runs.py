"""Two trained runs on the same test data, observed once for both."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro import poutine

import pvae
from pvae.comparison import Comparison, compare, require_same_record
from pvae.data.batches import Batches
from pvae.data.dataset import DataSet
from pvae.estimators.log_marginal import Estimator, LogMarginal
from pvae.pair.contexts import called_modules, seeded
from pvae.pair.pair import Pair
from pvae.pair.sites import Batch, Site, random_sites

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
    observed = tuple(torch.cat(parts) for parts in zip(*source.epoch(), strict=True))
    observed_b = observed[0].reshape(-1, *data_b.shape), *observed[1:]
    _require_same_measure(
        pair_a[0], pair_b[0], *(tuple(part[:2] for part in batch) for batch in (observed, observed_b))
    )
    results = []
    for pair, batch, own_seed in ((pair_a, observed, seed), (pair_b, observed_b, seed + 2)):
        found = pvae.log_marginal(
            *pair, batch, estimator, batch_size=batch_size, device=device, seed=own_seed, progress=progress
        )
        results.append(dataclasses.replace(found, data=record))
    return results[0], results[1], compare(*results)


def _require_same_measure(model_a: Any, model_b: Any, batch_a: Batch, batch_b: Batch) -> None:
    """A density has units of 1/x and no upper limit, a probability is at most 1: their logs do not compare.

    Nor does log p(x | label) with log p(label | x).
    """
    sites_a, sites_b = _observed(model_a, batch_a), _observed(model_b, batch_b)
    sizes = {sum(site["value"].numel() for site in sites) for sites in (sites_a, sites_b)}
    if len(batch_a) > 1 and len(sizes) > 1:
        raise ValueError(
            "one of A and B scores the data given labels, the other the labels given data; their logs do not compare: "
            "train both as models of the same part"
        )
    a, b = _is_discrete(sites_a), _is_discrete(sites_b)
    if a is not None and b is not None and a != b:
        words = ["a probability" if discrete else "a density" for discrete in (a, b)]
        raise ValueError(
            f"log p(x) of A is the log of {words[0]}, of B that of {words[1]}; they do not compare: train both with "
            "likelihoods of the same kind"
        )


def _observed(model: Any, batch: Batch) -> list[Site]:
    """The observed sites of a model on a batch."""
    with (
        Pair(model).inside(),
        torch.no_grad(),
        seeded(0, batch[0].device),
        called_modules(),
        pyro.validation_enabled(False),
        poutine.trace() as run,
    ):
        model(*batch)
    return [site for site in random_sites(run.trace).values() if site["is_observed"]]


def _is_discrete(sites: Sequence[Site]) -> bool | None:
    """Whether observed sites have a discrete support; None if they do not say, or have both."""
    try:
        kinds = {site["fn"].support.is_discrete for site in sites}
    except NotImplementedError:
        return None
    return kinds.pop() if len(kinds) == 1 else None
