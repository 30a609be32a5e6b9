"""The one place that knows how pvae is asked for log weights and for the draws behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pvae.pair.look import read_layout
from pvae.pair.run import run_pair
from pvae.pair.store import private_store


def matrix_of(
    model: Callable[..., Any], guide: Callable[..., Any], batch: tuple[Tensor, ...], num_samples: int, seed: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The log weights (K, B), and the draws of the model's latent sites, (K, B, ...), at a random state."""
    with private_store(model, guide), torch.no_grad():
        layout = read_layout(model, guide, batch, num_samples)
        torch.manual_seed(seed)
        run = run_pair(model, guide, batch, num_samples, layout)
        # The guide's own draws: where one is impossible to the model, pvae runs the model on another.
        draws = {name: run.layout.collect(name, run.guide[name]["value"], num_samples) for name in run.latents}
        return run.log_weights().values, draws
