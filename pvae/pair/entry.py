"""The door of a public call: one thread at a time, and nothing of the caller's contexts inside.

Pyro's param store and handlers, torch's generators and the validation switch belong to the whole process.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from pvae.support.lines import lacks_memory, one_line

__all__ = ["alone", "entry", "inside"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Handlers that change neither a value nor a weight; what pvae runs is not seen by them.
_WATCHING = frozenset({"TraceMessenger", "BlockMessenger", "SeedMessenger"})
# Modes in which tensors hold no numbers.
_TRACING = frozenset({"FakeTensorMode", "FunctionalTensorMode", "ProxyTorchDispatchMode"})
_AUTOCAST = ("cpu", "cuda", "xpu", "mps")


class _Here(threading.local):
    """How many calls and stores of pvae's this thread is inside of."""

    depth = 0


_here = _Here()
_lock = threading.RLock()


def _unlock_in_child() -> None:
    """A forked process lacks the other threads, one of which may hold the lock for ever."""
    global _lock
    if _lock.acquire(blocking=False):
        _lock.release()
    else:
        _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_in_child)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, other threads wait at the door; the same thread may enter again."""
    with _lock:
        yield


@contextmanager
def inside() -> Iterator[None]:
    """Alone, and what is called inside runs in pvae's own contexts: it does not look at them again."""
    with _lock:
        _here.depth += 1
        try:
            yield
        finally:
            _here.depth -= 1


def entry(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A public function, which gives in any thread and context what it gives by itself.

    Autocast and inference mode are off inside; where gradients are off they stay off, unless the function turns them
    on. A default dtype or device, deterministic algorithms and anomaly detection are the caller's choice and hold.

    Raises: ValueError inside what would change the numbers or leave none: a handler of Pyro's, a transform of
        `torch.func`, a tracer, the default device "meta", a default dtype of half precision; and where the memory of
        the CPU does not suffice.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        is_first = not _here.depth
        with inside():
            if is_first:
                # Pyro's handlers are known only now: they may have been those of another thread.
                _refuse(function.__name__)
            with _plain(is_first):
                try:
                    return function(*args, **kwargs)
                except RuntimeError as error:
                    if type(error) is not RuntimeError or not lacks_memory(error):
                        raise
                    raise ValueError(
                        f"pvae.{function.__name__}: the memory does not suffice; make the number of samples, "
                        f"batch_size or the nets smaller ({one_line(str(error), 160)})"
                    ) from error

    return call


def _refuse(name: str) -> None:
    """Raise ValueError where a call cannot be right."""
    if torch._C._functorch.maybe_current_level() is not None:
        raise ValueError(
            f"pvae.{name} was called inside a transform of torch.func (vmap, grad, ...), whose tensors hold no "
            "numbers of their own; call it outside"
        )
    if (tracer := _tracer()) is not None:
        raise ValueError(f"pvae.{name} was called inside {tracer}, where tensors hold no numbers; call it outside")
    if torch.get_default_device().type == "meta":
        raise ValueError(
            f"pvae.{name} was called under the default device 'meta', whose tensors hold no numbers; call it outside, "
            "or torch.set_default_device('cpu') before"
        )
    if (dtype := torch.get_default_dtype()) not in (torch.float32, torch.float64):
        raise ValueError(
            f"pvae.{name} was called under the default dtype {dtype}, too coarse for log densities; "
            "torch.set_default_dtype(torch.float32) before, and use torch.autocast inside a net"
        )
    for handler in _PYRO_STACK:
        if (kind := type(handler).__name__) not in _WATCHING:
            what = kind.removesuffix("Messenger").lower()
            raise ValueError(
                f"pvae.{name} was called inside Pyro's handler {what}, which would change what it computes; call it "
                f"outside, and put the handler around the model or guide that you give"
            )


def _tracer() -> str | None:
    """What records operations in place of running them, if anything does."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return "torch.jit.trace"
    if torch.compiler.is_compiling():
        return "torch.compile"
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return "the capture of a CUDA graph"
    modes = (type(mode).__name__ for mode in _get_current_dispatch_mode_stack())
    return next((mode for mode in modes if mode in _TRACING), None)


def _autocasts() -> int:
    """How many autocasts there are around, whether they are on or off."""
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth - 1


@contextmanager
def _plain(is_first: bool) -> Iterator[None]:
    """Neither autocast nor inference mode, nor the caller's handlers; those of pvae's own runs stay."""
    with ExitStack() as stack:
        # Inside autocast, casts of weights are kept until its end: these may be trained meanwhile, and be read by a net
        # that has an autocast of its own.
        if _autocasts():
            stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
            stack.callback(torch.clear_autocast_cache)
            torch.clear_autocast_cache()
            torch.set_autocast_cache_enabled(False)
        for device in _AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        # As are weights that are computed from others, inside `parametrize.cached`.
        if parametrize._cache_enabled:
            stack.callback(setattr, parametrize, "_cache_enabled", parametrize._cache_enabled)
            stack.callback(parametrize._cache.clear)
            parametrize._cache_enabled = 0
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(False))
        if is_first and _PYRO_STACK:
            stack.callback(_PYRO_STACK.extend, [*_PYRO_STACK])
            _PYRO_STACK.clear()
        yield
