"""Whom a bare `pyro.param` belongs to: the function or object that states a pair's sites.

What pvae is given may be a wrapper made for one call: a handler of Pyro's, a partial, a lambda. The pair is what it
wraps.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from types import CellType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import pyro
from torch import Tensor, nn

__all__ = ["Link", "Owners", "contents", "package_of", "within", "wrapped"]

# Who states a parameter, and by which code: a method's code belongs to its class, and the parameter to its object.
Link = tuple[Any, CodeType]

_MOST_THINGS, _MOST_ITEMS = 2000, 100  # what holds more than that is no pair, but data
_PLAIN = (bool, int, float, complex, str, bytes, Tensor, type(None))
_SITES = frozenset({"deterministic", "factor", "module", "plate", "plate_stack", "sample"})
# Their insides make no statement of a user's; what they wrap or hold may.
_FOREIGN = frozenset({*sys.stdlib_module_names, "numpy", "pvae", "pyro", "torch"}) - {"__main__"}
_OF_TORCH = vars(nn.Module()).keys()


class Owners:
    """The functions and objects that a pair can come to while it runs, and which of them states a parameter."""

    def __init__(self, functions: Iterable[Callable[..., Any]]) -> None:
        self.near = [within([function]) for function in functions]
        things = {id(thing): thing for each in self.near for thing in each}
        self._functions: dict[CodeType, list[FunctionType]] = {}
        for thing in things.values():
            if isinstance(thing, FunctionType):
                self._functions.setdefault(thing.__code__, []).append(thing)
        self._objects = {
            key: thing for key, thing in things.items() if not isinstance(thing, (FunctionType, ModuleType))
        }

    def of(self, frames: Sequence[FrameType]) -> list[Link]:
        """Who states what the innermost frame does, the owner last; empty if none of the pair's is known there.

        Owner is the outermost that states sites itself, for a helper may serve several pairs and a wrapper states none.
        Where none does, it is the innermost that calls what states them.
        """
        links = [(owner, frame) for frame in frames if (owner := self._at(frame)) is not None]
        sites = [(owner, frame.f_code) for owner, frame in links if _states_sites(frame.f_code, frame.f_globals)]
        if sites or not links:
            return sites
        owner, frame = next((link for link in links if _comes_to_sites(link[0])), links[0])
        return [(owner, frame.f_code)]

    def _at(self, frame: FrameType) -> Any:
        """The function that runs in a frame, or the object whose method does, if the pair can come to it."""
        code = frame.f_code
        if package_of(frame) in _FOREIGN:
            return None
        for function in self._functions.get(code, ()):
            free = zip(code.co_freevars, map(contents, function.__closure__ or ()), strict=True)
            # Functions of one factory have one code, and are told apart by what they close over.
            if all(frame.f_locals.get(name) is value for name, value in free):
                return function
        first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        return self._objects.get(id(first))


def within(functions: Iterable[Any]) -> list[Any]:
    """What functions can come to while they run, near things first.

    That is what they wrap, their objects and those' attributes, closures, defaults, and the globals they name.
    """
    found: list[Any] = []
    known: set[int] = set()
    waiting = deque(functions)
    while waiting and len(found) < _MOST_THINGS:
        thing = waiting.popleft()
        if not isinstance(thing, _PLAIN) and id(thing) not in known:
            known.add(id(thing))
            found.append(thing)
            waiting.extend(_parts(thing))
    return found


def wrapped(function: Any) -> list[Any]:
    """A function and those that it wraps, one after the other: by handlers of Pyro's, partials, `functools.wraps`."""
    found: list[Any] = []
    waiting = deque([function])
    while waiting:
        thing = waiting.popleft()
        if callable(thing) and not any(thing is other for other in found):
            found.append(thing)
            if isinstance(thing, partial):
                waiting.extend([thing.func, *thing.args, *thing.keywords.values()])
            waiting.append(getattr(thing, "__wrapped__", None))
    return found


def package_of(frame: FrameType) -> str:
    """The top-level package of the code that runs in a frame."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def contents(cell: CellType) -> Any:
    """What a closure's cell holds; None for a name that the enclosing function has not bound yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _parts(thing: Any) -> list[Any]:
    if isinstance(thing, FunctionType):
        return _of_function(thing)
    if isinstance(thing, MethodType):
        return [thing.__self__, *_of_function(thing.__func__)]
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values(), *vars(thing).values()]
    if isinstance(thing, (list, tuple, set, frozenset, dict)):
        items = list(thing.values()) if isinstance(thing, dict) else list(thing)
        return items if len(items) <= _MOST_ITEMS else []
    if isinstance(thing, (type, ModuleType)):
        return []
    return _of_object(thing)


def _of_function(function: Any) -> list[Any]:
    cells = getattr(function, "__closure__", None) or ()
    parts = [*getattr(function, "__dict__", {}).values(), *map(contents, cells)]
    space = getattr(function, "__globals__", {})
    if not isinstance(function, FunctionType) or str(space.get("__name__", "")).partition(".")[0] in _FOREIGN:
        return parts
    parts += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    names = _names(function.__code__)
    for value in (space[name] for name in names if name in space):
        parts.append(value)
        if isinstance(value, ModuleType) and value.__name__.partition(".")[0] not in _FOREIGN:
            parts += [vars(value)[name] for name in names if name in vars(value)]
        elif isinstance(value, type):
            own = [vars(value)[name] for name in names if name in vars(value)]
            parts += [each.__func__ for each in own if isinstance(each, (staticmethod, classmethod))]
    return parts


def _of_object(thing: Any) -> list[Any]:
    slots = [name for kind in type(thing).__mro__ for name in _as_names(vars(kind).get("__slots__", ()))]
    attributes = dict(getattr(thing, "__dict__", {}))
    attributes |= {name: getattr(thing, name, None) for name in slots if not name.startswith("__")}
    if isinstance(thing, nn.Module):
        own = [value for name, value in attributes.items() if name not in _OF_TORCH]
        parts = [*own, *thing.children()]
    elif _is_foreign(type(thing)):
        parts = [value for value in attributes.values() if callable(value)]
    else:
        parts = list(attributes.values())
    for kind in type(thing).__mro__:
        if not _is_foreign(kind):
            for method in vars(kind).values():
                function = method.fget if isinstance(method, property) else getattr(method, "__func__", method)
                if isinstance(function, FunctionType):
                    parts += _of_function(function)
    return parts


def _as_names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _is_foreign(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _FOREIGN


@lru_cache(maxsize=1000)
def _names(code: CodeType) -> tuple[str, ...]:
    """The globals and attributes that code names, that of functions inside it included."""
    inner = [name for each in code.co_consts if isinstance(each, CodeType) for name in _names(each)]
    return tuple(dict.fromkeys([*code.co_names, *inner]))


def _states_sites(code: CodeType, space: dict[str, Any]) -> bool:
    """Whether code, whose globals are given, makes one of Pyro's statements other than `param` itself."""
    names = _names(code)
    named = _SITES.intersection(names)
    by_pyro = "pyro" in names or any(space.get(name) is pyro for name in names)
    return bool(named) and (by_pyro or any(space.get(name) is getattr(pyro, name) for name in named))


def _comes_to_sites(owner: Any) -> bool:
    functions = (thing for thing in within([owner]) if isinstance(thing, FunctionType))
    return any(_states_sites(function.__code__, function.__globals__) for function in functions)
