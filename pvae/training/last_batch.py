"""Batches on which a pair cannot be trained, above all a last one of a single datum under BatchNorm."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import pyro
import pyro.infer
import torch
from torch import Tensor, nn

from pvae.data.batches import Batches
from pvae.graphs.trace import unchanged_buffers
from pvae.pair.contexts import FAILURES, evaluation, failure, seeded, uncompiled
from pvae.pair.parameters import Parameters
from pvae.support.batch import Batch
from pvae.training.step import Gradients, Step, eager_step, summed_bound

__all__ = ["attempt", "prepare_last_batches"]


def prepare_last_batches(
    model: Any,
    guide: Any,
    objective: pyro.infer.ELBO,
    parameters: Parameters,
    frozen: Iterable[nn.Module],
    source: Batches,
    valid: Batches | None,
) -> None:
    """Join the small last batch of an epoch to the one before it, where the pair fails on it alone.

    Of data that leave no remainder nothing is run. Weights, gradients, buffers and random states are as before
    afterwards.

    Raises: ValueError, which names batch_size, if the pair fails on the two together, too, or there is one batch only.
    """
    # An objective remembers how it ran the pair first, which is not to be on these data.
    objective = copy.copy(objective)
    leaves = list(parameters.leaves.values())
    step = eager_step(objective, model, guide, leaves)

    def train(batch: Batch) -> float:
        held = [leaf.grad for leaf in leaves]
        try:
            with evaluation(frozen):
                pulse, _ = step(batch, 1.0)
                return pulse.sum().item()
        finally:
            for leaf, gradient in zip(leaves, held, strict=True):
                leaf.grad = gradient

    def validate(batch: Batch) -> float:
        with torch.no_grad(), evaluation(parameters.modules):
            return summed_bound(objective, model, guide, batch)

    with unchanged_buffers(parameters), seeded(0, parameters.device), uncompiled():
        _settle(source, train, "train")
        if valid is not None:
            _settle(valid, validate, "validate")


def _settle(source: Batches, run: Callable[[Batch], float], verb: str) -> None:
    remainder = source.remainder
    if not remainder:
        return
    example = source.example()
    last = tuple(part[:remainder] for part in example)
    reason = _failure(run, last)
    if reason is None:
        return
    together = tuple(torch.cat(parts) for parts in zip(example, last, strict=True))
    is_only = remainder == len(example[0])
    of_both = reason if is_only else _failure(run, together)
    # What fails on a batch as large as it gets is no fault of the last one, and the first step tells of it.
    is_general = remainder > 1 if is_only else bool(of_both and _failure(run, example))
    if reason and is_general:
        return
    if reason and of_both:
        raise ValueError(
            f"cannot {verb} on the last batch, of {remainder}: the pair {reason}; choose a batch_size that leaves "
            "no such remainder, or give more data"
        )
    # What is not finite on both is not for want of data, and the loop says more of it.
    if reason or of_both is None:
        source.join_last()


def _failure(run: Callable[[Batch], float], batch: Batch) -> str | None:
    """Why a run fails on a batch, "" where its value is not finite; None where it works."""
    try:
        return None if math.isfinite(run(batch)) else ""
    except FAILURES as error:
        return str(failure(error, batch))


def attempt(
    step: Step, batch: Batch, kl_weight: Tensor | float, number: int, worked: int | None, streams: bool
) -> tuple[Tensor, Gradients]:
    """What a training step gives, or one line with the step, the shapes of the batch, and advice.

    Args:
        step: the step.
        batch: its batch.
        kl_weight: its weight of the KL.
        number: which step it is, from 1.
        worked: how many data the step before held; None at the first.
        streams: whether the batches come from a `DataLoader`.

    Raises: ValueError if the step fails, other than for a value that is not finite.
    """
    try:
        return step(batch, kl_weight)
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(f"step {number}: the pair {failure(error, batch)}") from error
    except FAILURES as error:
        if (nonfinite := _nonfinite(step, batch, kl_weight)) is not None:
            return nonfinite
        is_of_a_size = worked not in (None, len(batch[0])) or len(batch[0]) == 1
        if isinstance(error, ValueError) and "\n" not in str(error) and not is_of_a_size:
            raise
        advice = (
            "give the DataLoader drop_last=True, or a batch_size that leaves no small last batch"
            if streams
            else "choose another batch_size, or give more data"
        )
        kept = f"; the weights of step {number - 1} are kept" if number > 1 else ""
        reason = failure(error, batch, advice=advice if is_of_a_size else "")
        raise ValueError(f"step {number}: the pair {reason}{kept}") from error


def _nonfinite(step: Step, batch: Batch, kl_weight: Tensor | float) -> tuple[Tensor, Gradients] | None:
    """What a step that was refused gives without Pyro's validation, which tells of a nan in a page of numbers."""
    try:
        with pyro.validation_enabled(False):
            pulse, gradients = step(batch, kl_weight)
    except FAILURES:
        return None
    return None if pulse.isfinite()[0] else (pulse, gradients)
