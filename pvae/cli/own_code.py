"""A user's own functions, named on the command line as `module:function` or `file.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from functools import cache
from pathlib import Path
from typing import Any

from pvae.runs import recipes
from pvae.support.refusals import nearest, one_line, shown

__all__ = ["own_function"]


def own_function(name: str | None) -> Any:
    """The function behind `module:function` or `file.py:function`; None for a built-in name.

    Raises: ValueError if the file, module or function is not there.
    """
    if name is None or not recipes.is_own(name):
        return None
    place, _, path = name.rpartition(":")
    if not place or not path:
        raise ValueError(f"expected module:function or file.py:function, got {name!r}; name both parts")
    found = _module_from(place, Path(place).resolve() if place.endswith(".py") else None)
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(
                f"{place} has no {path!r}: {nearest(part, [each for each in dir(found) if each[0] != '_'])}"
            )
        found = getattr(found, part)
    if inspect.isclass(found) or not callable(found):
        raise ValueError(f"{name} is not a function that takes a batch; name a Pyro function or a built module")
    return found


@cache
def _module_from(place: str, file: Path | None) -> Any:
    try:
        return importlib.import_module(place) if file is None else _executed(file)
    except (Exception, SystemExit) as error:  # a user's file may do anything when it runs
        reason = str(error) if isinstance(error, (ImportError, OSError, SyntaxError)) else shown(error)
        raise ValueError(
            f"cannot import {place}: {one_line(reason, 160)}; give module:function or file.py:function"
        ) from error


def _executed(file: Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError("no such file")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where pickles and dataclasses of the file look for it; a module of that name that is there already goes first.
    is_new = sys.modules.setdefault(file.stem, module) is module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if is_new:
            del sys.modules[file.stem]
        raise
    return module
