"""Tensors that a pair differentiates through and nothing registers: they would stay as they are without a word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pvae.pair.contexts import FAILURES, called_modules, seeded
from pvae.pair.parameters import Parameters
from pvae.pair.python_state import named_reach
from pvae.pair.sites import Batch, random_sites

__all__ = ["stray_leaves"]

_DEPTH = 3


def stray_leaves(
    model: Callable[..., Any], guide: Callable[..., Any] | None, batch: Batch, parameters: Parameters
) -> list[tuple[str | None, Tensor]]:
    """Leaves of the graph of a pair's densities and draws that it does not train, each with a name if one is found.

    Those of modules that `parameters.unregistered` names are left out, as are the batch itself and leaves that the
    pair makes anew in each run.
    """
    known = {id(leaf) for leaf in parameters.leaves.values()}
    known |= {
        id(own)
        for module in parameters.modules
        if getattr(module, "original_name", type(module).__name__) in parameters.unregistered
        for own in module.parameters(recurse=False)
    }
    batch = tuple(part.detach() for part in batch)
    found = _leaves_of_run(model, guide, batch, known)
    if found:
        again = {id(leaf) for leaf in _leaves_of_run(model, guide, batch, known)}
        found = [leaf for leaf in found if id(leaf) in again]
    return [(_name_of(leaf, parameters.functions), leaf) for leaf in found]


def _leaves_of_run(
    model: Callable[..., Any], guide: Callable[..., Any] | None, batch: Batch, known: set[int]
) -> list[Tensor]:
    ends: list[Tensor] = []
    replayed = poutine.Trace()
    with torch.enable_grad(), seeded(0, batch[0].device), called_modules(), pyro.validation_enabled(False):
        for function in (guide, model):
            if function is None:
                continue
            try:
                with poutine.trace() as run, poutine.replay(trace=replayed):
                    function(*batch)
            except FAILURES:  # what fails for want of `no_grad` fails in training, and is told of there
                return []
            replayed = run.trace
            for site in random_sites(run.trace).values():
                ends += [site["value"], *_log_prob(site)]
        leaves = {id(leaf): leaf for leaf in _leaves_behind(ends)}
    return [leaf for key, leaf in leaves.items() if key not in known]


def _log_prob(site: Any) -> Iterator[Tensor]:
    try:
        yield site["fn"].log_prob(site["value"])
    except (NotImplementedError, *FAILURES):  # a law without a density
        return


def _leaves_behind(ends: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors that hold gradients of these, by a walk through their history."""
    pending: list[Any] = []
    for end in ends:
        if isinstance(end, Tensor) and end.requires_grad:
            if end.grad_fn is None:
                yield end
            else:
                pending.append(end.grad_fn)
    seen = set(pending)
    while pending:
        node = pending.pop()
        if isinstance(getattr(node, "variable", None), Tensor):
            yield node.variable
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                pending.append(parent)


def _name_of(leaf: Tensor, functions: Iterable[Callable[..., Any]]) -> str | None:
    """How a function reaches a tensor: a name of its closure or module, attributes and keys; None where not seen."""
    seen: set[int] = set()
    pending = [(name, value, _DEPTH) for function in functions for name, value in named_reach(function)]
    while pending:
        name, value, depth = pending.pop(0)
        if value is leaf:
            return name
        if depth and id(value) not in seen:
            seen.add(id(value))
            pending += [(f"{name}{step}", part, depth - 1) for step, part in _parts(value)]
    return None


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, nn.Module):
        return [(f".{name}", own) for name, own in value.named_parameters()]
    if isinstance(value, dict):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    if isinstance(value, (FunctionType, MethodType)):
        return [(f".{name}", part) for name, part in named_reach(value)]
    if isinstance(value, (ModuleType, type)):
        return []
    return [(f".{name}", part) for name, part in getattr(value, "__dict__", {}).items()]
