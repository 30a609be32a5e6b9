"""Log weights of a batch in chunks of one size, eagerly or by a graph of a chunk."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, Protocol, get_args

import pyro
import torch
from torch import Tensor

from pvae.estimators.weights.stream import Estimate
from pvae.graphs.replay import Mode, Replay
from pvae.pair.layout import Layout
from pvae.pair.parameters import Parameters
from pvae.pair.referee import NoParticles
from pvae.pair.sites import Batch
from pvae.support.refusals import choice, whole

__all__ = ["Chunks", "Proposal", "StepMode", "check_chunks", "rows_at_once"]

StepMode = Literal["auto", "eager", "traced", "compiled", "graph"]
Shapes = tuple[torch.Size, ...]

# As many particles at once as make the data this large once per particle, so that a layer's output stays in the cache
# (4 MB), or takes a small share of a GPU's memory. Free memory is not asked: the draws would depend on it.
_VALUES_AT_ONCE = 1_000_000
_SHARE_OF_GPU = 1 / 128
_LEAST_WIDTH = 256
# Tracing takes some tenths of a second (this until the first trace tells) and makes a chunk a third faster.
_SECONDS_TO_TRACE, _GAIN = 1.0, 0.3


class Proposal(Protocol):
    """What is drawn, and how a draw is weighed."""

    def layout(self, batch: Batch, num_samples: int) -> Layout:
        """How to run that many particles at once."""

    def weigh(self, batch: Batch, num_samples: int) -> Tensor:
        """Log weights of fresh draws, (num_samples, B)."""


def check_chunks(num_samples: int, chunk_size: int | None, step_mode: str) -> int:
    """K as an int. Raises ValueError for sizes below 1 and an unknown mode."""
    if chunk_size is not None:
        whole("chunk_size", chunk_size, usual="100, or leave it out to have it chosen")
    choice("step_mode", step_mode, get_args(StepMode))
    return whole("num_samples", num_samples, usual=1000)


class Chunks:
    """The log weights of one batch after another, `num_samples` per datum, chunk by chunk.

    Args:
        proposal: what draws and weighs.
        num_samples: K, honoured exactly.
        chunk_size: particles at once, at most; None to have it chosen.
        step_mode: as in `pvae.fit`; "auto" makes a graph for a shape of batches where the chunks of that shape that
            can still be expected pay for it.
        parameters: those of the pair.
        num_batches: how many batches will come, to tell how long the run is.
    """

    def __init__(
        self,
        proposal: Proposal,
        num_samples: int,
        chunk_size: int | None,
        step_mode: StepMode,
        parameters: Parameters,
        num_batches: int,
    ) -> None:
        self.proposal, self.num_samples, self.chunk_size = proposal, num_samples, chunk_size
        self._traces: bool | None = None if step_mode == "auto" else step_mode != "eager"
        self._batches_left = num_batches
        self._batches: Counter[Shapes] = Counter()
        self._seconds: dict[Shapes, float] = {}
        self._traced: set[Shapes] = set()
        self._chunk = self._chunks_left = self._chunks_per_batch = self._eager_calls = 0
        mode: Mode = "traced" if step_mode == "eager" else step_mode
        self._replay = Replay(self._weigh, parameters, mode, self._calls_left, "importance weights")

    def __call__(self, batch: Batch, take: Callable[[Tensor], None]) -> None:
        """Give `take` the log weights of a batch, (k, B) at a time, K rows in all."""
        most = self.chunk_size or max(1, rows_at_once(batch) // len(batch[0]))
        # Chunks of one size need one graph; what the last one draws beyond K is left out.
        self._settle(batch, most)
        if self.chunk_size is None and self._layout.summed is not None:
            self._settle(batch, max(1, most // self._layout.summed.copies))
        count = math.ceil(self.num_samples / self._chunk)
        self._chunks_left, self._chunks_per_batch = count, count
        self._batches_left -= 1
        shapes = tuple(part.shape for part in batch)
        self._batches[shapes] += 1
        replayed = None
        for start in range(0, self.num_samples, self._chunk):
            if replayed is None and self._is_due(shapes, batch[0].is_cuda):
                self._traced.add(shapes)
                replayed = self._replay.repeatedly(*batch)
            log_weights = self._eagerly(batch, shapes, start) if replayed is None else replayed()[0]
            assert log_weights is not None
            if log_weights.is_cuda:  # a captured graph writes every chunk to the same memory
                log_weights = log_weights.clone()
            take(log_weights[: self.num_samples - start])
            self._chunks_left -= 1

    def conclude(self, estimate: Estimate, num_samples: int) -> Estimate:
        """The estimate of the last batch, from `num_samples` weights: exact where nothing was drawn."""
        return estimate if self._layout.draws else estimate.of_equal_weights(num_samples)

    def _settle(self, batch: Batch, most: int) -> None:
        """Make chunks as even as can be of at most that many particles, and find out how to run one."""
        self._chunk = math.ceil(self.num_samples / math.ceil(self.num_samples / min(most, self.num_samples)))
        try:
            self._layout = self.proposal.layout(batch, self._chunk)
        except NoParticles:  # one after the other is slow, and right
            self._chunk = 1
            self._layout = self.proposal.layout(batch, 1)

    def _is_due(self, shapes: Shapes, on_gpu: bool) -> bool:
        """Whether to run chunks of these shapes by a graph."""
        if self._traces is not None or shapes in self._traced or shapes not in self._seconds:
            return bool(self._traces) or shapes in self._traced
        share = self._batches[shapes] / self._batches.total()
        expected = self._chunks_left + share * self._batches_left * self._chunks_per_batch
        cost = _SECONDS_TO_TRACE if self._replay.trace_seconds is None else self._replay.trace_seconds
        return on_gpu or _GAIN * self._seconds[shapes] * expected > cost

    def _eagerly(self, batch: Batch, shapes: Shapes, start: int) -> Tensor:
        started = time.perf_counter()
        # Pyro has validated the first chunk; the others differ in nothing but their draws.
        with pyro.validation_enabled(False) if start else nullcontext():
            (log_weights,) = self._weigh(*batch)
        self._eager_calls += 1
        if self._eager_calls > 1:  # the first one warms up
            self._seconds[shapes] = time.perf_counter() - started
        return log_weights

    def _calls_left(self) -> int:
        return self._chunks_left + self._batches_left * self._chunks_per_batch

    def _weigh(self, *batch: Tensor) -> list[Tensor]:
        return [self.proposal.weigh(batch, self._chunk)]


def rows_at_once(batch: Batch) -> int:
    """Rows of a chunk: particles times data."""
    values = _VALUES_AT_ONCE
    if batch[0].is_cuda:
        memory = torch.cuda.get_device_properties(batch[0].device).total_memory
        values = int(memory * _SHARE_OF_GPU) // batch[0].element_size()
    return values // max(_LEAST_WIDTH, *(part[0].numel() for part in batch))
