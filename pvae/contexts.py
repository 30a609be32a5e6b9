"""States of the world that hold inside a `with` and are put back after it: modes, seeds, readable errors."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["called_modules", "evaluation", "failure", "running", "seeded"]

Batch = tuple[Tensor, ...]


@contextmanager
def running(what: str, batch: Batch) -> Iterator[None]:
    """Turn whatever a user's function trips over inside into one line with the shapes it was given."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"the {what} {failure(error, batch)}") from error


def failure(error: Exception, batch: Batch) -> str:
    """What went wrong when a function ran on a batch, and what to do if that is known, on one line."""
    shapes = ", ".join(str(tuple(part.shape)) for part in batch)
    reason = " ".join(str(error).split()) or type(error).__name__
    fix = ""
    if "Shape mismatch inside plate" in reason:
        fix = "; give the plate the length of the batch, and call .to_event(n) on a distribution over n dims of a datum"
    if "same device" in reason:
        fix = "; make tensors where the batch is (x.new_zeros), and hold those that are kept in a module, as buffers"
    if "positional argument" in reason:
        fix = "; give a tuple with as many tensors as the function takes"
    return f"cannot run on a batch of shape {shapes}: {reason}{fix}"


@contextmanager
def called_modules() -> Iterator[list[nn.Module]]:
    """Collect every `nn.Module` called inside, closures included, in order of first call.

    Each is switched to evaluation before it runs, and back at the end, so a look changes no buffer.
    """
    modules: dict[int, tuple[nn.Module, bool]] = {}
    called: list[nn.Module] = []

    def note(module: nn.Module, _: Any) -> None:
        if id(module) not in modules:
            modules[id(module)] = module, module.training
            called.append(module)
            module.training = False

    hook = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield called
    finally:
        hook.remove()
        for module, training in modules.values():
            module.training = training


@contextmanager
def evaluation(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Switch `modules` to evaluation inside (dropout off, batch statistics frozen)."""
    before = [(module, module.training) for module in modules]
    for module, _ in before:
        module.training = False
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Draw from `seed` inside; the generators of torch, numpy and Python are as before afterwards."""
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
