"""Importance sampling from the guide, and from the prior."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor

from pvae.estimators.stream import Estimate, WeightStream
from pvae.sites import Batch, base_of
from pvae.weights import check_num_samples, read_layout, run_pair

__all__ = ["ImportanceSampling", "PriorSampling"]

_ROWS_AT_ONCE = 4_000


class ImportanceSampling:
    """Proposals from the guide: log p(x) ~= log 1/K sum_k p(x, z_k) / q(z_k | x), low in expectation.

    Args:
        num_samples: K, honoured exactly whatever the chunks.
        chunk_size: particles at once; by default as many as make 4,000 rows with the batch. It bounds
            memory and changes which random numbers are drawn, never how many.

    Raises: ValueError for sizes below 1.

    Burda, Grosse and Salakhutdinov (2016), section 5.
    """

    bound = "lower"

    def __init__(self, num_samples: int = 1000, *, chunk_size: int | None = None) -> None:
        check_num_samples(num_samples)
        if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
            raise ValueError(
                f"chunk_size must be a whole number of at least 1, got {chunk_size!r}; leave it out to have it chosen"
            )
        self.num_samples = num_samples
        self.chunk_size = chunk_size

    def estimate(self, model: Any, guide: Any, batch: Batch) -> Estimate:
        """log p(x) per datum of one batch, (B,); call under `no_grad` inside a param store of the pair's."""
        return self._stream(model, guide, batch)

    def _stream(self, model: Any, guide: Any, batch: Batch) -> Estimate:
        chunk = self.chunk_size or max(1, _ROWS_AT_ONCE // len(batch[0]))
        layout = read_layout(model, guide, batch, min(chunk, self.num_samples))
        stream = WeightStream(self.num_samples)
        for start in range(0, self.num_samples, chunk):
            # Pyro has validated the first chunk; the others differ in nothing but their draws.
            with pyro.validation_enabled(False) if start else nullcontext():
                run = run_pair(model, guide, batch, min(chunk, self.num_samples - start), layout)
                log_weights = run.log_weights().values
            for name, site in run.guide.items():
                if isinstance(base_of(site["fn"]), Delta):
                    raise ValueError(
                        f"the guide draws '{name}' from a point (Delta), whose weights estimate nothing; train "
                        "MeanField on the same model, or estimate with PriorSampling"
                    )
            stream.update(_finite(log_weights))
        return stream.estimate()


class PriorSampling(ImportanceSampling):
    """Proposals from the prior: log p(x) ~= log 1/K sum_k p(x | z_k); needs no guide.

    Unbiased for p(x), a lower bound for log p(x) in expectation, and hopeless once the posterior is far
    from the prior: the k-hat of each datum shows it.
    """

    def estimate(self, model: Any, guide: Any, batch: Batch) -> Estimate:
        """log p(x) per datum of one batch, (B,); the guide is not used."""
        return self._stream(model, None, batch)


def _finite(log_weights: Tensor) -> Tensor:
    """Refuse nan and +inf; -inf is an honest zero weight."""
    bad = torch.isnan(log_weights) | torch.isposinf(log_weights)
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {bad.numel()} log weights are not finite; look at the pair with pvae.check, "
            "and keep scales away from 0"
        )
    return log_weights
