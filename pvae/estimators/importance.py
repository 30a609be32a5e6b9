"""Importance sampling from the guide, and from the prior."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, get_args

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor

from pvae.data.kinds import nearest
from pvae.estimators.stream import Estimate, WeightStream
from pvae.graphs.replay import Mode, Replay
from pvae.layout import read_layout
from pvae.params import Parameters
from pvae.runs import Layout, run_pair
from pvae.sites import Batch, base_of
from pvae.weights import check_num_samples

__all__ = ["ImportanceSampling", "PriorSampling"]

# As many particles at once as make the data this large once per particle, so that a layer's output stays in the cache
# (4 MB), or takes a small share of a GPU's memory. Free memory is not asked: the draws would depend on it.
_VALUES_AT_ONCE = 1_000_000
_SHARE_OF_GPU = 1 / 128
_LEAST_WIDTH = 256
# Tracing takes some tenths of a second and makes a chunk a third faster: a shorter run stays eager.
_SECONDS_TO_TRACE, _GAIN = 1.0, 0.3


class ImportanceSampling:
    """Proposals from the guide: log p(x) ~= log 1/K sum_k p(x, z_k) / q(z_k | x), low in expectation.

    The guide's nets run once per datum; K goes through in chunks, whose weights are summed up in float64.

    Args:
        num_samples: K, honoured exactly whatever the chunks.
        chunk_size: particles at once, at most; by default what fits the cache or the GPU. It bounds memory and changes
            which random numbers are drawn, never how many weights count.
        step_mode: as in `pvae.fit`; "auto" traces and compiles the chunk where the run is long enough to pay for it.

    Raises: ValueError for sizes below 1 and an unknown mode.

    Burda, Grosse and Salakhutdinov (2016), section 5.
    """

    bound = "lower"

    def __init__(
        self,
        num_samples: int = 1000,
        *,
        chunk_size: int | None = None,
        step_mode: Literal["auto", "eager", "traced", "compiled", "graph"] = "auto",
    ) -> None:
        check_num_samples(num_samples)
        if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
            raise ValueError(
                f"chunk_size must be a whole number of at least 1, got {chunk_size!r}; leave it out to have it chosen"
            )
        modes = ["eager", *get_args(Mode)]
        if step_mode not in modes:
            raise ValueError(f"unknown step_mode {step_mode!r}: {nearest(str(step_mode), modes)}")
        self.num_samples, self.chunk_size, self.step_mode = num_samples, chunk_size, step_mode

    def start(self, model: Any, guide: Any, parameters: Parameters, num_batches: int) -> Callable[[Batch], Estimate]:
        """An estimate of log p(x) per datum, (B,), for one batch after another.

        Call both under `no_grad`, in a param store of the pair's, its modules in evaluation mode.
        """
        return _Streamed(self, model, guide, parameters, num_batches)


class PriorSampling(ImportanceSampling):
    """Proposals from the prior: log p(x) ~= log 1/K sum_k p(x | z_k); needs no guide.

    Unbiased for p(x), a lower bound for log p(x) in expectation, and hopeless once the posterior is far
    from the prior: the k-hat of each datum shows it.
    """

    def start(self, model: Any, guide: Any, parameters: Parameters, num_batches: int) -> Callable[[Batch], Estimate]:
        """An estimate of log p(x) per datum, (B,), for one batch after another; the guide is not used."""
        return _Streamed(self, model, None, parameters, num_batches)


class _Streamed:
    """Log weights in chunks of one size, eagerly or by a graph of a chunk."""

    def __init__(
        self, settings: ImportanceSampling, model: Any, guide: Any, parameters: Parameters, num_batches: int
    ) -> None:
        self.settings, self.model, self.guide = settings, model, guide
        mode = settings.step_mode
        self._traces: bool | None = None if mode == "auto" else mode != "eager"
        self._batches_left = num_batches
        self._chunk = self._chunks_left = self._chunks_per_batch = self._eager_calls = 0
        self._layouts: dict[tuple[int, int], Layout] = {}
        self._replay = Replay(
            self._weigh, parameters, "traced" if mode == "eager" else mode, self._calls_left, "importance weights"
        )

    def __call__(self, batch: Batch) -> Estimate:
        """log p(x) per datum of a batch, (B,)."""
        num_samples = self.settings.num_samples
        most = self.settings.chunk_size or max(1, _rows_at_once(batch) // len(batch[0]))
        # Chunks of one size need one graph; what the last one draws beyond K is left out.
        count = math.ceil(num_samples / min(most, num_samples))
        self._chunk = math.ceil(num_samples / count)
        self._chunks_left, self._chunks_per_batch = count, count
        self._batches_left -= 1
        key = len(batch[0]), self._chunk
        if key not in self._layouts:
            self._layouts[key] = read_layout(self.model, self.guide, batch, self._chunk)
        self._layout = self._layouts[key]
        stream = WeightStream(num_samples)
        replayed = None
        for start in range(0, num_samples, self._chunk):
            if self._traces and replayed is None:
                replayed = self._replay.repeatedly(*batch)
            log_weights = self._eagerly(batch, start) if replayed is None else replayed()[0]
            assert log_weights is not None
            stream.update(log_weights[: num_samples - start])
            self._chunks_left -= 1
        return stream.estimate()

    def _eagerly(self, batch: Batch, start: int) -> Tensor:
        started = time.perf_counter()
        # Pyro has validated the first chunk; the others differ in nothing but their draws.
        with pyro.validation_enabled(False) if start else nullcontext():
            (log_weights,) = self._weigh(*batch)
        self._eager_calls += 1
        if self._traces is None and self._eager_calls > 1:  # the first one warms up
            seconds = time.perf_counter() - started
            self._traces = batch[0].is_cuda or _GAIN * seconds * self._calls_left() > _SECONDS_TO_TRACE
        return log_weights

    def _calls_left(self) -> int:
        return self._chunks_left + self._batches_left * self._chunks_per_batch

    def _weigh(self, *batch: Tensor) -> list[Tensor]:
        """The log weights of one chunk, [(k, B)]."""
        run = run_pair(self.model, self.guide, batch, self._chunk, self._layout)
        for name, site in run.guide.items():
            if isinstance(base_of(site["fn"]), Delta):
                raise ValueError(
                    f"the guide draws '{name}' from a point (Delta), whose weights estimate nothing; train "
                    "MeanField on the same model, or estimate with PriorSampling"
                )
        return [run.log_weights().values]


def _rows_at_once(batch: Batch) -> int:
    """Rows of a chunk: particles times data."""
    values = _VALUES_AT_ONCE
    if batch[0].is_cuda:
        memory = torch.cuda.get_device_properties(batch[0].device).total_memory
        values = int(memory * _SHARE_OF_GPU) // batch[0].element_size()
    return values // max(_LEAST_WIDTH, *(part[0].numel() for part in batch))
