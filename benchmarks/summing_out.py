"""Milliseconds of a loss whose model sums discrete sites out: topics of words, and a chain; beside Pyro."""

from __future__ import annotations

import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from common import Rows, interleaved, run_alone, summed_up
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from pvae.objectives import ELBO
from pvae.pair.store import private_store

_PARALLEL = {"enumerate": "parallel"}
_TOPICS, _VOCABULARY, _STATES = 8, 30, 3


def topics(x: Tensor) -> None:
    """A mixture of topics for each datum (B, words), a topic of each word."""
    beta = torch.linspace(-2, 2, _TOPICS * _VOCABULARY).cos().reshape(_TOPICS, _VOCABULARY)
    with pyro.plate("data", len(x), dim=-1):
        theta = pyro.sample("theta", dist.Dirichlet(torch.ones(_TOPICS)))
        with pyro.plate("words", x.shape[1], dim=-2):
            topic = pyro.sample("topic", dist.Categorical(theta), infer=_PARALLEL)
            pyro.sample("x", dist.Categorical(logits=beta[topic]), obs=x.T)


def guide_of_topics(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("theta", dist.Dirichlet(torch.full((_TOPICS,), 2.0)))


def chain(x: Tensor) -> None:
    """A chain of hidden states for each datum (B, steps), all of them shifted by u."""
    transition = torch.linspace(-2, 2, _STATES**2).sin().reshape(_STATES, _STATES)
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(torch.zeros(()), 1.0))
        logits = torch.zeros(_STATES)
        for step in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{step}", dist.Categorical(logits=logits), infer=_PARALLEL)
            pyro.sample(f"x_{step}", dist.Normal(z.to(x.dtype) + u, 1.0), obs=x[:, step])
            logits = transition[z]


def guide_of_chain(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("u", dist.Normal(x.mean(-1), 0.5))


def measure(smoke: bool = False) -> Rows:
    """One row per model and contestant, on one thread."""
    generator = torch.Generator().manual_seed(0)
    num_samples, blocks = (2, 2) if smoke else (200, 7)
    words = torch.randint(_VOCABULARY, (5, 4 if smoke else 40), generator=generator)
    series = torch.randn(20, 4 if smoke else 30, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            *_rows(
                "summing out: 40 words of 8 topics, K = 200", topics, guide_of_topics, words, num_samples, 2, blocks
            ),
            *_rows(
                "summing out: a chain of 30 steps, K = 20", chain, guide_of_chain, series, num_samples // 10, 1, blocks
            ),
        ]
    finally:
        torch.set_num_threads(threads)


def _rows(
    case: str,
    model: Callable[[Tensor], None],
    guide: Callable[[Tensor], None],
    x: Tensor,
    num_samples: int,
    nesting: int,
    blocks: int,
) -> Rows:
    num_samples = max(2, num_samples)
    contestants = {
        "pvae ELBO": ELBO(num_samples),
        "Pyro TraceEnum_ELBO": TraceEnum_ELBO(
            num_particles=num_samples, vectorize_particles=True, max_plate_nesting=nesting
        ),
    }

    def timed(objective: ELBO | TraceEnum_ELBO) -> Callable[[], float]:
        def block() -> float:
            with private_store(model, guide), pyro.validation_enabled(False):
                started = time.perf_counter()
                objective.loss(model, guide, x)
                return 1e3 * (time.perf_counter() - started)

        block()
        return block

    times = interleaved({name: timed(objective) for name, objective in contestants.items()}, blocks)
    return summed_up(case, "ms", times, ["Pyro TraceEnum_ELBO"])


if __name__ == "__main__":
    run_alone("summing_out", __doc__, measure)
