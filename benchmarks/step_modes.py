"""Milliseconds per training step: pvae's step modes, Pyro's own ways, and a hand-written loop.

A step takes a batch of data that live on the device (one `index_select`), runs the bound forward and backward, and
updates the weights with Adam. pvae is timed through `fit`, with all that `fit` does per step (a check that loss and
gradients are finite, a record of every loss, so one `.item()`); the rivals do nothing beyond the step, with
validation off and fused Adam, because that is how one would run them for speed. All train the same nets on the same
binary data with the same one-draw ELBO.

Contestants take turns, in rotating order. A turn is a run from fresh weights: one epoch to warm up, untimed (pvae
traces its graph there), then two timed epochs. The table gives the median over turns, the quartiles, and the median
of the ratio to the hand-written loop within a turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, get_args, get_type_hints

import pyro
import pyro.distributions as dist
import torch
from common import (
    BURDA,
    SMALL,
    Net,
    PlainVAE,
    Rows,
    arguments,
    fused_adam,
    interleaved,
    pair,
    paired_ratio,
    show,
    shuffled,
    write_json,
)
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

import pvae

COLUMNS = ("net, mode", "ms/step", "quartiles", "vs hand-written")
BASELINE = "hand-written torch"
EPOCHS = 3
Step = Callable[[Tensor], object]


def measure(smoke: bool = False) -> Rows:
    """One row per net and contestant."""
    if smoke:
        tiny = Net((6,), (5,), 2)
        return [*_rows(tiny, 8, steps=4, blocks=2), *_rows(tiny, 4, steps=4, blocks=2)]
    return [*_rows(BURDA, 100, steps=100, blocks=9), *_rows(SMALL, 64, steps=200, blocks=9)]


def cells(row: dict[str, object]) -> tuple[str, ...]:
    """A row as text, under `COLUMNS`."""
    return (
        f"{row['net']} at {row['batch_size']}, {row['mode']}",
        f"{row['ms_per_step']:.2f}",
        f"{row['lower_quartile']:.2f} to {row['upper_quartile']:.2f}",
        f"{row['ratio']:.2f}x",
    )


def _rows(net: Net, batch_size: int, steps: int, blocks: int) -> Rows:
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((steps * batch_size, *net.x_shape), 0.2))
    flat = x.flatten(1)
    contestants = {f"pvae {mode}": partial(_time_fit, net, x, batch_size, mode) for mode in _modes()}
    contestants |= {
        name: partial(_time_steps, make, net, flat, batch_size)
        for name, make in (
            (BASELINE, _hand_written),
            ("Pyro SVI.step", _svi),
            ("Pyro ELBOModule, one Adam", _elbo_module),
        )
    }
    times = interleaved(contestants, blocks)
    rows: Rows = []
    for mode, values in times.items():
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        rows.append(
            {
                "net": str(net),
                "batch_size": batch_size,
                "mode": mode,
                "ms_per_step": median,
                "lower_quartile": lower,
                "upper_quartile": upper,
                "ratio": paired_ratio(values, times[BASELINE]),
                "turns": len(values),
            }
        )
    return rows


def _modes() -> list[Any]:
    """Every mode that `fit` knows, so that a new one needs no change here; "auto" only picks among them."""
    return [mode for mode in get_args(get_type_hints(pvae.fit)["step_mode"]) if mode != "auto"]


def _time_fit(net: Net, x: Tensor, batch_size: int, mode: Any) -> float:
    """Milliseconds per step of `pvae.fit`, from the end of its first epoch to the end of its last."""
    torch.manual_seed(0)
    model, guide = pair(net)
    ends: list[float] = []
    result = pvae.fit(
        model,
        guide,
        x,
        epochs=EPOCHS,
        batch_size=batch_size,
        step_mode=mode,
        callbacks=[lambda record: ends.append(time.perf_counter())],
        progress=False,
    )
    if result.step_mode != mode:
        raise RuntimeError(f"fit(step_mode={mode!r}) ran {result.step_mode!r} steps; a row would carry the wrong name")
    return _milliseconds(ends[-1] - ends[0], x, batch_size)


def _time_steps(make: Callable[[PlainVAE], Step], net: Net, x: Tensor, batch_size: int) -> float:
    """Milliseconds per step of a rival."""
    torch.manual_seed(0)
    with pyro.validation_enabled(False):
        pyro.clear_param_store()
        step = make(PlainVAE(net))
        started = 0.0
        for epoch in range(EPOCHS):
            if epoch == 1:
                started = time.perf_counter()
            for batch in shuffled(x, batch_size):
                step(batch)
        seconds = time.perf_counter() - started
        pyro.clear_param_store()
    return _milliseconds(seconds, x, batch_size)


def _milliseconds(seconds: float, x: Tensor, batch_size: int) -> float:
    return 1e3 * seconds / ((EPOCHS - 1) * (len(x) // batch_size))


def _hand_written(plain: PlainVAE) -> Step:
    optimizer = fused_adam([*plain.parameters()])

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        plain.loss(x).backward()
        optimizer.step()

    return step


class _Model(nn.Module):
    """The model as a Pyro function, as in Pyro's own VAE example; only `SVI.step` needs its net registered."""

    def __init__(self, plain: PlainVAE, register: bool) -> None:
        super().__init__()
        self.decoder, self.register = plain.decoder, register
        self.zero, self.one = torch.zeros(plain.latent_dim), torch.ones(plain.latent_dim)

    def forward(self, x: Tensor) -> None:
        """Run the model on x (B, x_dim)."""
        if self.register:
            pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.zero, self.one).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


class _Guide(nn.Module):
    """The guide, likewise."""

    def __init__(self, plain: PlainVAE, register: bool) -> None:
        super().__init__()
        self.encoder, self.register = plain.encoder, register
        self.posterior = plain.posterior

    def forward(self, x: Tensor) -> None:
        """Run the guide on x (B, x_dim)."""
        if self.register:
            pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*self.posterior(x)).to_event(1))


def _svi(plain: PlainVAE) -> Step:
    # PyroOptim makes one optimizer per tensor; fused is the fastest it can be told to make.
    optimizer = PyroOptim(torch.optim.Adam, {"lr": 1e-3, "fused": True})
    return SVI(_Model(plain, register=True), _Guide(plain, register=True), optimizer, Trace_ELBO()).step


def _elbo_module(plain: PlainVAE) -> Step:
    loss = Trace_ELBO()(_Model(plain, register=False), _Guide(plain, register=False))
    optimizer = fused_adam([*loss.parameters()])

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()

    return step


def main() -> None:
    options = arguments(__doc__).parse_args()
    rows = measure(options.smoke)
    show("One training step", COLUMNS, [cells(row) for row in rows])
    write_json(options.json, "step_modes", rows, smoke=options.smoke)


if __name__ == "__main__":
    main()
