"""Calling a function by its graph: traced once per shape, then compiled and captured where that pays."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from pvae.contexts import seeded
from pvae.graphs.capture import Captured
from pvae.graphs.compiling import compile_graph, compiler_present, seconds_to_compile
from pvae.graphs.hoist import split
from pvae.graphs.trace import Function, Untraceable, trace, unchanged_buffers
from pvae.params import Parameters
from pvae.settings import settings_of

__all__ = ["Mode", "Replay"]

log = logging.getLogger(__name__)

Mode = Literal["auto", "traced", "compiled", "graph"]
_MOST_SETTINGS, _MOST_GRAPHS, _MOST_COMPILED = 8, 64, 8
# The share of a traced call that compiling saves: 0.22 for Burda's net at batch 100, 0.45 for small nets.
_GAIN = 0.25
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


class Replay:
    """Calls `function` by a flat graph of tensor operations, one per shape of its inputs.

    In mode "auto" a graph is compiled once that pays: the time of its calls, measured, times those that are left, has
    to promise more than compiling costs; on a GPU it is captured at once. A function that cannot be traced is called
    itself, with one log line that says why. A graph freezes the settings that the pair reads from Python
    (`pvae.settings`): after `look` it is traced anew if they changed, a few times.

    Args:
        function: from tensors to tensors; besides them it reads the leaves of the pair.
        parameters: those of the pair.
        mode: how far to climb.
        calls_left: how many calls may still come.
        what: what runs here, for the log line.
    """

    def __init__(
        self, function: Function, parameters: Parameters, mode: Mode, calls_left: Callable[[], int], what: str
    ) -> None:
        self.function, self.parameters, self.target = function, parameters, mode
        self.calls_left, self.what = calls_left, what
        self.leaves = list(parameters.leaves.values())
        self.fallback: str | None = None
        self._graphs: dict[Any, _Graph] = {}
        self.look()

    @property
    def mode(self) -> str:
        """How most calls run by now."""
        if self.fallback is not None or not self._graphs:
            return "eager"
        return max(self._graphs.values(), key=lambda graph: graph.calls).mode

    def look(self) -> None:
        """Notice what the pair reads from Python."""
        self._settings = settings_of(self.parameters.functions, self.parameters.modules)

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor | None]:
        """What the function gives for these inputs, without history."""
        graph = self._graph(inputs)
        return self.function(*inputs) if graph is None else self._run(graph, inputs)

    def repeatedly(self, *inputs: Tensor) -> Callable[[], Sequence[Tensor | None]]:
        """The function at these inputs, to be called again and again: what depends on no draw is computed once."""
        graph = self._graph(inputs, hoist=True)
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

    def _graph(self, inputs: Sequence[Tensor], hoist: bool = False) -> _Graph | None:
        key = (self._settings, *((part.shape, part.dtype) for part in inputs))
        return self._graphs.get(key) or self._new(key, inputs, hoist)

    def _new(self, key: Any, inputs: Sequence[Tensor], hoist: bool) -> _Graph | None:
        if self.fallback is not None:
            return None
        if len({settings for settings, *_ in (key, *self._graphs)}) > _MOST_SETTINGS:
            self._fall_back("its Python attributes keep changing, which a graph would freeze")
        elif len(self._graphs) == _MOST_GRAPHS:
            self._fall_back(f"its data have more than {_MOST_GRAPHS} shapes, and each needs a graph")
        else:
            try:
                traced = trace(self.function, self.parameters, inputs)
            except Untraceable as reason:
                self._fall_back(str(reason))
        if self.fallback is not None:
            return None
        once, each = split(traced, len(self.leaves) + len(inputs)) if hoist else (None, traced)
        graph = self._graphs[key] = _Graph(once, each, each)
        return graph

    def _fall_back(self, reason: str) -> None:
        self.fallback = reason
        self._graphs.clear()
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
        share = graph.calls / sum(each.calls for each in self._graphs.values())
        seconds = graph.seconds / (graph.calls - _WARM_UP)
        return _GAIN * seconds * share * self.calls_left() > seconds_to_compile(graph.traced)

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
