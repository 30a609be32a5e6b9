"""The parameters of a pair, found by running it once.

A pair may hold them in modules registered by `pyro.module`, in `PyroModule`s, and in bare `pyro.param` statements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pvae.pair.contexts import called_modules, running, seeded
from pvae.pair.guards import Guard
from pvae.pair.owners import within
from pvae.pair.store import own_store, owner_of, remembered
from pvae.support.batch import Batch
from pvae.support.refusals import one_line, shown

__all__ = ["Parameters", "Source", "as_device", "device_of_pair", "find_and_place", "find_parameters", "frozen_modules"]

Stochastic = Callable[..., Any]


class Source(Protocol):
    """Data that can give an example batch and move to a device."""

    def example(self) -> Batch:
        """A batch to look at the pair with."""

    def to(self, device: torch.device | str) -> None:
        """Move to `device`."""


@dataclass(frozen=True)
class Parameters:
    """What one run of a pair touched: leaves to train, buffers to save, modules to switch to evaluation.

    `leaves` maps Pyro's name to the unconstrained tensor that an optimizer steps; `frozen` does so for those that have
    `requires_grad` False, which are saved with the others and trained never; `guide_only` holds the names of leaves
    that the model does not use; `unregistered` names modules whose parameters no `pyro.module` states; `functions` are
    the pair's own.
    """

    leaves: dict[str, Tensor]
    buffers: dict[str, Tensor]
    modules: tuple[nn.Module, ...]
    frozen: dict[str, Tensor] = field(default_factory=dict)
    guide_only: frozenset[str] = field(default_factory=frozenset)
    unregistered: tuple[str, ...] = ()
    functions: tuple[Stochastic, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the first leaf (or frozen parameter, or buffer) lives; the CPU for a pair without any."""
        for tensor in (*self.leaves.values(), *self.frozen.values(), *self.buffers.values()):
            return tensor.device
        return torch.device("cpu")

    def joined_by(self, name: str, module: nn.Module) -> Parameters:
        """These and those of a module that is trained beside the pair; they count as the guide's."""
        own = {f"{name}.{full}": leaf for full, leaf in module.named_parameters()}
        return replace(
            self,
            leaves=self.leaves | own,
            buffers=self.buffers | {f"{name}.{full}": buffer for full, buffer in module.named_buffers()},
            modules=(*self.modules, *module.modules()),
            guide_only=self.guide_only | own.keys(),
        )

    def value(self, name: str) -> Tensor:
        """A parameter within its constraint; inside the store where it was found."""
        store = pyro.get_param_store()
        return store[name] if name in store else self.leaves[name]

    def state(self) -> dict[str, Tensor]:
        """Leaves, frozen parameters and buffers by name, detached, sharing storage: what a checkpoint holds.

        Nets have the same names whether or not `torch.compile` wraps them.
        """
        return {name: tensor.detach() for name, tensor in self._tensors().items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Copy `state` into the pair, or raise ValueError and change nothing.

        Raises: ValueError if names or shapes differ from those of the pair, or it cannot be changed.
        """
        self.require_writable()
        own = self._tensors()
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

    def require_writable(self) -> None:
        """Raise ValueError for a tensor that can no longer be changed."""
        for name, tensor in self._tensors().items():
            if tensor.is_inference():
                raise ValueError(
                    f"'{name}' of the pair was made inside torch.inference_mode, where tensors become read-only; build "
                    "the pair outside of it"
                )

    def to(self, device: torch.device | str) -> None:
        """Move leaves, buffers and modules to `device`; a leaf stays the same tensor, a module may replace a buffer."""
        places = {id(buffer): (module, name) for module in self.modules for name, buffer in module._buffers.items()}
        for module in self.modules:
            module.to(device)
        for leaf in (*self.leaves.values(), *self.frozen.values()):
            leaf.data = leaf.data.to(device)
        for full_name, (module, name) in {full: places[id(buffer)] for full, buffer in self.buffers.items()}.items():
            buffer = dict(module._buffers.items())[name]
            assert buffer is not None
            self.buffers[full_name] = buffer

    def _tensors(self) -> dict[str, Tensor]:
        return {plain_name(name): tensor for name, tensor in (self.leaves | self.frozen | self.buffers).items()}


def plain_name(name: str) -> str:
    """The name of a tensor as it would be if no `torch.compile` wrapped its net."""
    return name.replace("_orig_mod.", "")


def find_parameters(model: Stochastic, guide: Stochastic | None, batch: Batch) -> Parameters:
    """Run the pair once on `batch` and collect what it uses.

    No random state, buffer or training flag is changed.

    Raises: ValueError if the pair cannot run on the batch at all.
    """
    with (
        own_store(model, guide),
        running("pair", batch),
        torch.no_grad(),
        seeded(0, batch[0].device),
        called_modules() as modules,
    ):
        with poutine.trace() as guide_run:
            guide_leaves = _leaves_of(guide, batch) if guide is not None else {}
        with Guard(), poutine.replay(trace=guide_run.trace):
            model_leaves = _leaves_of(model, batch)
    known = {id(leaf) for leaf in model_leaves.values()}
    own = {name: leaf for name, leaf in guide_leaves.items() if id(leaf) not in known}
    stated = own | model_leaves
    known |= {id(leaf) for leaf in own.values()}
    owners = [owner_of(function) for function in (guide, model) if isinstance(owner_of(function), nn.Module)]
    # A module may use its parts without calling them: by their forward, or by their training flag.
    everything = list(dict.fromkeys([*modules, *(part for whole in (*owners, *modules) for part in whole.modules())]))
    return Parameters(
        leaves={name: leaf for name, leaf in stated.items() if leaf.requires_grad},
        buffers=_named(everything, nn.Module.named_buffers, stated),
        modules=tuple(everything),
        frozen=_frozen(model, guide, batch, everything, stated),
        functions=(model,) if guide is None else (model, guide),
        guide_only=frozenset(name for name, leaf in own.items() if leaf.requires_grad),
        unregistered=tuple(
            str(getattr(module, "original_name", type(module).__name__))
            for module in dict.fromkeys([*modules, *owners])
            if any(p.requires_grad and id(p) not in known for p in module.parameters(recurse=False))
        ),
    )


def find_and_place(
    model: Stochastic, guide: Stochastic | None, source: Source, device: torch.device | str | None
) -> Parameters:
    """Find the parameters of a pair and bring pair and data to one device: `device`, or where the pair is.

    Raises: ValueError if the pair cannot run on the data at all, or the device cannot be used.
    """
    target = None if device is None else as_device(device)
    source.to(device_of_pair(model, guide))
    parameters = find_parameters(model, guide, source.example())
    if target is not None:
        parameters.to(target)
        source.to(target)
    return parameters


def frozen_modules(parameters: Parameters) -> tuple[nn.Module, ...]:
    """The modules that stay as they are when the guide alone trains: the model's, and what else holds none of its own.

    A module that the guide's leaves live in, or that is part of one, is the guide's.
    """
    own = {id(parameters.leaves[name]) for name in parameters.guide_only}
    guides = {
        id(part)
        for module in parameters.modules
        if any(id(leaf) in own for leaf in module.parameters()) and not _holds_others(module, own)
        for part in module.modules()
    }
    return tuple(module for module in parameters.modules if id(module) not in guides)


def _holds_others(module: nn.Module, own: set[int]) -> bool:
    return any(leaf.requires_grad and id(leaf) not in own for leaf in module.parameters())


def as_device(device: torch.device | str) -> torch.device:
    """The device, once a tensor could be put there.

    Raises: ValueError for an unknown device, or one that this machine lacks.
    """
    try:
        usable = torch.empty(0, device=device).device
        if usable.type == "meta":
            raise RuntimeError("it holds shapes and no numbers")
        return usable
    except (RuntimeError, AssertionError, TypeError, ValueError, OverflowError) as error:
        name = repr(str(device)) if isinstance(device, torch.device) else shown(device)
        reason = one_line(str(error).partition("\n")[0], 150)
        raise ValueError(f"device {name} cannot be used here: {reason}; give cpu, or cuda on a GPU") from error


def device_of_pair(*functions: Stochastic | None) -> torch.device:
    """Where the first parameter lives that pvae trained for the functions, or their objects and closures hold."""
    for function in functions:
        if function is None:
            continue
        for leaf, _ in remembered(function).values():
            return leaf.device
        for holder in within([function]):
            if isinstance(holder, nn.Module):
                for tensor in holder.parameters():
                    return tensor.device
    return torch.device("cpu")


def _leaves_of(function: Stochastic, batch: Batch) -> dict[str, Tensor]:
    with poutine.trace(param_only=True) as run:
        function(*batch)
    leaves: dict[str, Tensor] = {}
    for name, site in run.trace.nodes.items():
        if site["type"] == "param":
            leaf = _leaf_of(site["value"])
            if all(leaf is not other for other in leaves.values()):
                leaves[name] = leaf
    return leaves


def _leaf_of(value: Any) -> Tensor:
    """The unconstrained tensor behind what a `param` statement gave, which a plate may have subsampled."""
    if hasattr(value, "unconstrained"):
        value = value.unconstrained()
    leaf: Tensor = getattr(value, "_pyro_unconstrained_param", value)
    return leaf


def _frozen(
    model: Stochastic, guide: Stochastic | None, batch: Batch, modules: list[nn.Module], stated: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The parameters with `requires_grad` False, under the names that they would have if they were trained.

    `pyro.module` passes them over, so it is asked once more, with `requires_grad` True for as long as that takes.
    """
    frozen = {name: leaf for name, leaf in stated.items() if not leaf.requires_grad}
    known = {id(leaf) for leaf in stated.values()}
    silent = [
        leaf
        for leaf in dict.fromkeys(leaf for module in modules for leaf in module.parameters(recurse=False))
        if id(leaf) not in known and not leaf.requires_grad
    ]
    registered = [leaf for leaf in silent if leaf.is_floating_point()]
    if registered:
        with torch.no_grad(), seeded(0, batch[0].device), called_modules():
            for leaf in registered:
                leaf.requires_grad_(True)
            try:
                with poutine.trace() as guide_run:
                    named = _leaves_of(guide, batch) if guide is not None else {}
                with poutine.replay(trace=guide_run.trace):
                    named |= _leaves_of(model, batch)
            finally:
                for leaf in registered:
                    leaf.requires_grad_(False)
        frozen |= {name: leaf for name, leaf in named.items() if any(leaf is other for other in registered)}
        known |= {id(leaf) for leaf in frozen.values()}
    unnamed = _named(modules, nn.Module.named_parameters, stated | frozen)
    return frozen | {name: leaf for name, leaf in unnamed.items() if id(leaf) not in known and not leaf.requires_grad}


def _named(modules: list[nn.Module], members: Callable[..., Any], known: dict[str, Tensor]) -> dict[str, Tensor]:
    """Buffers or parameters of modules by name, after the registered parameters of the same module.

    Else by order of first call.
    """
    owner = {id(leaf): name for name, leaf in known.items()}
    found: dict[str, Tensor] = {}
    for index, module in enumerate(module for module in modules if "_orig_mod" not in module._modules):
        prefix = f"module{index}."
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in owner:
                prefix = owner[id(parameter)].removesuffix(name)
        for name, tensor in members(module, recurse=False):
            if all(tensor is not other for other in found.values()):
                found[prefix + name] = tensor
    return found
