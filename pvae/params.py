"""The parameters of a pair, found by running it, and kept out of Pyro's global param store.

A pair may hold its parameters in three ways: in modules registered by `pyro.module`, in `PyroModule`s,
and in bare `pyro.param` statements. The first two live in the modules themselves. Bare ones have no
home but Pyro's global store, so pvae keeps what it trained beside the functions that state them.
"""

from __future__ import annotations

import random
import weakref
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from types import CellType, SimpleNamespace
from typing import Any, Protocol

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

__all__ = [
    "Bare",
    "Parameters",
    "as_device",
    "called_modules",
    "evaluation",
    "failure",
    "find_parameters",
    "home",
    "private_store",
    "running",
    "seeded",
    "settle",
]

Batch = tuple[Tensor, ...]
Stochastic = Callable[..., Any]


class Source(Protocol):
    """Data that can give an example batch and move to a device."""

    def example(self) -> Batch:
        """A batch to look at the pair with."""

    def to(self, device: torch.device | str) -> None:
        """Move to `device`."""


Bare = dict[str, tuple[Tensor, Any]]
"""Name -> (unconstrained leaf, constraint) of each bare `pyro.param`."""

# By the id of the function or object that states them: objects may be equal, or have no hash, and still be two pairs.
_bare_of: dict[int, Bare] = {}
_without_weakref: list[Any] = []


@dataclass(frozen=True)
class Parameters:
    """What one run of a pair touched: leaves to train, buffers to save, modules to switch to evaluation.

    `leaves` maps Pyro's name to the unconstrained tensor that an optimizer steps; `guide_only` holds the
    names that the model does not use; `unregistered` names modules whose parameters no `pyro.module` states;
    `functions` are the pair's own.
    """

    leaves: dict[str, Tensor]
    buffers: dict[str, Tensor]
    modules: tuple[nn.Module, ...]
    guide_only: frozenset[str] = field(default_factory=frozenset)
    unregistered: tuple[str, ...] = ()
    functions: tuple[Stochastic, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the first leaf (or buffer) lives; the CPU for a pair without any."""
        for tensor in (*self.leaves.values(), *self.buffers.values()):
            return tensor.device
        return torch.device("cpu")

    def state(self) -> dict[str, Tensor]:
        """Leaves and buffers by name, detached, sharing storage: what a checkpoint holds."""
        return {name: tensor.detach() for name, tensor in (self.leaves | self.buffers).items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Copy `state` into the pair, or raise ValueError and change nothing.

        Raises: ValueError if names or shapes differ from those of the pair.
        """
        own = self.leaves | self.buffers
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or extra:
            raise ValueError(
                "the saved weights belong to another pair: "
                + "; ".join(
                    f"{what} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
                    for what, names in (("missing", missing), ("not in this pair", extra))
                    if names
                )
                + "; build the pair as it was when saved"
            )
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(
                    f"saved weight {name} has shape {tuple(state[name].shape)}, this pair expects "
                    f"{tuple(tensor.shape)}; build the pair with the sizes it was saved with"
                )
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def to(self, device: torch.device | str) -> None:
        """Move leaves, buffers and modules to `device`; a leaf stays the same tensor, a module may replace a buffer."""
        places = {id(buffer): (module, name) for module in self.modules for name, buffer in module._buffers.items()}
        for module in self.modules:
            module.to(device)
        for leaf in self.leaves.values():
            leaf.data = leaf.data.to(device)
        for full_name, (module, name) in {full: places[id(buffer)] for full, buffer in self.buffers.items()}.items():
            self.buffers[full_name] = module.get_buffer(name)

    def settings(self) -> tuple[Any, ...]:
        """What the pair may read from Python while it runs, in a form to compare.

        Numbers, words, flags and which tensors (no parameters), in the attributes of its modules and objects, in
        closures and in globals; of short lists, dicts, namespaces and dataclasses what they hold.
        """
        held = [value for function in self.functions for value in _reach(function)]
        attributes = [vars(module)[name] for module in self.modules for name in vars(module).keys() - _MODULE_MACHINERY]
        return tuple(_setting(value) for value in (*held, *attributes))


def find_parameters(model: Stochastic, guide: Stochastic | None, batch: Batch) -> Parameters:
    """Run the pair once on `batch` and collect what it uses; call inside `private_store`.

    No random state, buffer or training flag is changed.

    Raises: ValueError if the pair cannot run on the batch at all.
    """
    with running("pair", batch), torch.no_grad(), seeded(0, batch[0].device), called_modules() as modules:
        with poutine.trace() as guide_run:
            guide_leaves = _leaves_of(guide, batch) if guide is not None else {}
        with poutine.replay(trace=guide_run.trace):
            model_leaves = _leaves_of(model, batch)
    known = {id(leaf) for leaf in model_leaves.values()}
    own = {name: leaf for name, leaf in guide_leaves.items() if id(leaf) not in known}
    leaves = own | model_leaves
    known |= {id(leaf) for leaf in own.values()}
    owners = [_owner(function) for function in (guide, model) if isinstance(_owner(function), nn.Module)]
    # A method of a module may use its parts without calling them: by their forward, or by their training flag.
    everything = dict.fromkeys([*modules, *(part for owner in owners for part in owner.modules())])
    return Parameters(
        leaves=leaves,
        buffers=_named_buffers(list(everything), leaves),
        modules=tuple(everything),
        functions=(model,) if guide is None else (model, guide),
        guide_only=frozenset(own),
        unregistered=tuple(
            type(module).__name__
            for module in dict.fromkeys([*modules, *owners])
            if any(p.requires_grad and id(p) not in known for p in module.parameters(recurse=False))
        ),
    )


def settle(
    model: Stochastic, guide: Stochastic | None, source: Source, device: torch.device | str | None
) -> Parameters:
    """Find the parameters of a pair and bring pair and data to one device: `device`, or where the pair is.

    Raises: ValueError if the pair cannot run on the data at all, or the device cannot be used.
    """
    target = None if device is None else as_device(device)
    source.to(home(model, guide))
    parameters = find_parameters(model, guide, source.example())
    if target is not None:
        parameters.to(target)
        source.to(target)
    return parameters


@contextmanager
def running(what: str, batch: Batch) -> Iterator[None]:
    """Turn whatever a user's function trips over inside into one line with the shapes it was given."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"the {what} {failure(error, batch)}") from error


def failure(error: Exception, batch: Batch) -> str:
    """What went wrong when a function ran on a batch, and what to do if that is known, on one line."""
    shapes = ", ".join(str(tuple(part.shape)) for part in batch)
    reason = " ".join(str(error).split()) or type(error).__name__
    fix = ""
    if "Shape mismatch inside plate" in reason:
        fix = "; give the plate the length of the batch, and call .to_event(n) on a distribution over n dims of a datum"
    return f"cannot run on a batch of shape {shapes}: {reason}{fix}"


def as_device(device: torch.device | str) -> torch.device:
    """The device, once a tensor could be put there.

    Raises: ValueError for an unknown device, or one that this machine lacks.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here: {reason}; give cpu, or cuda on a GPU") from error


def home(*functions: Stochastic | None) -> torch.device:
    """Where the first parameter lives that pvae trained for the functions, or their objects and closures hold."""
    for function in functions:
        if function is None:
            continue
        for leaf, _ in _bare_of.get(id(_owner(function)), {}).values():
            return leaf.device
        for holder in _reach(function):
            if isinstance(holder, nn.Module):
                for tensor in holder.parameters():
                    return tensor.device
    return torch.device("cpu")


def _reach(function: Stochastic) -> list[Any]:
    """What a function can read: itself, its object and that one's attributes, its closure, and globals it names."""
    owner = getattr(function, "__self__", None)
    attributes = {} if isinstance(owner, nn.Module) else getattr(owner, "__dict__", {})
    inner = getattr(function, "forward", function)
    cells = getattr(inner, "__closure__", None) or ()
    names = getattr(getattr(inner, "__code__", None), "co_names", ())
    space = getattr(inner, "__globals__", {})
    return [function, owner, *attributes.values(), *map(_contents, cells), *(space.get(name) for name in names)]


_MOST_ITEMS = 100  # longer ones are data, and this is read at every step
_MODULE_MACHINERY = vars(nn.Module()).keys() - {"training", "_buffers"}


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


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that the enclosing function has not bound yet
        return None


def _leaves_of(function: Stochastic, batch: Batch) -> dict[str, Tensor]:
    with poutine.trace(param_only=True) as run:
        function(*batch)
    values: dict[str, Any] = {name: site["value"] for name, site in run.trace.nodes.items() if site["type"] == "param"}
    leaves: dict[str, Tensor] = {}
    for name, value in values.items():
        leaf: Tensor = value.unconstrained() if hasattr(value, "unconstrained") else value
        if all(leaf is not other for other in leaves.values()):
            leaves[name] = leaf
    return leaves


def _named_buffers(modules: list[nn.Module], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Buffers named after the registered parameters of the same module, else by order of first call."""
    owner = {id(leaf): name for name, leaf in leaves.items()}
    buffers: dict[str, Tensor] = {}
    for index, module in enumerate(modules):
        prefix = f"module{index}."
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in owner:
                prefix = owner[id(parameter)].removesuffix(name)
        for name, buffer in module.named_buffers(recurse=False):
            if all(buffer is not other for other in buffers.values()):
                buffers[prefix + name] = buffer
    return buffers


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
    owners = [_owner(function) for function in functions if function is not None]
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


def _owner(function: Stochastic | None) -> Any:
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


@contextmanager
def called_modules() -> Iterator[list[nn.Module]]:
    """Collect every `nn.Module` called inside, closures included, in order of first call.

    Each is switched to evaluation before it runs, and back at the end, so a look changes no buffer.
    """
    modules: dict[int, tuple[nn.Module, bool]] = {}
    called: list[nn.Module] = []

    def note(module: nn.Module, _: Any) -> None:
        if id(module) not in modules:
            modules[id(module)] = module, module.training
            called.append(module)
            module.training = False

    hook = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield called
    finally:
        hook.remove()
        for module, training in modules.values():
            module.training = training


@contextmanager
def evaluation(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Switch `modules` to evaluation inside (dropout off, batch statistics frozen)."""
    before = [(module, module.training) for module in modules]
    for module, _ in before:
        module.training = False
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Draw from `seed` inside; the generators of torch, numpy and Python are as before afterwards."""
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
