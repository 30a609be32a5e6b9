"""What the referee has found out, kept for as long as a pair lives.

Example: `log_marginal(model, guide, x)` runs on batches of 100 and a last one of 37, each x (B, 784). The pair is
looked at once: the second batch, and the next call, find the layout here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pvae.pair.layout import Layout
from pvae.pair.python_state import settings_of
from pvae.pair.sites import Batch

__all__ = ["forget", "known", "remember"]

Stochastic = Callable[..., Any]


@dataclass(frozen=True)
class _Verdict:
    """A layout, the modules that ran, and what the pair read from Python then."""

    layout: Layout
    modules: tuple[weakref.ref[nn.Module], ...]
    settings: tuple[Any, ...]


# By the ids of the functions: objects may be equal, or have no hash, and still be two pairs.
_verdicts: dict[tuple[int, ...], dict[Any, _Verdict]] = {}


def known(model: Stochastic, guide: Stochastic | None, batch: Batch, many: bool) -> Layout | None:
    """The layout of a pair that was looked at before on such a batch, for one particle or `many`; None if none was."""
    verdicts = _verdicts.get(_pair(model, guide), {})
    # What holds for several particles was seen to hold for each of them.
    verdict = verdicts.get(_kind(batch, True)) or verdicts.get(_kind(batch, many))
    if verdict is None:
        return None
    modules = [module for module in (each() for each in verdict.modules) if module is not None]
    is_same = len(modules) == len(verdict.modules) and _settings(model, guide, modules) == verdict.settings
    return verdict.layout if is_same else None


def remember(
    model: Stochastic, guide: Stochastic | None, batch: Batch, many: bool, modules: Sequence[nn.Module], layout: Layout
) -> None:
    """Keep a layout as long as both functions live."""
    pair = _pair(model, guide)
    if pair not in _verdicts:
        try:
            for function in (model, guide):
                if function is not None:
                    weakref.finalize(_owner(function), _verdicts.pop, pair, None).atexit = False
        except TypeError:  # an object with slots may take no weak reference, and its id may go to another
            return
    settings = _settings(model, guide, modules)
    verdict = _Verdict(layout, tuple(map(weakref.ref, modules)), settings)
    _verdicts.setdefault(pair, {})[_kind(batch, many)] = verdict


def forget(model: Stochastic, guide: Stochastic | None) -> None:
    """Have a pair looked at anew."""
    _verdicts.pop(_pair(model, guide), None)


def _settings(model: Stochastic, guide: Stochastic | None, modules: Sequence[nn.Module]) -> tuple[Any, ...]:
    return settings_of((model,) if guide is None else (model, guide), modules)


def _pair(model: Stochastic, guide: Stochastic | None) -> tuple[int, ...]:
    """Which functions these are: a bound method is a new object at each access, its parts are not."""
    parts = [(_owner(each), getattr(each, "__func__", None)) for each in (model, guide)]
    return tuple(id(part) for pair in parts for part in pair)


def _owner(function: Any) -> Any:
    return getattr(function, "__self__", function)


def _kind(batch: Batch, many: bool) -> Any:
    """What of a batch a layout depends on: all but the number of data, of which a look on one may not hold for more."""
    parts = tuple((part.shape[1:], part.dtype, part.device, len(part) == 1) for part in batch)
    return many, parts
