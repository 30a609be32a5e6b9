"""A param store of the pair's own, so that Pyro's global one stays as it is.

Parameters of modules live in the modules. Those of bare `pyro.param` statements have no home but a store, so what
pvae trained is kept beside the functions and objects that state them.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from itertools import dropwhile
from types import CodeType, FrameType
from typing import Any

import pyro
from pyro.params.param_store import ParamStoreDict
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from pvae.pair.entry import inside
from pvae.pair.owners import Link, Owners, package_of, within
from pvae.support.refusals import shown

__all__ = ["Bare", "bare_parameters", "is_inside", "own_store", "owner_of", "private_store", "remembered"]

Stochastic = Callable[..., Any]
# Name -> (unconstrained leaf, constraint) of each bare `pyro.param`.
Bare = dict[str, tuple[Tensor, Any]]

# By the id of the function or object that states them: objects may be equal, or have no hash, and still be two pairs.
_bare_of: dict[int, Bare] = {}
_without_weakref: list[Any] = []
# The statements whose parameters pvae trained: another function of the same code starts anew, and has to say so.
_trained: set[tuple[CodeType, str]] = set()
# Between a user's line and pvae's store there may be these packages.
_BETWEEN = frozenset({"contextlib", "pvae", "torch"})


@contextmanager
def private_store(*functions: Stochastic | None, keep: bool = False, look: bool = False) -> Iterator[None]:
    """Run pair functions in a param store of their own; Pyro's global one is as before afterwards.

    One thread at a time: others wait until it is left.

    Bare `pyro.param` values start from what pvae last trained for whoever states them, else from the user's
    store, else from their own initial value. With `keep`, what they end at is remembered.

    A parameter that starts anew although pvae trained it for another function of the same code gives a warning,
    unless it is about to be trained (`keep`) or nobody asks for numbers (`look`). A tensor that is given as an initial
    value stays as it is, and so does the `requires_grad` of a module's parameter.

    Raises: ValueError for what is no function, such as a name or a class.
    """
    for function in functions:
        if function is not None and (isinstance(function, type) or not callable(function)):
            raise ValueError(
                f"expected a Pyro function or a built module, got {shown(function)}; build it first, "
                "for example pvae.models.VAE(x_shape, latent_dim)"
            )
    with inside():
        store = pyro.get_param_store()
        around, kind = vars(store).get("stay"), type(store)
        outer = store.get_state()
        bare = users = _bare(outer)
        if keep:  # training moves its leaves in place, and the user's are not ours to move
            bare = {name: (_own(leaf), rule) for name, (leaf, rule) in bare.items()}
        inner = {
            "params": {name: leaf for name, (leaf, _) in bare.items()},
            "constraints": {name: constraint for name, (_, constraint) in bare.items()},
        }
        given = [function for function in functions if function is not None]
        stay = _Stay(given, keep, look, around, users)
        with store.scope(inner):  # type: ignore[arg-type]
            store.__class__, store.stay = _PrivateStore, stay  # type: ignore[attr-defined]
            try:
                yield
            finally:
                store.__class__ = kind
                if around is None:
                    del store.stay  # type: ignore[attr-defined]
                else:
                    store.stay = around  # type: ignore[attr-defined]
                if keep:
                    stay.remember(_bare(store.get_state()))


def own_store(*functions: Stochastic | None) -> AbstractContextManager[None]:
    """The private store of these functions: the one around, if it is theirs already, else one for inside."""
    return nullcontext() if is_inside(*functions) else private_store(*functions)


def is_inside(*functions: Stochastic | None) -> bool:
    """Whether the param store is already one of these functions' own."""
    stay: _Stay | None = vars(pyro.get_param_store()).get("stay")
    return stay is not None and all(
        function is None or any(function is own for own in stay.functions) for function in functions
    )


class _PrivateStore(ParamStoreDict):
    """Pyro's store while a pair runs in it: it asks who states a bare parameter, and leaves users' tensors alone."""

    stay: _Stay

    def setdefault(
        self,
        name: str,
        init_constrained_value: Tensor | Callable[[], Tensor],
        constraint: constraints.Constraint = constraints.real,
    ) -> Tensor:
        """The value that is held, else the initial one.

        Pyro itself would set `requires_grad` of the initial tensor: of a frozen parameter, and of a user's constant.
        """
        if name not in self._params and isinstance(init_constrained_value, nn.Parameter):
            self._begin(name, init_constrained_value, constraint)
        elif not isinstance(self._params.get(name), nn.Parameter):
            self.stay.state(self, name)
            if name not in self._params:
                value = init_constrained_value() if callable(init_constrained_value) else init_constrained_value
                self._begin(name, value, constraint)
        return super().__getitem__(name)

    def __getitem__(self, name: str) -> Tensor:
        if not isinstance(self._params.get(name), nn.Parameter):
            self.stay.state(self, name, reads=True)
        return super().__getitem__(name)

    def _begin(self, name: str, value: Tensor, constraint: constraints.Constraint) -> None:
        if isinstance(value, nn.Parameter) and transform_to(constraint).inv(value) is value:
            self.set_state({"params": {name: value}, "constraints": {name: constraint}})
        else:
            self._constraints[name] = constraint
            self[name] = value.detach().clone()


class _Stay:
    """The time that a pair spends in a private store: who states which bare parameters there."""

    def __init__(
        self, functions: Sequence[Stochastic], keep: bool, look: bool, around: _Stay | None, users: Bare
    ) -> None:
        self.functions, self.keep, self.look, self.around, self.users = functions, keep, look, around, users
        self.is_quiet: bool = keep or look or (around is not None and around.is_quiet)
        # Of each parameter, one list for each piece of code that states it, its owner last.
        self.links: dict[str, list[list[Link]]] = {}
        self._seen: set[tuple[Any, ...]] = set()
        self._outer_frames = len(_callers())

    def state(self, store: ParamStoreDict, name: str, reads: bool = False) -> None:
        """Notice that a statement names a parameter; at the first one, put in the store what pvae trained."""
        if name in self.links and not self.keep:  # more owners matter only to what is to be remembered
            return
        key: list[Any] = [name]
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and package_of(frame) != "pvae":
            key.append(frame.f_code)
            frame = frame.f_back
        if (seen := tuple(key)) in self._seen:
            return
        self._seen.add(seen)
        frames = _frames(sys._getframe(2))
        links = self._owners.of(frames[: max(len(frames) - self._outer_frames, 0)])
        if not links and reads:
            return
        stating = next(each for each in frames if package_of(each) != "pyro")
        own = [links] if links else [[(owner_of(function), stating.f_code)] for function in self.functions]
        is_first, around = name not in self.links, self._stated_around(name)
        self.links.setdefault(name, []).extend(own)
        if is_first and (around is None or not around.is_of_its_pair(name, own)):
            if around is not None:
                self._forget(store, name)
            self._start(store, name, [link for each in own for link in reversed(each)])

    def is_of_its_pair(self, name: str, own: list[list[Link]]) -> bool:
        """Whether those who state a parameter in a call inside of this one belong to the pair that runs here.

        A callback may run another pair, with a parameter of its own that has the same name.
        """
        stated = [link for links in self.links[name] for link in links]
        owners = {id(owner) for owner, _ in stated} | {id(thing) for near in self._owners.near for thing in near}
        return any(id(owner) in owners for links in own for owner, _ in links)

    def remember(self, bare: Bare) -> None:
        """Keep values beside their owners, and note whose code was trained."""
        for name in self.links.keys() & bare.keys():
            for links in self.links[name]:
                _remember(links[-1][0], name, bare[name])
                _trained.update((code, name) for _, code in links)

    @cached_property
    def _owners(self) -> Owners:
        """Looked for only where bare parameters are stated."""
        return Owners(self.functions)

    def _stated_around(self, name: str) -> _Stay | None:
        """The nearest call around this one that states a parameter of this name."""
        around = self.around
        while around is not None and name not in around.links:
            around = around.around
        return around

    def _forget(self, store: ParamStoreDict, name: str) -> None:
        """Put the user's value of a parameter in place of that of the pair around, which is another one."""
        del store[name]
        outermost = self
        while outermost.around is not None:
            outermost = outermost.around
        if name in outermost.users:
            leaf, rule = outermost.users[name]
            store.set_state({"params": {name: _own(leaf) if self.keep else leaf}, "constraints": {name: rule}})
        self.is_quiet = self.keep or self.look

    def _start(self, store: ParamStoreDict, name: str, links: list[Link]) -> None:
        holders = [owner for owner, _ in links]
        models = self._owners.near[0] if self._owners.near else []
        if not any(thing is holders[0] for thing in models):
            # A guide may share a parameter of the model's, whose value is then the model's own.
            holders = [*models, *holders]
        kept = next((held[name] for each in holders if name in (held := _bare_of.get(id(each), {}))), None)
        if kept is not None:
            leaf, constraint = kept
            if self.keep and any(leaf is other for other, _ in self.users.values()):
                leaf = _own(leaf)
            store.set_state({"params": {name: leaf}, "constraints": {name: constraint}})
        elif name not in store and not self.is_quiet and (links[0][1], name) in _trained:
            self.is_quiet = True  # what holds for one of a pair's parameters, holds for the others
            warnings.warn(
                f"parameter '{name}' starts from its initial value: pvae trained it for another function or object "
                "made by the same code; evaluate the one that was trained, or call its FitResult's to_store() before",
                stacklevel=self._level_of_caller(),
            )

    def _level_of_caller(self) -> int:
        """How far up the caller of pvae is from the function that asks, as warnings count."""
        frames = _frames(sys._getframe(1))
        start = max(len(frames) - self._outer_frames, 0)
        users = (level for level in range(start, len(frames)) if package_of(frames[level]) not in _BETWEEN)
        return next(users, start) + 1


def bare_parameters() -> Bare:
    """The bare parameters that the pair has stated so far in its private store."""
    store: Any = pyro.get_param_store()
    return {name: entry for name, entry in _bare(store.get_state()).items() if name in store.stay.links}


def _bare(state: Any) -> Bare:
    """The entries of a store's state that no module owns: Pyro stores a module's parameters as they are."""
    return {
        name: (leaf, state["constraints"][name])
        for name, leaf in state["params"].items()
        if not isinstance(leaf, nn.Parameter)
    }


def _own(leaf: Tensor) -> Tensor:
    return leaf.detach().clone().requires_grad_(leaf.requires_grad)


def _frames(frame: FrameType | None) -> list[FrameType]:
    """A frame and its callers, one after the other."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _callers() -> list[FrameType]:
    """The frames outside of pvae's store when it is entered."""
    frames = _frames(sys._getframe(1))
    inside = {__name__, "contextlib"}
    return list(dropwhile(lambda frame: frame.f_globals.get("__name__") in inside, frames))


def owner_of(function: Stochastic | None) -> Any:
    """What outlives a call: a bound method is a new object at each access, so its object stands for it."""
    return getattr(function, "__self__", function)


def _remember(owner: Any, name: str, entry: tuple[Tensor, Any]) -> None:
    """Keep a value as long as its owner lives."""
    if id(owner) not in _bare_of:
        try:
            weakref.finalize(owner, _bare_of.pop, id(owner), None).atexit = False
        except TypeError:  # an object with slots may take no weak reference; its id must not go to another
            _without_weakref.append(owner)
    _bare_of.setdefault(id(owner), {})[name] = entry


def remembered(function: Stochastic) -> Bare:
    """What pvae trained of the bare parameters that a function, or what it can come to, states."""
    found: Bare = {}
    for thing in within([function]) if _bare_of else ():
        found = _bare_of.get(id(thing), {}) | found
    return found
