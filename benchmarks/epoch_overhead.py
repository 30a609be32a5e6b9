"""What an epoch costs beyond its steps: wall time of the loop's epochs over (steps x time of a step).

A step alone is timed by calling its own step and update on one batch again and again; an epoch adds the order of the
data, one `index_select` per step, the record of losses and the callbacks. Both are medians, taken in turns in one run.
"""

from __future__ import annotations

import statistics
import time

import torch
from common import BURDA, SMALL, Net, Rows, one, pair, run_alone

from pvae.data.batches import Batches
from pvae.data.supports import require_support
from pvae.objectives import ELBO
from pvae.pair.contexts import seeded
from pvae.pair.parameters import find_and_place
from pvae.pair.store import private_store
from pvae.support.progress import Progress
from pvae.training.contract import require_contract
from pvae.training.length import Length
from pvae.training.loop import Loop
from pvae.training.turns import Turns


def measure(smoke: bool = False) -> Rows:
    """One row per net."""
    if smoke:
        return [_row(Net((6,), (5,), 2), 8, steps=4, epochs=3)]
    return [_row(BURDA, 100, steps=100, epochs=12), _row(SMALL, 64, steps=300, epochs=12)]


def _row(net: Net, batch_size: int, steps: int, epochs: int) -> dict[str, object]:
    torch.manual_seed(0)
    model, guide = pair(net)
    x = torch.bernoulli(torch.full((steps * batch_size, *net.x_shape), 0.2))
    source = Batches(x, batch_size)
    with private_store(model, guide), seeded(0), Progress(False) as bar:
        parameters = find_and_place(model, guide, source, None)
        require_contract(model, guide, source.example(), ELBO())
        watch = require_support(model, source, guide)
        length = Length(None, (epochs + 1) * steps, None)
        loop = Loop(model, guide, ELBO(), parameters, "traced", None, Turns(), "both", None, length)
        loop.prepare(None, 1e-3, None, None)
        batch = source.example()
        of_epoch: list[float] = []
        of_steps: list[float] = []
        ended = time.perf_counter()

        def turn(record: object) -> None:
            nonlocal ended
            of_epoch.append(time.perf_counter() - ended)
            started = time.perf_counter()
            for _ in range(steps):
                pulse, gradients = loop.step(batch, 1.0)
                pulse.tolist()
                loop.update(loop.step.leaves, gradients)
            ended = time.perf_counter()
            of_steps.append(ended - started)

        loop.run(source, None, watch, [turn], bar)
    # The first epoch traces.
    ratio = statistics.median(a / b for a, b in zip(of_epoch[1:], of_steps[1:], strict=True))
    return one(f"epoch over its steps: {net}, batch {batch_size}", "pvae traced", ratio, "x")


if __name__ == "__main__":
    run_alone("epoch_overhead", __doc__, measure)
