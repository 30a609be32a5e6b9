"""States of the world that hold inside a `with` and are put back after it: modes, seeds, readable errors."""

from __future__ import annotations

import random
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from pvae.pair.entry import alone
from pvae.support.batch import Batch
from pvae.support.refusals import ContractError, one_line

__all__ = ["FAILURES", "called_modules", "evaluation", "failure", "in_one_line", "running", "seeded", "uncompiled"]

# What is left of a line for the shapes, and for what torch or Pyro say with a remedy behind it.
_MOST_OF_SHAPES, _MOST_OF_BOTH = 45, 165
_FIXES = {
    "Shape mismatch inside plate": "give the plate the length of the batch, and call .to_event(n) on a distribution "
    "over n dims of a datum",
    "same device": "make tensors where the batch is (x.new_zeros), and keep others in a module, as buffers",
    "positional argument": "give a tuple with as many tensors as the function takes",
    "allocate memory": "make batch_size, num_samples or the nets smaller",
    "out of memory": "make batch_size, num_samples or the nets smaller",
    "same dtype": "convert the data, as by .float(), or the nets, as by .double()",
    "scalar type": "convert the data, as by .float(), or the nets, as by .double()",
}
# What a user's function may trip over.
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)


@contextmanager
def running(what: str, batch: Batch) -> Iterator[None]:
    """Turn whatever a user's function trips over inside into one line with the shapes it was given."""
    try:
        yield
    except FAILURES as error:
        raise failure(error, batch, f"the {what} ") from error


@contextmanager
def in_one_line(batch: Batch) -> Iterator[None]:
    """Turn an error of many lines, or of another kind than ValueError, into one line with the batch's shapes."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(str(failure(error, batch, "the pair "))) from error
    except FAILURES as error:
        if isinstance(error, ValueError) and "\n" not in str(error):
            raise
        raise failure(error, batch, "the pair ") from error


def failure(error: Exception, batch: Batch, who: str = "", advice: str = "") -> ContractError:
    """What went wrong when a function ran on a batch, and what to do if that is known, on one line.

    `who` stands before it, and `advice` where no other is known.
    """
    shapes = ", ".join(str(tuple(part.shape)) for part in batch)
    # Pyro adds a table of the shapes of all sites, and torch the values that it found.
    reason = str(error).partition("Trace Shapes:")[0].partition(":\ntensor(")[0]
    fix = next((fix for words, fix in _FIXES.items() if words in reason), advice)
    reason = one_line(reason, _MOST_OF_BOTH - len(fix) - 2 * bool(fix)) or type(error).__name__
    return ContractError(f"{who}cannot run on a batch of shape {one_line(shapes, _MOST_OF_SHAPES)}: {reason}", fix)


@contextmanager
def called_modules() -> Iterator[list[nn.Module]]:
    """Collect every `nn.Module` called inside, closures included, in order of first call.

    Each is switched to evaluation with all its parts before it runs, and back at the end, so a look changes no buffer.
    What is compiled runs uncompiled.
    """
    modules: dict[int, tuple[nn.Module, bool]] = {}
    called: list[nn.Module] = []
    noted: set[int] = set()
    thread = threading.get_ident()

    def note(module: nn.Module, _: Any) -> None:
        if id(module) in noted or threading.get_ident() != thread:
            return
        # The parts of a scripted module run where no hook sees them.
        own = module.modules() if isinstance(module, torch.jit.ScriptModule) else (module,)
        called.extend(part for part in own if id(part) not in noted)
        noted.update(id(part) for part in called)
        parts = [part for part in module.modules() if id(part) not in modules]
        modules.update({id(part): (part, part.training) for part in parts})
        for part in parts:
            part.training = False

    with alone():
        hook = nn.modules.module.register_module_forward_pre_hook(note)
        try:
            with uncompiled():
                yield called
        finally:
            hook.remove()
            # A compiled module has its flag from the module inside, which may have been switched before it was noted.
            for module, training in reversed(modules.values()):
                module.training = training


@contextmanager
def uncompiled() -> Iterator[None]:
    """What the user compiled with `torch.compile` runs as it was written, so that hooks and tracers see its parts."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled, and its import takes seconds
        yield
        return
    with (
        torch.compiler.set_stance("force_eager"),
        torch._dynamo.config.patch(error_on_nested_fx_trace=False),
        warnings.catch_warnings(),
    ):
        # A hook sees a compiled module and the one inside, which is as it should be.
        warnings.filterwarnings("ignore", message="Using `torch.compile\\(module\\)` when there are global hooks")
        yield


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
    with alone(), _put_back_generators(), torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield


@contextmanager
def _put_back_generators() -> Iterator[None]:
    before = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
