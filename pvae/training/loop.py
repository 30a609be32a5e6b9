"""The training loop: what repeats between the first look at a pair and the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import pyro
import pyro.infer
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pvae.contexts import evaluation, seeded
from pvae.data.batches import Batches
from pvae.objectives.objective import Objective
from pvae.params import Parameters
from pvae.progress import Progress
from pvae.training.average import WeightAverage
from pvae.training.nonfinite import describe_nonfinite
from pvae.training.step import EagerStep, PyroStep, Step, TracedStep

__all__ = ["Loop", "Record", "StepMode"]

StepMode = Literal["auto", "eager", "traced"]
Record = dict[str, Any]


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
        inference_steps: int,
        kl_schedule: Callable[[int], float] | None,
    ) -> None:
        self.model, self.guide, self.objective, self.parameters = model, guide, objective, parameters
        self.clip_norm, self.inference_steps, self.kl_schedule = clip_norm, inference_steps, kl_schedule
        self.leaves = list(parameters.leaves.values())
        self.for_guide = [name in parameters.guide_only for name in parameters.leaves]
        self.step = self._make_step(step_mode)
        self.step_count = 0
        self.losses: list[float] = []

    def _make_step(self, step_mode: StepMode) -> Step:
        objective = self.objective
        if not isinstance(objective, Objective):
            return PyroStep(objective, self.model, self.guide, self.parameters)

        def loss(batch: tuple[Tensor, ...], kl_weight: Tensor | float) -> Tensor:
            return -objective.bound(self.model, self.guide, batch, kl_weight).mean()

        eager = EagerStep(loss, self.parameters)
        return eager if step_mode == "eager" else TracedStep(eager, self.parameters)

    def prepare(
        self,
        optimizer: Callable[[Iterable[Tensor]], Optimizer] | None,
        lr: float,
        schedule: Callable[[Optimizer], LRScheduler] | None,
        ema: float | None,
    ) -> None:
        """Build the optimizer and what goes with it over the parameters that were found."""
        fused = all(leaf.is_floating_point() for leaf in self.leaves)
        make = optimizer or (lambda leaves: torch.optim.Adam(leaves, lr=lr, fused=fused))
        self.optimizer = make(self.leaves)
        if not isinstance(self.optimizer, Optimizer):
            raise ValueError(
                f"optimizer must make a torch optimizer from parameters, got {type(self.optimizer).__name__}; "
                "give for example lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)"
            )
        self.scheduler = schedule(self.optimizer) if schedule else None
        self.average = WeightAverage(self.leaves, ema) if ema is not None else None

    @contextmanager
    def gradients_put_back(self) -> Iterator[None]:
        """The gradients that the user had on the parameters are there again afterwards."""
        held = [leaf.grad for leaf in self.leaves]
        try:
            yield
        finally:
            for leaf, gradient in zip(self.leaves, held, strict=True):
                leaf.grad = gradient

    def run(
        self,
        source: Batches,
        valid: Batches | None,
        total: int,
        patience: int | None,
        callbacks: Sequence[Callable[[Record], object]],
        bar: Progress,
    ) -> tuple[list[Record], int]:
        """Train for `total` steps; returns the history and the epoch whose weights the pair ends with."""
        history: list[Record] = []
        best, best_epoch, best_state = -torch.inf, 0, None
        task = bar.task("training", total)
        started = time.perf_counter()
        while self.step_count < total:
            train_bound = self._epoch(source, total, lambda: bar.advance(task))
            valid_bound = self._validate(valid) if valid is not None else None
            seconds = time.perf_counter() - started
            epoch = len(history) + 1
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
            if patience is not None and valid_bound is not None:
                if valid_bound > best:
                    best, best_epoch = valid_bound, epoch
                    with self._averaged():
                        best_state = {name: value.clone() for name, value in self.parameters.state().items()}
                stop.append(epoch - best_epoch >= patience)
            if any(stop):
                break
        if best_state is not None:
            self.parameters.load(best_state)
        elif self.average is not None:
            self.average.adopt()
        return history, best_epoch or len(history)

    def _epoch(self, source: Batches, total: int, tick: Callable[[], None]) -> float:
        loss_sum, num_data = 0.0, 0
        for batch in source.epoch(shuffle=True):
            if self.step_count == total:
                break
            loss_sum += self._train_step(batch) * len(batch[0])
            num_data += len(batch[0])
            tick()
        return -loss_sum / num_data

    def _train_step(self, batch: tuple[Tensor, ...]) -> float:
        weight = torch.tensor(self._kl_weight(), device=batch[0].device) if self.kl_schedule else 1.0
        try:
            loss, gradients = self.step(batch, weight)
        except ValueError:
            # Pyro's validation refuses a nan with a page of numbers; without it, the loss shows what it is.
            with pyro.validation_enabled(False):
                loss, gradients = self.step(batch, weight)
            if torch.isfinite(loss):
                raise
        self.step_count += 1
        if self.step_count % self.inference_steps:
            gradients = [g if own else None for g, own in zip(gradients, self.for_guide, strict=True)]
        norm = get_total_norm([gradient for gradient in gradients if gradient is not None])
        value = loss.item()
        if not torch.isfinite(loss + norm):
            where = describe_nonfinite(self.model, self.guide, batch, self.parameters.leaves, gradients)
            raise FloatingPointError(
                f"step {self.step_count}: loss {value:.4g}, gradient norm {norm.item():.4g}; {where}. The weights of "
                f"step {self.step_count - 1} are kept; try a lower lr, clip_norm=10, or a larger floor on scales"
            )
        shrink = None if self.clip_norm is None else (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            # Not in place: two leaves may have been given one and the same gradient.
            leaf.grad = gradient if shrink is None or gradient is None else gradient * shrink
        self.optimizer.step()
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        if self.average is not None:
            self.average.update()
        self.losses.append(value)
        return value

    def _kl_weight(self) -> float:
        return float(self.kl_schedule(self.step_count)) if self.kl_schedule else 1.0

    def _validate(self, valid: Batches) -> float:
        """The objective per datum on the validation split: nets in evaluation mode, KL weight 1, fixed draws."""
        total, num_data = 0.0, 0
        device = self.parameters.device
        valid.reseed(0)
        with torch.no_grad(), seeded(0, device), evaluation(self.parameters.modules), self._averaged():
            for batch in valid.epoch():
                if isinstance(self.objective, Objective):
                    total += self.objective.bound(self.model, self.guide, batch).sum().item()
                else:
                    total -= float(self.objective.loss(self.model, self.guide, *batch))  # type: ignore[attr-defined]
                num_data += len(batch[0])
        return total / num_data

    def _averaged(self) -> Any:
        return self.average.applied() if self.average is not None else nullcontext()


def _note(record: Mapping[str, Any]) -> str:
    rate = record["step"] / record["seconds"]
    valid = "" if record["valid_bound"] is None else f", valid {record['valid_bound']:.2f}"
    return f"epoch {record['epoch']}: train {record['train_bound']:.2f}{valid} nats, {rate:.0f} steps/s"
