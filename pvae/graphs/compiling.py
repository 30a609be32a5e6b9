"""Compiling a traced graph with inductor: fewer, fused kernels, for a price in seconds that is known beforehand."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._triton import has_triton

__all__ = ["compile_graph", "compiler_present", "seconds_to_compile"]

Call = Callable[..., Sequence[Any]]

# Measured on two cores without inductor's cache on disk: 8 s for the first graph of a process (the import of inductor
# and a precompiled header), and 2 to 4 s for one of 110 to 180 nodes.
_SECONDS_FIRST, _SECONDS_PER_NODE = 8.0, 0.025
_OPTIONS: dict[str, Any] = {
    # Without it inductor draws from a generator of its own, and modes would not agree.
    "fallback_random": True,
    # One graph is called with one shape, by us: what would be checked at every call, and takes a tenth of it, holds.
    "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
    "size_asserts": False,
    "scalar_asserts": False,
    "alignment_asserts": False,
}


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Call:
    """The graph as one compiled function, compiled for these inputs' shapes, and run once on them.

    It draws the same random numbers as the graph. Call it under `no_grad`, with the same shapes: it has no guards,
    so it is never compiled again.
    """
    # The first compilation of a process turns the checks of all distributions off.
    validates = torch.distributions.Distribution._validate_args
    call = torch.compile(
        graph.forward,
        fullgraph=True,
        dynamic=False,
        options=_OPTIONS,
    )
    torch.distributions.Distribution.set_default_validate_args(validates)
    # What torch warns of while it compiles is between its own parts.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(*inputs)
    return call


def seconds_to_compile(graph: fx.GraphModule) -> float:
    """An estimate of what `compile_graph` takes."""
    first = 0.0 if "torch._inductor.compile_fx" in sys.modules else _SECONDS_FIRST
    return first + _SECONDS_PER_NODE * len(graph.graph.nodes)


@functools.cache
def compiler_present(device_type: str) -> bool:
    """Whether inductor has what it needs: Triton for a GPU, a C++ compiler for the CPU."""
    if device_type != "cpu":
        return has_triton()
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if name)
