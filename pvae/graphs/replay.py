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
    """One graph of one shape: how it is called, what it is, and how long it took so far."""

    traced: fx.GraphModule
    call: Callable[..., Sequence[Any]]
    mode: Literal["traced", "compiled", "graph"] = "traced"
    compiled: bool = False
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
        self.leaves = [leaf.detach() for leaf in parameters.leaves.values()]
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
        key = (self._settings, *((part.shape, part.dtype) for part in inputs))
        graph = self._graphs.get(key) or self._new(key, inputs)
        if graph is None:
            return self.function(*inputs)
        started = time.perf_counter()
        with torch.no_grad():
            outputs = graph.call(*self.leaves, *inputs)
        graph.calls += 1
        if graph.calls > _WARM_UP:
            graph.seconds += time.perf_counter() - started
        if graph.calls in _LOOKS and self.target == "auto" and not graph.compiled and self._pays(graph):
            self._climb(graph, inputs)
        return outputs

    def _new(self, key: Any, inputs: Sequence[Tensor]) -> _Graph | None:
        if self.fallback is not None:
            return None
        if len({settings for settings, *_ in (key, *self._graphs)}) > _MOST_SETTINGS:
            return self._fall_back("its Python attributes keep changing, which a graph would freeze")
        if len(self._graphs) == _MOST_GRAPHS:
            return self._fall_back(f"its data have more than {_MOST_GRAPHS} shapes, and each needs a graph")
        try:
            traced = trace(self.function, self.parameters, inputs)
        except Untraceable as reason:
            return self._fall_back(str(reason))
        graph = self._graphs[key] = _Graph(traced, traced)
        if self.target in ("compiled", "graph") or (self.target == "auto" and inputs[0].is_cuda):
            self._climb(graph, inputs)
        return graph

    def _fall_back(self, reason: str) -> None:
        self.fallback = reason
        self._graphs.clear()
        log.warning("%s run eagerly, the pair cannot be traced: %s", self.what, reason)

    def _pays(self, graph: _Graph) -> bool:
        share = graph.calls / sum(each.calls for each in self._graphs.values())
        seconds = graph.seconds / (graph.calls - _WARM_UP)
        return _GAIN * seconds * share * self.calls_left() > seconds_to_compile(graph.traced)

    def _climb(self, graph: _Graph, inputs: Sequence[Tensor]) -> None:
        """Compile the graph, and capture it on a GPU; each rung that fails leaves the graph on the one below."""
        device = inputs[0].device
        pays = self.target != "auto" or (graph.calls > _WARM_UP and self._pays(graph))
        few = sum(each.compiled for each in self._graphs.values()) < _MOST_COMPILED
        with unchanged_buffers(self.parameters), seeded(0, device):
            if pays and few and not graph.compiled:
                graph.compiled = True  # or tried
                if not compiler_present(device.type):
                    need = "Triton" if device.type == "cuda" else "a C++ compiler (set CXX)"
                    self._stay(graph, f"install {need} to compile")
                else:
                    try:
                        graph.call = compile_graph(graph.traced, (*self.leaves, *inputs))
                        graph.mode = "compiled"
                    except Exception as error:  # inductor fails in many ways, and the traced graph is right
                        self._stay(graph, " ".join(str(error).split())[:200])
            if device.type == "cuda" and self.target in ("auto", "graph"):
                try:
                    graph.call = Captured(graph.call, self.leaves, inputs)
                    graph.mode = "graph"
                except RuntimeError as error:
                    self._stay(graph, " ".join(str(error).split())[:200])

    def _stay(self, graph: _Graph, reason: str) -> None:
        log.warning("%s run %s: %s", self.what, graph.mode, reason)
