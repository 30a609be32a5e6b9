"""Milliseconds per training step: pvae's step modes, Pyro's own ways, another library's trainer, and by hand.

A step takes a batch of data that live on the device (one `index_select`), runs the bound forward and backward, and
updates the weights with Adam. pvae is timed through `fit`, with all that `fit` does per step (a check that loss and
gradients are finite, a record of every loss); the rivals do nothing beyond the step, with validation off and fused
Adam, because that is how one would run them for speed. All train the same nets on the same binary data with the same
bound: one draw's ELBO, or IWAE's. pythae's is the ELBO with the analytic KL, which costs no more.

Contestants take turns, in rotating order. A turn is a run from fresh weights: one epoch to warm up, untimed (pvae
traces and compiles there, and so does torch.compile), then two timed epochs. The table gives the median over turns, the
quartiles, and the medians of the ratios within a turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import rival_pythae
import torch
from common import (
    BURDA,
    CONV,
    SMALL,
    ConvNet,
    Net,
    PlainVAE,
    Rows,
    clock,
    devices,
    fused_adam,
    interleaved,
    pair,
    run_alone,
    shuffled,
    summed_up,
)
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

import pvae
from pvae.guides import FullCovariance
from pvae.objectives import ELBO, IWAE

BASELINES = ("by hand", "Pyro SVI.step", "pythae")
EPOCHS = 3
Step = Callable[[Tensor], object]


@dataclass(frozen=True)
class Task:
    """What is trained: a net, a batch size, K draws of an importance-weighted bound (1: the ELBO), steps per epoch."""

    net: Net | ConvNet
    batch_size: int
    num_samples: int
    steps: int
    device: str = "cpu"
    # Pyro's ways and pythae's take long, and lose alike at any size.
    everyone: bool = False
    # Nobody writes this one by hand: its rival is `SVI.step` of the same pair.
    full_covariance: bool = False

    def __str__(self) -> str:
        bound = f"IWAE {self.num_samples}, " if self.num_samples > 1 else ""
        bound += "full covariance, " if self.full_covariance else ""
        return f"step: {bound}{self.net}, batch {self.batch_size}" + (", GPU" if self.device == "cuda" else "")


TASKS = (
    Task(SMALL, 64, 1, 200, everyone=True),
    Task(BURDA, 100, 1, 100, everyone=True),
    Task(BURDA, 20, 1, 150),
    Task(BURDA, 1000, 1, 15),
    Task(BURDA, 20, 50, 20),
    Task(CONV, 128, 1, 15),
    Task(BURDA, 100, 1, 50, full_covariance=True),
)
GPU_TASKS = (
    Task(BURDA, 100, 1, 100, "cuda", everyone=True),
    Task(BURDA, 1000, 1, 100, "cuda"),
    Task(SMALL, 64, 1, 100, "cuda"),
    Task(BURDA, 20, 50, 100, "cuda"),
    Task(CONV, 128, 1, 100, "cuda"),
)
TINY = (
    Task(Net((6,), (5,), 2), 8, 1, 4, everyone=True),
    Task(ConvNet((1, 4, 4), (2,), 3, 2), 4, 2, 4),
    Task(Net((6,), (5,), 2), 8, 1, 4, full_covariance=True),
)


def measure(smoke: bool = False) -> Rows:
    """One row per task and contestant."""
    if smoke:
        return [row for task in TINY for row in rows_of(task, blocks=2)]
    tasks = TASKS if devices() == ["cpu"] else (*TASKS, *GPU_TASKS)
    return [row for task in tasks for row in rows_of(task, blocks=7)]


def rows_of(task: Task, blocks: int) -> Rows:
    """One row per contestant in a task, from that many turns."""
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((task.steps * task.batch_size, *task.net.x_shape), 0.2, device=task.device))
    flat = x if isinstance(task.net, ConvNet) else x.flatten(1)
    modes = ["eager", "traced", "compiled", *(["graph", "auto"] if task.device == "cuda" else [])]
    contestants = {f"pvae {mode}": partial(_time_fit, task, x, mode) for mode in modes}
    if task.full_covariance:
        contestants["Pyro SVI.step"] = partial(_time_steps, _svi_of_pair, task, x)
        return summed_up(str(task), "ms", interleaved(contestants, blocks), BASELINES)
    contestants |= {
        "by hand": partial(_time_steps, _by_hand, task, flat),
        "by hand, torch.compile": partial(_time_steps, partial(_by_hand, compiled=True), task, flat),
    }
    if task.device == "cuda":
        contestants |= {
            "by hand, CUDA graph": partial(_time_steps, _captured, task, flat),
            "by hand, torch.compile, CUDA graph": partial(_time_steps, partial(_captured, compiled=True), task, flat),
        }
    if task.everyone:
        contestants |= {
            "Pyro SVI.step": partial(_time_steps, _svi, task, flat),
            "Pyro ELBOModule, one Adam": partial(_time_steps, _elbo_module, task, flat),
        }
        if rival_pythae.is_installed() and task.device == "cpu":
            contestants["pythae"] = partial(_time_pythae, task, flat)
    return summed_up(str(task), "ms", interleaved(contestants, blocks), BASELINES)


def _time_fit(task: Task, x: Tensor, mode: Any) -> float:
    """Milliseconds per step of `pvae.fit`, from the end of its first epoch to the end of its last."""
    torch.manual_seed(0)
    model, guide = _pair(task)
    ends: list[float] = []
    result = pvae.fit(
        model,
        guide,
        x,
        objective=IWAE(task.num_samples) if task.num_samples > 1 else ELBO(),
        epochs=EPOCHS,
        batch_size=task.batch_size,
        step_mode=mode,
        callbacks=[lambda record: ends.append(clock(task.device))],
        progress=False,
    )
    if result.step_mode != mode and mode != "auto":
        raise RuntimeError(f"fit(step_mode={mode!r}) ran {result.step_mode!r} steps; a row would carry the wrong name")
    return _milliseconds(ends[-1] - ends[0], task)


def _pair(task: Task) -> tuple[nn.Module, nn.Module]:
    model, guide = pair(task.net)
    if task.full_covariance and isinstance(task.net, Net):
        guide = FullCovariance(model, torch.zeros(2, *task.net.x_shape), hidden=task.net.hidden)
    return model.to(task.device), guide.to(task.device)


def _time_steps(make: Callable[[PlainVAE, Task], Step], task: Task, x: Tensor) -> float:
    """Milliseconds per step of a rival."""
    torch.manual_seed(0)
    with pyro.validation_enabled(False):
        pyro.clear_param_store()
        step = make(PlainVAE(task.net).to(task.device), task)
        started = 0.0
        for epoch in range(EPOCHS):
            if epoch == 1:
                started = clock(task.device)
            for batch in shuffled(x, task.batch_size):
                step(batch)
        seconds = clock(task.device) - started
        pyro.clear_param_store()
    return _milliseconds(seconds, task)


def _time_pythae(task: Task, x: Tensor) -> float:
    if isinstance(task.net, ConvNet):
        raise ValueError("pythae is timed on dense nets")
    torch.manual_seed(0)
    return 1e3 * rival_pythae.seconds_per_step(task.net, x, task.batch_size, EPOCHS)


def _milliseconds(seconds: float, task: Task) -> float:
    return 1e3 * seconds / ((EPOCHS - 1) * task.steps)


def _by_hand(plain: PlainVAE, task: Task, compiled: bool = False) -> Step:
    loss, optimizer = _loss(plain, task, compiled), fused_adam([*plain.parameters()])

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()

    return step


def _captured(plain: PlainVAE, task: Task, compiled: bool = False) -> Step:
    """The whole step, Adam included, as one CUDA graph, captured as torch's documentation does it."""
    loss = _loss(plain, task, compiled)
    optimizer = torch.optim.Adam([*plain.parameters()], lr=1e-3, fused=True, capturable=True)
    shape = task.net.x_shape if isinstance(task.net, ConvNet) else (task.net.x_dim,)
    place = torch.zeros(task.batch_size, *shape, device=task.device)

    def whole_step() -> None:
        optimizer.zero_grad()
        loss(place).backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            whole_step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad()
    with torch.cuda.graph(graph):
        whole_step()

    # The kernels read the weights and Adam's moments, which must live as long as the graph.
    kept = plain, optimizer, loss

    def step(x: Tensor, kept: object = kept) -> None:
        place.copy_(x)
        graph.replay()

    return step


def _loss(plain: PlainVAE, task: Task, compiled: bool) -> Callable[[Tensor], Tensor]:
    loss: Callable[[Tensor], Tensor] = plain.loss
    if task.num_samples > 1:
        loss = partial(plain.iwae_loss, num_samples=task.num_samples)
    if compiled:
        torch.compiler.reset()
        loss = torch.compile(loss, fullgraph=True, dynamic=False)
    return loss


class _Model(nn.Module):
    """The model as a Pyro function, as in Pyro's own VAE example; only `SVI.step` needs its net registered."""

    def __init__(self, plain: PlainVAE, register: bool) -> None:
        super().__init__()
        self.decoder, self.register = plain.decoder, register
        like = next(plain.parameters())
        self.zero, self.one = like.new_zeros(plain.latent_dim), like.new_ones(plain.latent_dim)

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


def _svi(plain: PlainVAE, task: Task) -> Step:
    # PyroOptim makes one optimizer per tensor; fused is the fastest it can be told to make.
    optimizer = PyroOptim(torch.optim.Adam, {"lr": 1e-3, "fused": True})
    return SVI(_Model(plain, register=True), _Guide(plain, register=True), optimizer, Trace_ELBO()).step


def _svi_of_pair(plain: PlainVAE, task: Task) -> Step:
    optimizer = PyroOptim(torch.optim.Adam, {"lr": 1e-3, "fused": True})
    return SVI(*_pair(task), optimizer, Trace_ELBO()).step


def _elbo_module(plain: PlainVAE, task: Task) -> Step:
    loss = Trace_ELBO()(_Model(plain, register=False), _Guide(plain, register=False))
    optimizer = fused_adam([*loss.parameters()])

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    run_alone("train_step", __doc__, measure)
