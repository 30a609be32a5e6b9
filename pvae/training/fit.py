"""Training any pair with any objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import pyro
import pyro.infer
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import pvae
from pvae.data.batches import Batches, Data
from pvae.data.dataset import DataSet
from pvae.data.supports import require_support
from pvae.objectives.elbo import ELBO
from pvae.objectives.objective import Objective
from pvae.pair.contexts import FAILURES, evaluation, seeded
from pvae.pair.entry import alone, entry
from pvae.pair.parameters import find_and_place, frozen_modules
from pvae.pair.store import Bare, bare_parameters, private_store
from pvae.runs.writer import RunWriter
from pvae.support.arguments import check_pair, check_seed
from pvae.support.progress import Progress
from pvae.support.refusals import choice, flag, number, one_line, shown, whole
from pvae.training.arguments import check_functions, check_lengths, check_suited
from pvae.training.contract import require_contract
from pvae.training.last_batch import prepare_last_batches
from pvae.training.length import Length
from pvae.training.loop import Loop, Record, StepMode
from pvae.training.turns import Turns, turns_for
from pvae.training.validation import Validation

__all__ = ["FitResult", "fit"]


@dataclass(frozen=True)
class FitResult:
    """What training gave; the pair itself is trained in place.

    Pyro's own tools see the trained modules. They see the trained values of bare `pyro.param` statements after
    `to_store()`, which puts those in Pyro's param store:

        result = pvae.fit(model, guide, x, epochs=10)
        result.to_store()
        draws = pyro.infer.Predictive(model, guide=guide, num_samples=100)(x)

    Attributes:
        model: the model, as given.
        guide: the guide, as given.
        history: one record per epoch: epoch, step, train_bound and valid_bound in nats per datum, lr,
            kl_weight, seconds. Of an adversarial objective the two are its value as its discriminator sees it, which is
            no bound and does not compare between epochs.
        losses: the loss of every step, nats per datum, (steps,).
        best_epoch: the epoch whose weights the pair now has (with early stopping), else the last.
        parameters: the trained values by Pyro's name (a copy, within their constraints), `pyro.param`s included.
        step_mode: how steps ran in the end: "eager", "traced", "compiled" or "graph".
        data: the record of what was trained on.
        bare: of each bare `pyro.param`, by name, the unconstrained tensor that was trained and its constraint.
    """

    model: Any
    guide: Any
    history: list[Record]
    losses: Tensor
    best_epoch: int
    parameters: dict[str, Tensor]
    step_mode: str
    data: dict[str, Any]
    bare: Bare = field(default_factory=dict)

    def to_store(self) -> None:
        """Put the trained bare `pyro.param`s, with their constraints, into Pyro's param store.

        What Pyro then trains further is what pvae evaluates, as with modules. A later `fit` leaves the store as it is.
        """
        with alone():
            store = pyro.get_param_store()
            for name, (leaf, constraint) in self.bare.items():
                if name in store:
                    del store[name]
                store.set_state({"params": {name: leaf}, "constraints": {name: constraint}})


@entry
def fit(
    model: Any,
    guide: Any,
    data: Data,
    *,
    objective: pyro.infer.ELBO | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 100,
    lr: float = 1e-3,
    optimizer: Callable[[Iterable[Tensor]], Optimizer] | None = None,
    schedule: Literal["cosine"] | Callable[[Optimizer], LRScheduler] | None = None,
    kl_schedule: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    ema: float | None = None,
    early_stopping: int | None = None,
    inference_steps: int | Turns = 1,
    train: Literal["both", "guide"] = "both",
    step_mode: StepMode = "auto",
    device: torch.device | str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    callbacks: Sequence[Callable[[Record], object]] = (),
    progress: bool = True,
) -> FitResult:
    """Train a pair in place so that the objective, a bound on log p(x), becomes as large as possible.

    Parameters with `requires_grad` False stay as they are. The loss is minus the bound, as a mean per datum. Pyro's
    param store, torch's random state and all other global state are as before afterwards; the same seed gives the same
    weights, with another number of threads or on another machine to rounding. Calls from several threads run one after
    the other. Inside `torch.no_grad`, `torch.inference_mode` and `torch.autocast`, too, it trains in full precision.

    Args:
        model: any Pyro model within the contract of a pair.
        guide: its guide; None draws latents from the model's own prior, as objectives without a guide do.
        data: a tensor or array of numpy, a tuple of them, a `DataSet` (its train split, and its valid split if there is
            one) or a `DataLoader`, of an `IterableDataset`, too: an epoch is then one pass over it.
        objective: one of `pvae.objectives`, or one of Pyro's own; by default `ELBO()`.
        epochs: passes over the data; give this or `steps`.
        steps: training steps.
        batch_size: data per step; a `DataLoader` keeps its own. The last batch of an epoch holds what is left; where
            the pair fails on so few alone, as BatchNorm does on one datum, they join the batch before it in every
            epoch. So they do in validation.
        lr: learning rate of the default optimizer.
        optimizer: from parameters to a torch optimizer; by default fused Adam with `lr`.
        schedule: "cosine" (to 0 at the end), or from an optimizer to a torch scheduler, stepped after every
            training step (`ReduceLROnPlateau`: after every epoch, on minus the validation bound).
        kl_schedule: from the step to the KL's weight (`pvae.training.linear_warmup`); reported bounds never use it.
        clip_norm: largest norm of all gradients together.
        ema: decay of a moving average of the weights, which validation and the trained pair then use.
        early_stopping: epochs without a better validation bound to wait; the best weights are restored. Not for
            adversarial objectives.
        inference_steps: train the guide alone on all but every n-th step; or `pvae.training.Alternating` turns of
            guide and model, or `pvae.training.Aggressive` ones, until the mutual information of x and z stops rising.
        train: "guide" trains the guide's own parameters against the model as it is, whose nets stay in evaluation mode:
            a better proposal for log p(x).
        step_mode: "eager" runs the pair's functions at every step, "traced" a flat graph of their tensor operations,
            "compiled" that graph compiled by inductor, "graph" the compiled one as a CUDA graph. "auto" traces a shape
            of batches, from its second step on, where the steps of that shape that can still be expected pay for it;
            compiles by the same rule, and captures on a GPU. All draw the same random numbers and agree to rounding;
            "auto" goes by the clock, so name a mode to repeat a run bit by bit.
        device: where to train; by default where the pair is.
        seed: of the order of data, binarisation, and all draws.
        out: a new folder for metrics.jsonl, config.json and checkpoint.safetensors.
        callbacks: called with each epoch's record; one that returns True stops training.
        progress: show a bar on a terminal.

    Raises:
        ValueError: for arguments out of range, data that are empty or not finite, and a pair that breaks the
            contract (`pvae.check` lists all findings); for a batch that a step cannot run on, with the step, the
            shapes, and what to change. The pair keeps the weights it had before that step.
        FloatingPointError: at the first loss, gradient or learning rate that is not finite, with the step, the site and
            the parameter; the pair keeps the weights it had before that step. At the end of an epoch for a parameter
            that is not finite any more, where those from before are gone, but for the best ones under early stopping;
            and for a validation bound that is nan.
    """
    check_pair(model, guide)
    check_lengths(epochs, steps, early_stopping)
    lr = number("lr", lr, above=0, usual=1e-3)
    clip_norm = None if clip_norm is None else number("clip_norm", clip_norm, above=0, usual=10)
    ema = None if ema is None else number("ema", ema, above=0, below=1, usual=0.999)
    seed, progress = check_seed(seed), flag("progress", progress)
    batch_size = whole("batch_size", batch_size, usual=100)
    choice("step_mode", step_mode, get_args(StepMode))
    turns = turns_for(inference_steps)
    if choice("train", train, ("both", "guide")) == "guide" and type(turns) is not Turns:
        raise ValueError("train='guide' moves the guide alone, inference_steps says whose turn it is; give one of them")
    check_functions(objective, optimizer, schedule, kl_schedule, callbacks)
    objective = ELBO() if objective is None else objective
    check_suited(objective, guide, kl_schedule, step_mode, early_stopping)
    source = Batches(data, batch_size, "train")
    valid = Batches(data, batch_size, "valid") if isinstance(data, DataSet) and data.valid is not None else None
    if early_stopping is not None and valid is None:
        raise ValueError("early_stopping needs a validation split; give a DataSet(name, train=..., valid=...)")
    writer = RunWriter(out)

    with private_store(model, guide, keep=True), torch.enable_grad(), Progress(progress) as bar:
        parameters = find_and_place(model, guide, source, device)
        if not parameters.leaves:
            held = f" and {len(parameters.frozen)} frozen ones" if parameters.frozen else ""
            fix = "call requires_grad_(True) on what to train" if held else "register its nets with pyro.module"
            raise ValueError(f"the pair has no parameters to train{held}; {fix}")
        parameters.require_writable()
        if valid is not None:
            valid.to(parameters.device)
        if step_mode == "graph" and parameters.device.type != "cuda":
            raise ValueError(
                f"step_mode 'graph' needs a CUDA device, the pair is on {parameters.device}; use 'compiled'"
            )
        require_contract(model, guide, source.example(), objective)
        watch = require_support(model, source, guide)
        if valid is not None:
            try:
                require_support(model, valid, guide)
            except ValueError as error:
                raise ValueError(f"the validation split: {error}") from error
        trained = parameters
        for name, module in (objective.companions if isinstance(objective, Objective) else {}).items():
            trained = trained.joined_by(name, module.to(parameters.device))
        frozen = frozen_modules(trained) if train == "guide" else ()
        prepare_last_batches(model, guide, objective, trained, frozen, source, valid)
        length = Length(epochs, steps, source.num_batches)
        loop = Loop(model, guide, objective, trained, step_mode, clip_norm, turns, train, kl_schedule, length)
        loop.require_information(source.example())
        validation = None
        if valid is not None:
            validation = Validation(model, guide, objective, trained, valid, early_stopping)
        with _built_from_functions():
            loop.prepare(optimizer, lr, schedule, ema)
        if schedule is not None and not callable(getattr(loop.scheduler, "step", None)):
            raise ValueError(f"schedule must make a torch scheduler, got {shown(loop.scheduler)}; try 'cosine'")
        callbacks = [*callbacks, *writer.of_epochs()]
        source.reseed(seed)
        with seeded(seed, parameters.device), loop.gradients_put_back(), evaluation(loop.frozen):
            history, best_epoch = loop.run(source, validation, watch, callbacks, bar)
        values = {name: parameters.value(name).detach().clone() for name in parameters.leaves}
        bare = bare_parameters()
        record = {
            "pvae": pvae.__version__,
            "torch": torch.__version__,
            "objective": type(objective).__name__,
            "data": source.describe(),
            "seed": seed,
            "batch_size": batch_size,
            "steps": loop.step_count,
            "step_mode": loop.step.mode,
            "best_epoch": best_epoch,
        }
        writer.end(parameters, source.example(), record)
    return FitResult(
        model=model,
        guide=guide,
        history=history,
        losses=torch.tensor(loop.ledger.losses, dtype=torch.float64, device="cpu"),
        best_epoch=best_epoch,
        parameters=values,
        step_mode=loop.step.mode,
        data=source.describe(),
        bare=bare,
    )


@contextmanager
def _built_from_functions() -> Iterator[None]:
    """Say in one line what the functions trip over that make optimizer and scheduler."""
    try:
        yield
    except FAILURES as error:
        if isinstance(error, ValueError) and "\n" not in str(error):
            raise
        raise ValueError(f"optimizer or schedule fails when it is called: {one_line(str(error), 200)}") from error
