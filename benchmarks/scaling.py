"""How cost grows: log p(x) against K and N, a training step against the batch; and the machine's own bounds.

The slope is that of log time against log size, by least squares: 1 is proportional, less means that a fixed cost is
shared. Sizes take turns, seven times; slopes are those of the medians. The bounds are torch's matrix product at the
shapes of Burda's net and a copy too large for any cache.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from common import BURDA, Net, Rows, interleaved, one, pair, run_alone
from torch import Tensor

import pvae
from pvae.estimators import ImportanceSampling


def measure(smoke: bool = False) -> Rows:
    """One row per size, one per slope, one per bound."""
    net = Net((6,), (5, 4), 2) if smoke else BURDA
    turns = 1 if smoke else 7
    torch.manual_seed(0)
    rows: Rows = []
    for what, sizes, task in (
        ("log p(x) of 100 images against K", (250, 500, 1000, 2000), lambda k: _evaluate(net, 100, k)),
        ("log p(x), K = 500, against N", (100, 200, 400, 800), lambda n: _evaluate(net, n, 500)),
        ("a training step against the batch", (25, 100, 400, 1600), lambda b: _train(net, b, 2 if smoke else 20)),
    ):
        sizes = tuple(size // 25 for size in sizes) if smoke else sizes
        times = interleaved({str(size): task(size) for size in sizes}, turns)
        medians = [statistics.median(times[str(size)]) for size in sizes]
        rows += [one(what, str(size), 1e3 * each, "ms") for size, each in zip(sizes, medians, strict=True)]
        rows.append(one(what, "slope", _slope(sizes, medians), ""))
    return [*rows, *_bounds(net)]


def _evaluate(net: Net, num_data: int, num_samples: int) -> Callable[[], float]:
    model, guide = pair(net)
    x = torch.bernoulli(torch.full((num_data, *net.x_shape), 0.2))
    estimator = ImportanceSampling(num_samples, step_mode="eager")
    return _timed(lambda: pvae.log_marginal(model, guide, x, estimator))


def _train(net: Net, batch_size: int, steps: int) -> Callable[[], float]:
    x = torch.bernoulli(torch.full((steps * batch_size, *net.x_shape), 0.2))

    def turn() -> float:
        ends: list[float] = []
        pvae.fit(
            *pair(net),
            x,
            epochs=2,
            batch_size=batch_size,
            step_mode="traced",
            callbacks=[lambda record: ends.append(time.perf_counter())],
            progress=False,
        )
        return (ends[1] - ends[0]) / steps

    return turn


def _timed(task: Callable[[], object]) -> Callable[[], float]:
    def turn() -> float:
        started = time.perf_counter()
        task()
        return time.perf_counter() - started

    return turn


def _slope(sizes: tuple[int, ...], seconds: list[float]) -> float:
    xs, ys = [math.log(size) for size in sizes], [math.log(each) for each in seconds]
    return statistics.linear_regression(xs, ys).slope


def _bounds(net: Net) -> Rows:
    rows: Rows = []
    for rows_at_once in (100, 2000):
        left, right = torch.randn(rows_at_once, net.hidden[0]), torch.randn(net.hidden[0], net.x_dim)
        flop = 2 * left.numel() * net.x_dim
        shape = f"torch.mm, ({rows_at_once}, {net.hidden[0]}) x ({net.hidden[0]}, {net.x_dim})"
        rows.append(one("the machine", shape, flop / _best(lambda a=left, b=right: torch.mm(a, b)) / 1e9, "GFLOP/s"))
    source = torch.zeros(2**26)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() * 4 / _best(lambda: target.copy_(source), 5) / 1e9
    return [*rows, one("the machine", "copy of 256 MiB, read and written", bandwidth, "GB/s")]


def _best(task: Callable[[], Tensor], repeats: int = 50) -> float:
    task()
    return min(_timed(task)() for _ in range(repeats))


if __name__ == "__main__":
    run_alone("scaling", __doc__, measure)
