"""Calling a function by its graph: traced once per shape, then compiled and captured where that pays."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from pvae.graphs.capture import Captured
from pvae.graphs.compiling import compile_graph, compiler_present, seconds_to_compile
from pvae.graphs.hoist import split
from pvae.graphs.trace import Function, Untraceable, trace, unchanged_buffers
from pvae.pair.contexts import seeded, uncompiled
from pvae.pair.parameters import Parameters
from pvae.pair.python_state import settings_of

__all__ = ["Mode", "Replay"]

log = logging.getLogger(__name__)

Mode = Literal["auto", "traced", "compiled", "graph"]
_MOST_SETTINGS, _MOST_GRAPHS, _MOST_COMPILED = 8, 64, 8
# The share of a traced call that compiling saves: 0.22 for Burda's net at batch 100, 0.45 for small nets.
_GAIN = 0.25
# The share of an eager call that tracing saves: 0.8 for small nets, 0.5 and 0.36 for Burda's at batch 20 and 100.
_GAIN_OF_TRACE = 0.4
# What a trace is taken to cost before there was one, and how many shapes without a graph are remembered.
_SECONDS_TO_TRACE, _MOST_TALLIES = 0.5, 1000
_WARM_UP = 4
_LOOKS = {16, 64, 256, 1024, 4096}


@dataclass
class _Graph:
    """One graph of one shape: how it is called, what it is, and how long it took so far.

    `once` computes what `traced` takes besides the leaves and the inputs, where that is split off.
    """

    once: fx.GraphModule | None
    traced: fx.GraphModule
    call: Callable[..., Sequence[Any]]
    mode: Literal["traced", "compiled", "graph"] = "traced"
    tried_to_compile: bool = False
    calls: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Tally:
    """Calls of one shape that has no graph: how many there were, and how long the last one took."""

    calls: int = 0
    seconds: float = 0.0


class Replay:
    """Calls `function` by a flat graph of tensor operations, one per shape of its inputs.

    In mode "auto" the clock decides, shape by shape. The first call of a shape runs the function itself, and is timed.
    A shape is traced once that pays: the calls of it that can still be expected (its share of the calls so far times
    those that are left) times what a graph saves of each have to promise more than a trace costs, which the first one
    tells. So a long run of one shape is traced at its second call, and shapes that hardly ever come back never are. A
    graph is compiled by the same rule; on a GPU it is captured at once. In the other modes every shape is traced at
    its first call.

    A function that cannot be traced is called itself, with one log line that says why. A graph freezes the settings
    that the pair reads from Python (`pvae.pair.python_state`): after `look` it is traced anew if they changed, a few
    times.

    Args:
        function: from tensors to tensors; besides them it reads the leaves of the pair.
        parameters: those of the pair.
        mode: how far to climb.
        calls_left: how many calls may still come.
        what: what runs here, for the log line.

    Attributes: `trace_seconds`, how long the last trace took; None before there was one.
    """

    def __init__(
        self, function: Function, parameters: Parameters, mode: Mode, calls_left: Callable[[], int], what: str
    ) -> None:
        self.function, self.parameters, self.target = function, parameters, mode
        self.calls_left, self.what = calls_left, what
        self.leaves = list(parameters.leaves.values())
        self.fallback: str | None = None
        self.trace_seconds: float | None = None
        self._graphs: dict[Any, _Graph] = {}
        self._tallies: dict[Any, _Tally] = {}
        # By settings: a change of them begins a run of its own.
        self._eager_calls: Counter[Any] = Counter()
        self.look()

    @property
    def mode(self) -> str:
        """How most calls run by now."""
        if self.fallback is not None or not self._graphs:
            return "eager"
        most = max(self._graphs.values(), key=lambda graph: graph.calls)
        return most.mode if most.calls >= self._eager_calls.total() else "eager"

    def look(self) -> None:
        """Notice what the pair reads from Python."""
        self._settings = settings_of(self.parameters.functions, self.parameters.modules)

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor | None]:
        """What the function gives for these inputs, without history."""
        key = self._key(inputs)
        graph = self._graphs.get(key) or (self._new(key, inputs, hoist=False) if self._is_due(key) else None)
        return self._eagerly(key, inputs) if graph is None else self._run(graph, inputs)

    def repeatedly(self, *inputs: Tensor) -> Callable[[], Sequence[Tensor | None]]:
        """The function at these inputs, to be called again and again: what depends on no draw is computed once.

        In every mode this traces a new shape at once: whoever asks has found that it pays.
        """
        key = self._key(inputs)
        graph = self._graphs.get(key) or self._new(key, inputs, hoist=True)
        if graph is None or graph.once is None:
            return lambda: self.function(*inputs)
        with torch.no_grad():
            values = graph.once(*self.leaves, *inputs)
        return lambda: self._run(graph, (*inputs, *values))

    def _run(self, graph: _Graph, inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
        started = time.perf_counter()
        with torch.no_grad():
            outputs = graph.call(*self.leaves, *inputs)
        graph.calls += 1
        if graph.calls > _WARM_UP:
            graph.seconds += time.perf_counter() - started
        if graph.calls == 1 or graph.calls in _LOOKS:
            self._climb(graph, inputs)
        return outputs

    def _key(self, inputs: Sequence[Tensor]) -> Any:
        return (self._settings, *((part.shape, part.dtype) for part in inputs))

    def _eagerly(self, key: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
        if self.fallback is not None:
            return self.function(*inputs)
        if len(self._tallies) > _MOST_TALLIES:
            self._tallies.clear()
            self._eager_calls.clear()
        tally = self._tallies.get(key, _Tally())
        started = time.perf_counter()
        # What the user compiled is not to be compiled for this shape, if a graph will take its place.
        with nullcontext() if tally.calls else uncompiled():
            outputs = self.function(*inputs)
        self._tallies[key] = _Tally(tally.calls + 1, time.perf_counter() - started)
        self._eager_calls[self._settings] += 1
        return outputs

    def _is_due(self, key: Any) -> bool:
        """Whether to trace what has no graph yet."""
        if self.target != "auto":
            return True
        tally = self._tallies.get(key)
        if tally is None or self.fallback is not None or len(self._graphs) == _MOST_GRAPHS:
            return False
        cost = _SECONDS_TO_TRACE if self.trace_seconds is None else self.trace_seconds
        return _GAIN_OF_TRACE * tally.seconds * self._expected(tally.calls) > cost

    def _expected(self, calls: int) -> float:
        """How many calls are still to come of a shape that has had so many."""
        replayed = sum(graph.calls for key, graph in self._graphs.items() if key[0] == self._settings)
        return calls / (replayed + self._eager_calls[self._settings]) * self.calls_left()

    def _new(self, key: Any, inputs: Sequence[Tensor], hoist: bool) -> _Graph | None:
        if self.fallback is not None:
            return None
        if len({settings for settings, *_ in (key, *self._graphs)}) > _MOST_SETTINGS:
            self._fall_back("its Python attributes keep changing, which a graph would freeze")
        elif len(self._graphs) == _MOST_GRAPHS and self.target == "auto":
            return None
        elif len(self._graphs) == _MOST_GRAPHS:
            self._fall_back(f"its data have more than {_MOST_GRAPHS} shapes, and each needs a graph")
        else:
            started = time.perf_counter()
            try:
                traced = trace(self.function, self.parameters, inputs)
            except Untraceable as reason:
                self._fall_back(str(reason))
            self.trace_seconds = time.perf_counter() - started
        if self.fallback is not None:
            return None
        once, each = split(traced, len(self.leaves) + len(inputs)) if hoist else (None, traced)
        graph = self._graphs[key] = _Graph(once, each, each)
        return graph

    def _fall_back(self, reason: str) -> None:
        self.fallback = reason
        self._graphs.clear()
        self._tallies.clear()
        log.warning("%s run eagerly, the pair cannot be traced: %s", self.what, reason)

    def _climb(self, graph: _Graph, inputs: Sequence[Tensor]) -> None:
        """Compile the graph if it is time to, and capture it on a GPU; what fails leaves it on the rung below."""
        device = inputs[0].device
        is_new = graph.calls == 1
        with unchanged_buffers(self.parameters), seeded(0, device):
            if not graph.tried_to_compile and (self._pays(graph) if self.target == "auto" else self.target != "traced"):
                graph.tried_to_compile = is_new = True
                self._compile(graph, (*self.leaves, *inputs))
            if is_new and device.type == "cuda" and self.target in ("auto", "graph"):
                self._capture(graph, inputs)

    def _pays(self, graph: _Graph) -> bool:
        if graph.calls <= _WARM_UP:
            return False
        seconds = graph.seconds / (graph.calls - _WARM_UP)
        return _GAIN * seconds * self._expected(graph.calls) > seconds_to_compile(graph.traced)

    def _compile(self, graph: _Graph, arguments: Sequence[Tensor]) -> None:
        if sum(each.tried_to_compile for each in self._graphs.values()) > _MOST_COMPILED:
            return
        if not compiler_present(arguments[0].device.type):
            self._stay(graph, "to compile, install Triton on a GPU, a C++ compiler (g++, or CXX) on a CPU")
            return
        try:
            graph.call, graph.mode = compile_graph(graph.traced, arguments), "compiled"
        except Exception as error:  # inductor fails in many ways, and the traced graph is right
            self._stay(graph, " ".join(str(error).split())[:200])

    def _capture(self, graph: _Graph, inputs: Sequence[Tensor]) -> None:
        call = graph.call if graph.mode == "compiled" else graph.traced
        try:
            graph.call, graph.mode = Captured(call, self.leaves, inputs), "graph"
        except Exception as error:  # as above
            self._stay(graph, " ".join(str(error).split())[:200])

    def _stay(self, graph: _Graph, reason: str) -> None:
        log.warning("%s run %s: %s", self.what, graph.mode, reason)
