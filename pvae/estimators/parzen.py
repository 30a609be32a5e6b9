"""A kernel density on a model's samples, for comparison with the tables that used it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pvae.estimators.weights.stream import Estimate, WeightStream
from pvae.pair.parameters import Parameters
from pvae.pair.simulate import Simulator
from pvae.pair.sites import Batch
from pvae.support.refusals import number, whole

__all__ = ["ParzenWindow"]

_DRAWS_AT_ONCE, _VALUES_AT_ONCE = 1000, 5_000_000
# Bandwidths to choose among, in units of the draws' standard deviation, and how many draws judge them.
_LEAST, _MOST, _NUM_BANDWIDTHS, _NUM_JUDGES = 0.01, 3.0, 40, 300


class ParzenWindow:
    """log 1/S sum_s N(x | x_s, h^2 I), with x_s drawn from the model: a density near p(x), and no bound on it.

    For comparison with published tables only. It needs exponentially many samples in the dims of x, and ranks models
    wrongly even then (Theis, van den Oord and Bethge 2016, A note on the evaluation of generative models). Several
    observed parts are flattened and joined. The guide is not used.

    `mc_standard_errors`, `ess` and `khat` are those of the S kernel heights, the bandwidth held fixed.

    Args:
        num_samples: S, drawn once, with the first batch.
        bandwidth: h; None takes, from 40 values between 0.01 and 3 standard deviations of the draws, the one under
            which 300 draws are likeliest with each left out of its own density.

    Raises: ValueError for num_samples below 1 (2 without a bandwidth) and a bandwidth that is not above 0; on use, for
        data that are not floating-point, and models that condition on a part of the batch.

    Breuleux, Bengio and Vincent (2011), Quickly generating representative samples from an RBM-derived process.
    """

    bound = "none"

    def __init__(self, num_samples: int = 10_000, bandwidth: float | None = None) -> None:
        self.num_samples = num_samples = whole("num_samples", num_samples, usual=10_000)
        if bandwidth is None and num_samples < 2:
            raise ValueError("one sample has no spread to choose a bandwidth by; draw more, or give bandwidth=")
        if bandwidth is not None:
            bandwidth = number("bandwidth", bandwidth, above=0, usual="0.2, or leave it out to have it chosen")
        self.bandwidth = bandwidth

    def start(self, model: Any, guide: Any, parameters: Parameters, num_batches: int) -> Callable[[Batch], Estimate]:
        """log density per datum, (B,), for one batch after another; the guide is not used."""
        return _Kernels(self, model)


class _Kernels:
    """Samples of one model and a bandwidth, found with the first batch."""

    def __init__(self, settings: ParzenWindow, model: Any) -> None:
        self.settings, self.model = settings, model
        self.samples: Tensor | None = None
        self.bandwidth = settings.bandwidth or 0.0

    def __call__(self, batch: Batch) -> Estimate:
        """log 1/S sum_s N(x | x_s, h^2 I) per datum of a batch, (B,)."""
        if self.samples is None:
            self.samples = _draw(self.model, batch, self.settings.num_samples)
            self.bandwidth = self.settings.bandwidth or _likeliest(self.samples)
        stream = WeightStream(self.settings.num_samples)
        x = _flat(batch)
        for part in self.samples.split(max(1, _VALUES_AT_ONCE // (len(x) + x.shape[1]))):
            stream.update(_log_kernel(torch.cdist(part, x).square(), self.bandwidth, x.shape[1]))
        return stream.estimate()


def _draw(model: Any, batch: Batch, num_samples: int) -> Tensor:
    """Draws of all that the model observes, (S, D) in float64."""
    rows = torch.arange(max(len(batch[0]), min(num_samples, _DRAWS_AT_ONCE)), device=batch[0].device) % len(batch[0])
    like = tuple(part.index_select(0, rows) for part in batch)
    simulator = Simulator(model, like)
    for index in range(len(like)):
        if index not in simulator.parts.values():
            raise ValueError(
                f"part {index} of the batch is not drawn by the model, so its samples have no density at the data; "
                "use ImportanceSampling"
            )
    draws = [_flat(simulator(like).batch) for _ in range(math.ceil(num_samples / len(rows)))]
    return torch.cat(draws)[:num_samples]


def _flat(batch: Batch) -> Tensor:
    """The parts of a batch side by side, (B, D) in float64."""
    for part in batch:
        if not part.is_floating_point():
            raise ValueError(f"data of dtype {part.dtype} have no kernel density; give real data, or convert them")
    return torch.cat([part.double().flatten(1) if part.dim() > 1 else part.double()[:, None] for part in batch], 1)


def _log_kernel(squares: Tensor, bandwidth: float, num_dims: int) -> Tensor:
    return -0.5 * squares / bandwidth**2 - num_dims * (math.log(bandwidth) + 0.5 * math.log(2 * math.pi))


def _likeliest(samples: Tensor) -> float:
    """The bandwidth under which draws are likeliest, each left out of its own density."""
    judges = samples[:_NUM_JUDGES]
    squares = torch.cdist(judges, samples).square()
    squares.fill_diagonal_(math.inf)
    spread = samples.var(0).mean().sqrt().clamp(min=torch.finfo(samples.dtype).tiny).item()
    choices = (
        torch.logspace(math.log10(_LEAST), math.log10(_MOST), _NUM_BANDWIDTHS, dtype=torch.float64, device="cpu")
        * spread
    )
    scores = [_log_kernel(squares, h, samples.shape[1]).logsumexp(1).mean() for h in choices.tolist()]
    return choices[int(torch.stack(scores).argmax())].item()
