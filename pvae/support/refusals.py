"""The one vocabulary of checks: what was expected, what came, and what to do, on one line.

Every check gives back the value that was checked, or raises ValueError:

    >>> whole("latent_dim", 8, usual=10)
    8
    >>> whole("latent_dim", 2.5, usual=10)
    Traceback (most recent call last):
    ValueError: latent_dim must be a whole number of at least 1, got 2.5; try 10
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch

from pvae.support.lines import one_line

__all__ = [
    "ContractError",
    "built",
    "choice",
    "flag",
    "function",
    "instance",
    "nearest",
    "number",
    "one_line",
    "shown",
    "whole",
    "widths",
]

_MOST_SHOWN = 60
# Beyond it, sizes of arrays overflow before any memory is asked for.
_MOST_WHOLE = 2**53
_LEAST_NUMBER, _MOST_NUMBER = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def shown(value: Any) -> str:
    """A value in few letters: an array by its shape and dtype, a function or module by its name, else its repr."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and (value.ndim or value.dtype == object):
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        return f"{'an' if kind == 'array' else 'a'} {kind} {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, torch.nn.Module) or (callable(value) and hasattr(value, "__name__")):
        return getattr(value, "__name__", type(value).__name__)
    try:
        return one_line(repr(value), _MOST_SHOWN)
    except Exception:  # a repr of the user's own may fail in any way
        return f"a {type(value).__name__}"


def nearest(given: Any, choices: Iterable[str]) -> str:
    """A list of the choices for an error line, led by the one nearest to what was given."""
    names = list(choices)
    close = get_close_matches(given.lower().replace("-", "_"), names, n=1) if isinstance(given, str) else []
    return (f"did you mean {close[0]!r}? " if close else "") + f"the choices are {', '.join(names)}"


class ContractError(ValueError):
    """What is wrong with a pair, and what to do, which together are its one line."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(f"{found}; {fix}" if fix else found)
        self.found, self.fix = found, fix

    def __reduce__(self) -> tuple[type[ContractError], tuple[str, str]]:
        return type(self), (self.found, self.fix)


def whole(name: str, value: Any, least: int = 1, *, usual: Any) -> int:
    """A whole number, `least` or larger; integers of numpy count, True and False do not."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_))
    if not is_whole or not least <= value <= _MOST_WHOLE:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {shown(value)}; try {usual}")
    return int(value)


def number(
    name: str,
    value: Any,
    *,
    usual: Any,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
) -> float:
    """A finite number, strictly between `above` and `below`, and from `least` to `most`."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
    try:
        finite = float(value) if is_number else math.nan
    except OverflowError:  # a whole number larger than any float
        finite = math.nan
    # Neither may single precision make infinity of it, nor 0 where that is left out.
    is_held = abs(finite) <= _MOST_NUMBER and not (above == 0 and finite < _LEAST_NUMBER)
    if not is_held or not (above < finite < below and least <= finite <= most):
        bounds = [
            word
            for word, bound in (
                (f"above {above:g}", above),
                (f"of at least {least:g}", least),
                (f"below {below:g}", below),
                (f"of at most {most:g}", most),
            )
            if math.isfinite(bound)
        ]
        what = " and ".join(["a finite number", *bounds]).replace("number and", "number", 1)
        raise ValueError(f"{name} must be {what}, got {shown(value)}; try {usual}")
    return finite


def flag(name: str, value: Any) -> bool:
    """True or False, and nothing that merely counts as one of them."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {shown(value)}; give one of them")
    return bool(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of several words, else the nearest is named."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"unknown {name} {shown(value)}: {nearest(value, choices)}")
    return value


def function(name: str, value: Any, *, usual: str) -> Callable[..., Any]:
    """Something that can be called."""
    if not callable(value):
        raise ValueError(f"{name} must be a function, got {shown(value)}; give for example {usual}")
    return value


def built(name: str, value: Any, *, usual: str) -> Callable[..., Any]:
    """Something that can be called on data: a function or a module, and no class that still has to be built."""
    if isinstance(value, type) or not callable(value):
        raise ValueError(
            f"{name} must be a function or a built module, got {shown(value)}; build it first, for example {usual}"
        )
    return value


def instance(name: str, value: Any, kind: type | tuple[type, ...], *, what: str, usual: str) -> Any:
    """A value of some type, which `what` names."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {what}, got {shown(value)}; give for example {usual}")
    return value


def widths(name: str, value: Any, *, least: int = 1, usual: Any = (200, 200)) -> tuple[int, ...]:
    """A shape or the widths of layers: whole numbers, `least` or larger each."""
    # An array of no or several dims is no sequence of numbers, and a set has no order.
    is_other = isinstance(value, (str, bytes, Mapping, Set)) or getattr(value, "ndim", 1) != 1
    if is_other or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a tuple of whole numbers, got {shown(value)}; try {usual}")
    return tuple(whole(f"each of {name}", each, least, usual=usual) for each in value)
