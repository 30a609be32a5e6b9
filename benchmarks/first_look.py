"""Milliseconds until a pair's log weights are trusted: the first look at a pair and its referee, and a later one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import summing_out
import torch
from common import Rows, one, run_alone

import pvae
from pvae.nets import ConvDecoder, ConvEncoder
from pvae.pair.look import read_layout
from pvae.pair.store import private_store
from pvae.pair.verdicts import forget

Pair = tuple[Any, Any, torch.Tensor]


def dense() -> Pair:
    """Burda's net, batches of 100."""
    x = (torch.rand(100, 784) < 0.3).float()
    model = pvae.models.VAE((784,), 50)
    return model, pvae.guides.MeanField(model, x[:2]), x


def conv() -> Pair:
    """Two convolutions, batches of 100."""
    x = (torch.rand(100, 1, 28, 28) < 0.3).float()
    model = pvae.models.VAE((1, 28, 28), 16, decoder=ConvDecoder(16, (32, 16), (1, 28, 28)))
    return model, pvae.guides.MeanField(model, x[:2], encoder=ConvEncoder((1, 28, 28), (16, 32), (64,))), x


def layers() -> Pair:
    """Two layers of latents with a bottom-up guide."""
    x = (torch.rand(100, 64) < 0.3).float()
    model = pvae.models.HierarchicalVAE((64,), (16, 8))
    return model, pvae.guides.BottomUp(model, x[:2]), x


def sequences() -> Pair:
    """A state space of 30 steps."""
    x = torch.randn(100, 30, 3)
    model = pvae.models.StateSpace((30, 3), 4, likelihood=pvae.models.likelihoods.Gaussian())
    return model, pvae.guides.Recurrent(model, x[:2]), x


def topics() -> Pair:
    """40 words whose topics are summed out."""
    return summing_out.topics, summing_out.guide_of_topics, torch.randint(30, (100, 40))


PAIRS: dict[str, Callable[[], Pair]] = {
    "784-200-200-50": dense,
    "conv, 28 x 28": conv,
    "two layers": layers,
    "state space, 30 steps": sequences,
    "40 words of 8 topics": topics,
}


def measure(smoke: bool = False) -> Rows:
    """Two rows per pair, medians: a first look for several particles, and one that finds what is known."""
    rows: Rows = []
    for name, build in PAIRS.items():
        torch.manual_seed(0)
        model, guide, x = build()
        times: dict[str, list[float]] = {"first look": [], "known": []}
        with private_store(model, guide):
            for _ in range(1 if smoke else 11):
                forget(model, guide)
                for which in times:
                    started = time.perf_counter()
                    read_layout(model, guide, (x,), 2)
                    times[which].append(1000 * (time.perf_counter() - started))
        rows += [one(f"first look: {name}", which, statistics.median(values), "ms") for which, values in times.items()]
    return rows


if __name__ == "__main__":
    run_alone("first_look", __doc__, measure)
