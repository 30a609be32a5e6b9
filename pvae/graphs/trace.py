"""Tracing a function that runs a pair: from Pyro's handlers to tensor operations, or the reason why not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pvae.graphs.flatten import flatten
from pvae.pair.contexts import seeded, uncompiled
from pvae.pair.parameters import Parameters
from pvae.pair.python_state import settings_of

__all__ = ["Function", "Untraceable", "trace", "unchanged_buffers"]

# From tensors to tensors; what it reads besides is the parameters of a pair. The first output is compared.
Function = Callable[..., Sequence[Tensor | None]]


class Untraceable(Exception):
    """No graph of tensor operations does what the function does; the message says why."""


def trace(function: Function, parameters: Parameters, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of `function(*inputs)`; it takes the leaves of the pair first, then the inputs.

    Handlers, distributions and the param store are gone; random operations stay in the graph and draw afresh at each
    call. The graph has to repeat the first output of the function from the same random state.

    Raises: Untraceable for a function that branches on data, draws outside torch, or changes its own attributes.
    """
    leaves = [*parameters.leaves.values()]
    device = inputs[0].device
    functions, modules = parameters.functions, parameters.modules
    with unchanged_buffers(parameters), seeded(0, device), uncompiled():
        draws, settings = _draws_outside_torch(), settings_of(functions, modules)
        expected = function(*inputs)[0]
        if _draws_outside_torch() != draws:
            raise Untraceable("it draws random numbers from numpy or Python, which a graph would freeze")
        if settings_of(functions, modules) != settings:
            raise Untraceable("it changes its own attributes when it runs, which a graph would not")
    try:
        # Another seed than that of the comparison, so that nothing random passes for a constant; and one thread, where
        # a GPU's backward passes have their own.
        with (
            unchanged_buffers(parameters),
            seeded(1, device),
            pyro.validation_enabled(False),
            uncompiled(),
            torch.autograd.set_multithreading_enabled(False),
        ):
            graph = flatten(make_fx(function)(*inputs), leaves)
        with unchanged_buffers(parameters), seeded(0, device), torch.no_grad():
            found = graph(*leaves, *inputs)[0]
    except Exception as error:  # whatever tracing trips over, the function itself is right
        raise Untraceable(" ".join(str(error).split())[:200]) from error
    if expected is None or not torch.allclose(found, expected, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise Untraceable(f"its graph gives {_first(found)}, the pair itself {_first(expected)}")
    return graph


@contextmanager
def unchanged_buffers(parameters: Parameters) -> Iterator[None]:
    """The buffers of the pair are as before afterwards."""
    # Those that were made in inference mode cannot be changed outside of it.
    before = [(buffer, buffer.clone()) for buffer in parameters.buffers.values() if not buffer.is_inference()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _draws_outside_torch() -> tuple[Any, ...]:
    """The state of the generators that no graph holds."""
    return random.getstate(), str(np.random.get_state(legacy=False))


def _first(values: Tensor | None) -> str:
    return "nothing" if values is None else f"{values.flatten()[0].item():.6g}"
