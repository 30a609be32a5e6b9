"""A param store of the pair's own, so that Pyro's global one stays as it is.

Parameters of modules live in the modules. Those of bare `pyro.param` statements have no home but a store, so what
pvae trained is kept beside the functions that state them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from torch import Tensor, nn

__all__ = ["owner_of", "private_store", "remembered"]

Stochastic = Callable[..., Any]
# Name -> (unconstrained leaf, constraint) of each bare `pyro.param`.
Bare = dict[str, tuple[Tensor, Any]]

# By the id of the function or object that states them: objects may be equal, or have no hash, and still be two pairs.
_bare_of: dict[int, Bare] = {}
_without_weakref: list[Any] = []


@contextmanager
def private_store(*functions: Stochastic | None, keep: bool = False) -> Iterator[None]:
    """Run pair functions in a param store of their own; Pyro's global one is as before afterwards.

    Bare `pyro.param` values start from what pvae last trained for these functions, else from the user's
    store, else from their own initial value. With `keep`, what they end at is remembered.

    Raises: ValueError for what is no function, such as a name or a class.
    """
    for function in functions:
        if function is not None and (isinstance(function, type) or not callable(function)):
            raise ValueError(
                f"expected a Pyro function or a built module, got {function!r}; build it first, "
                "for example pvae.models.VAE(x_shape, latent_dim)"
            )
    store = pyro.get_param_store()
    outer = store.get_state()
    bare = _bare(outer)
    if keep:  # training moves its leaves in place, and the user's are not ours to move
        bare = {name: (leaf.detach().clone().requires_grad_(), rule) for name, (leaf, rule) in bare.items()}
    owners = [owner_of(function) for function in functions if function is not None]
    for owner in reversed(owners):
        bare |= _bare_of.get(id(owner), {})
    inner = {
        "params": {name: leaf for name, (leaf, _) in bare.items()},
        "constraints": {name: constraint for name, (_, constraint) in bare.items()},
    }
    with store.scope(inner):  # type: ignore[arg-type]
        try:
            yield
        finally:
            if keep:
                kept = _bare(store.get_state())
                for owner in owners:
                    _remember(owner, kept)


def _bare(state: Any) -> Bare:
    """The entries of a store's state that no module owns: Pyro stores a module's parameters as they are."""
    return {
        name: (leaf, state["constraints"][name])
        for name, leaf in state["params"].items()
        if not isinstance(leaf, nn.Parameter)
    }


def owner_of(function: Stochastic | None) -> Any:
    """What outlives a call: a bound method is a new object at each access, so its object stands for it."""
    return getattr(function, "__self__", function)


def _remember(owner: Any, bare: Bare) -> None:
    """Keep values as long as their owner lives."""
    if id(owner) not in _bare_of:
        try:
            weakref.finalize(owner, _bare_of.pop, id(owner), None).atexit = False
        except TypeError:  # an object with slots may take no weak reference; its id must not go to another
            _without_weakref.append(owner)
    _bare_of[id(owner)] = bare


def remembered(function: Stochastic) -> Bare:
    """What pvae trained of the bare parameters that a function states."""
    return _bare_of.get(id(owner_of(function)), {})
