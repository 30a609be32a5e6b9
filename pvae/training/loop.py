"""The training loop: what repeats between the first look at a pair and the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any, Literal

import pyro
import pyro.infer
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pvae.data.batches import Batches
from pvae.data.supports import SupportWatch
from pvae.objectives.objective import Objective
from pvae.pair.aggregate import information
from pvae.pair.contexts import evaluation, seeded
from pvae.pair.parameters import Parameters, frozen_modules
from pvae.pair.soundness import Watch
from pvae.support.batch import Batch
from pvae.support.progress import Progress
from pvae.training.average import WeightAverage
from pvae.training.last_batch import attempt
from pvae.training.ledger import Ledger
from pvae.training.length import Length
from pvae.training.nonfinite import describe_nonfinite
from pvae.training.schedules import cosine, weight_at
from pvae.training.step import Gradients, Step, TracedStep, eager_step
from pvae.training.turns import Turn, Turns
from pvae.training.update import Update, require_optimizer
from pvae.training.validation import Validation

__all__ = ["Loop", "Record", "StepMode"]

StepMode = Literal["auto", "eager", "traced", "compiled", "graph"]
Record = dict[str, Any]
_DATA_TO_MEASURE = 500
_STEPS_PER_LOOK = 20


class Loop:
    """The state of one training run."""

    def __init__(
        self,
        model: Any,
        guide: Any,
        objective: pyro.infer.ELBO,
        parameters: Parameters,
        step_mode: StepMode,
        clip_norm: float | None,
        turns: Turns,
        train: Literal["both", "guide"],
        kl_schedule: Callable[[int], float] | None,
        length: Length,
    ) -> None:
        self.model, self.guide, self.objective, self.parameters = model, guide, objective, parameters
        self.turns, self.kl_schedule, self.length = deepcopy(turns), kl_schedule, length
        own: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, leaf in parameters.leaves.items():
            own[name in parameters.guide_only].append(leaf)
        asks_for_guide = train == "guide" or turns.measures_information or type(turns) is not Turns
        if guide is None and asks_for_guide and (turns.measures_information or not own[True]):
            raise ValueError(
                f"{'train' if train == 'guide' else 'inference_steps'} asks to train a guide by itself, and there is "
                "none (guide is None); give a guide such as pvae.guides.MeanField(model, example_batch), or leave "
                f"{'train' if train == 'guide' else 'inference_steps'} out"
            )
        if not own[True] and asks_for_guide:
            raise ValueError(
                f"{'train' if train == 'guide' else 'inference_steps'} asks to train the guide alone, and the guide "
                "has no parameter that the model does not register too; register the guide's nets in the guide only"
            )
        self.leaves = own[True] if train == "guide" else list(parameters.leaves.values())
        self.frozen = frozen_modules(parameters) if train == "guide" else ()
        self.step_count = 0
        self._length: int | None = None
        self._streams = False
        self._seen: list[Batch] = []
        self.ledger = Ledger(parameters.device)
        self.step = self._make_step(step_mode, self.leaves, clip_norm)
        self.steps: dict[Turn, Step] = {"both": self.step}
        if type(turns) is not Turns:
            self.steps["guide"] = self._make_step(step_mode, own[True], clip_norm)
            self.steps["model"] = self._make_step(step_mode, own[False], clip_norm) if own[False] else self.step

    def _make_step(self, step_mode: StepMode, leaves: list[Tensor], clip_norm: float | None) -> Step:
        eager = eager_step(self.objective, self.model, self.guide, leaves, clip_norm)
        if step_mode == "eager" or not isinstance(self.objective, Objective):
            return eager
        return TracedStep(eager, self.parameters, step_mode, lambda: self.length.left(self.step_count))

    def prepare(
        self,
        optimizer: Callable[[Iterable[Tensor]], Optimizer] | None,
        lr: float,
        schedule: Literal["cosine"] | Callable[[Optimizer], LRScheduler] | None,
        ema: float | None,
    ) -> None:
        """Build the optimizer and what goes with it over the parameters that were found."""
        fused = all(leaf.is_floating_point() for leaf in self.leaves)
        make = optimizer or (lambda leaves: torch.optim.Adam(leaves, lr=lr, fused=fused))
        self.optimizer = make(self.leaves)
        require_optimizer(self.optimizer, self.leaves)
        make_scheduler = cosine(self.length.known("schedule='cosine'")) if schedule == "cosine" else schedule
        self.scheduler = make_scheduler(self.optimizer) if make_scheduler else None
        self.update = Update(self.optimizer)
        self.average = WeightAverage(self.leaves, ema) if ema is not None else None
        self.watch = Watch(self.parameters)
        # Only a function of the user's that runs between steps can change what the pair reads.
        self.looks_always = any(map(callable, (optimizer, schedule, self.kl_schedule)))

    @contextmanager
    def gradients_put_back(self) -> Iterator[None]:
        """The gradients that the user had on the parameters are there again afterwards."""
        # Pyro's objectives call `backward`, which also reaches parameters that are not trained now.
        held = [(leaf, leaf.grad) for leaf in self.parameters.leaves.values()]
        try:
            yield
        finally:
            for leaf, gradient in held:
                leaf.grad = gradient

    def run(
        self,
        source: Batches,
        valid: Validation | None,
        watch: SupportWatch,
        callbacks: Sequence[Callable[[Record], object]],
        bar: Progress,
    ) -> tuple[list[Record], int]:
        """Train to the end; returns the history and the epoch whose weights the pair ends with."""
        history: list[Record] = []
        self._streams = source.runs_user_code
        looked = 0
        task = bar.task("training", self.length.total)
        started = time.perf_counter()
        while not self.length.is_reached(len(history), self.step_count):
            epoch = len(history) + 1
            train_bound = self._epoch(source, watch, lambda: bar.advance(task))
            best = (0, None) if valid is None else (valid.best_epoch, valid.best)
            # Where nothing else happens after a short epoch, the next loss tells as much.
            is_last = self.length.is_reached(epoch, self.step_count)
            if is_last or callbacks or valid is not None or self.step_count - looked >= _STEPS_PER_LOOK:
                self.watch.require(epoch, self.step_count, "update; try a lower lr or clip_norm=10", *best)
                looked = self.step_count
            self.turns.end_epoch(self._mutual_information)
            valid_bound = None if valid is None else valid.bound(epoch, train_bound, self._averaged())
            seconds = time.perf_counter() - started
            self.length.end_epoch(epoch, self.step_count)
            history.append(
                {
                    "epoch": epoch,
                    "step": self.step_count,
                    "train_bound": train_bound,
                    "valid_bound": valid_bound,
                    "lr": self.optimizer.param_groups[0]["lr"],
                    "kl_weight": self._kl_weight(),
                    "seconds": seconds,
                }
            )
            bar.advance(task, 0, _note(history[-1]))
            if isinstance(self.scheduler, ReduceLROnPlateau):
                self.scheduler.step(-(train_bound if valid_bound is None else valid_bound))
            stop = [callback(history[-1]) is True for callback in callbacks]
            if valid is not None and valid_bound is not None:
                stop.append(valid.ends(epoch, valid_bound, self._averaged()))
            if any(stop):
                break
        best_epoch = len(history)
        if valid is not None and valid.best is not None:
            self.parameters.load(valid.best)
            best_epoch = valid.best_epoch
        elif self.average is not None:
            self.average.adopt()
        self.watch.require(len(history), self.step_count, "callbacks or the moving average; look at what they write")
        return history, best_epoch

    def _epoch(self, source: Batches, require_support: SupportWatch, tick: Callable[[], None]) -> float:
        first = self.step_count
        look_always = self.looks_always or source.runs_user_code
        self._seen = []
        num_seen = 0
        for batch in source.epoch(shuffle=True):
            if self.step_count == self.length.steps:
                break
            if self._streams:
                require_support(batch, num_seen)
                num_seen += len(batch[0])
            if len(self._seen) * len(batch[0]) < _DATA_TO_MEASURE:
                self._seen.append(batch)
            self._train_step(batch, look=look_always or self.step_count == first)
            tick()
        self._read()
        return -self.ledger.mean(first)

    def _train_step(self, batch: Batch, look: bool) -> None:
        weight = torch.tensor(self._kl_weight(), device=batch[0].device) if self.kl_schedule else 1.0
        step = self.steps[self.turns.turn()]
        if look:
            step.look()
        pulse, gradients = self._run(step, batch, weight)
        self.step_count += 1
        self.update.require_rate(self.step_count)
        if pulse.is_cuda and self.update.is_fused and not self.turns.needs_losses:
            self.turns.note(math.nan)
            is_due = self.ledger.add(pulse, batch)
            self.update(step.leaves, gradients, self.ledger.broken)
            if is_due:
                self._read()
        else:
            loss, norm, report = pulse.tolist()
            if not math.isfinite(loss + norm):
                self._refuse(self.step_count, loss, norm, batch, step.leaves, gradients)
            self.ledger.note(loss, report, len(batch[0]))
            self.turns.note(loss)
            self.update(step.leaves, gradients)
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        if self.average is not None:
            self.average.update()

    def _run(self, step: Step, batch: Batch, weight: Tensor | float) -> tuple[Tensor, Gradients]:
        found = attempt(step, batch, weight, self.step_count + 1, self._length, self._streams)
        self._length = len(batch[0])
        return found

    def _read(self) -> None:
        bad = self.ledger.read()
        if bad is not None:
            # The weights are those of the step before, so its gradients can be had again.
            _, gradients = self._run(self.step, bad[-1], 1.0)
            self._refuse(*bad, self.leaves, gradients)

    def _refuse(
        self,
        number: int,
        loss: float,
        norm: float,
        batch: Batch,
        leaves: Sequence[Tensor],
        gradients: Gradients,
    ) -> None:
        names = {id(leaf): name for name, leaf in self.parameters.leaves.items()}
        moved = {names[id(leaf)]: leaf for leaf in leaves}
        where = describe_nonfinite(self.model, self.guide, batch, moved, gradients)
        raise FloatingPointError(
            f"step {number}: loss {loss:.4g}, gradient norm {norm:.4g}; {where}. The weights of "
            f"step {number - 1} are kept; try a lower lr, clip_norm=10, or a larger floor on scales"
        )

    def require_information(self, batch: Batch) -> None:
        """Raise ValueError if turns ask for the mutual information of a guide that has none; call before `run`."""
        if not self.turns.measures_information:
            return
        self._seen = [batch]
        try:
            self._mutual_information()
        except ValueError as error:
            raise ValueError(f"inference_steps measures I(x; z) of the guide, and cannot: {error}") from error

    def _mutual_information(self) -> float:
        """I(x; z) of the guide on the first data of the epoch, nets in evaluation mode, fixed draws."""
        device = self.parameters.device
        with torch.no_grad(), seeded(0, device), evaluation(self.parameters.modules):
            return information(self.guide, self._seen).mean().item()

    def _kl_weight(self) -> float:
        return 1.0 if self.kl_schedule is None else weight_at(self.kl_schedule, self.step_count)

    def _averaged(self) -> Any:
        return self.average.applied() if self.average is not None else nullcontext()


def _note(record: Mapping[str, Any]) -> str:
    rate = record["step"] / record["seconds"]
    valid = "" if record["valid_bound"] is None else f", valid {record['valid_bound']:.2f}"
    return f"epoch {record['epoch']}: train {record['train_bound']:.2f}{valid} nats, {rate:.0f} steps/s"
