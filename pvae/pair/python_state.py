"""What a pair reads from Python while it runs: a trace freezes it, so somebody has to notice when it changes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from pvae.pair.owners import contents, wrapped

__all__ = ["named_reach", "settings_of"]

_MOST_ITEMS = 100  # longer ones are data, and this is read at every step
_MODULE_MACHINERY = vars(nn.Module()).keys() - {"training", "_buffers"}


def settings_of(functions: Iterable[Callable[..., Any]], modules: Sequence[nn.Module]) -> tuple[Any, ...]:
    """What functions and modules may read from Python while they run, in a form to compare.

    Which parameters of modules are frozen. Numbers, words, flags and which tensors (no parameters), in the attributes
    of modules and objects, in closures and in globals; what short lists, dicts, namespaces and dataclasses hold.
    """
    held = [value for function in functions for inner in wrapped(function) for value in _reach(inner)]
    attributes = [vars(module)[name] for module in modules for name in vars(module).keys() - _MODULE_MACHINERY]
    moving = [leaf.requires_grad for module in modules for leaf in module._parameters.values() if leaf is not None]
    return (*(_setting(value) for value in (*held, *attributes)), *moving)


def _reach(function: Callable[..., Any]) -> list[Any]:
    """What a function can read: itself, its object and that one's attributes, its closure, and globals it names."""
    return [value for _, value in named_reach(function)]


def named_reach(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    """As `reach`, each beside the name that the function has for it."""
    owner = getattr(function, "__self__", None)
    attributes = {} if isinstance(owner, nn.Module) else getattr(owner, "__dict__", {})
    inner = getattr(function, "forward", function)
    code = getattr(inner, "__code__", None)
    cells = zip(getattr(code, "co_freevars", ()), getattr(inner, "__closure__", None) or (), strict=False)
    space = getattr(inner, "__globals__", {})
    return [
        (getattr(function, "__name__", type(function).__name__), function),
        ("self", owner),
        *((f"self.{name}", value) for name, value in attributes.items()),
        *((name, contents(cell)) for name, cell in cells),
        *((name, space.get(name)) for name in getattr(code, "co_names", ())),
    ]


def _setting(value: Any, depth: int = 2) -> Any:
    if isinstance(value, (bool, int, float, complex, str)):
        return value
    if isinstance(value, Tensor):
        return None if value.requires_grad else id(value)
    if isinstance(value, (SimpleNamespace, Namespace)) or is_dataclass(value):
        value = getattr(value, "__dict__", {})
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (list, tuple)) or len(value) > _MOST_ITEMS or depth == 0:
        return None
    return tuple(_setting(item, depth - 1) for item in value)
