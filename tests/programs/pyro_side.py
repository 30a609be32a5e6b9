"""A program as a person would write it in Pyro: two functions of a batch, with tensors, plates and handlers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import config_enumerate
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from tests.programs.program import NUM_COLUMNS, Body, Program, Site
from tests.programs.pyro_run import Run, double


class Pair(NamedTuple):
    model: Callable[..., Any]
    guide: Callable[..., Any]
    batch: tuple[Tensor, ...]


def build(program: Program) -> Pair:
    """The functions and the batch of a program, in double precision."""
    generator = torch.Generator().manual_seed(program.seed)
    x = torch.randn(program.num_data, NUM_COLUMNS, generator=generator, dtype=torch.float64)
    batch: tuple[Tensor, ...] = (x,)
    if program.subsampling == "index":
        batch = x, torch.randperm(program.num_data + program.num_more, generator=generator)[: program.num_data]
    model, guide = (_function(program, name) for name in ("model", "guide"))
    conditioned = [site for site in program.model.sites if site.role == "conditioned"]
    centered = {site.name: LocScaleReparam(site.centered) for site in program.model.sites if site.centered is not None}
    if conditioned:
        model = _conditioned(program, conditioned, model)
    if centered:
        model = poutine.reparam(model, config=centered)
    return Pair(_wrapped(program.model, model), _wrapped(program.guide, guide), batch)


def _wrapped(body: Body, function: Callable[..., Any]) -> Callable[..., Any]:
    if body.wrapper == "partial":
        return functools.partial(function)
    if body.wrapper == "lambda":
        return lambda *batch: function(*batch)
    if body.wrapper == "scale":
        return poutine.scale(function, scale=0.7)
    return config_enumerate(function) if body.wrapper == "config_enumerate" else function


def _conditioned(program: Program, sites: list[Site], model: Callable[..., Any]) -> Callable[..., Any]:
    def conditioned(*batch: Tensor) -> Any:
        run = Run(program, "model", batch)
        data = {
            "".join([site.name, *(f"_{i}" for i in entry.values())]): run.observation(site, entry)
            for site in sites
            for entry in run.loop_entries(site)
        }
        return poutine.condition(model, data=data)(*batch)

    return conditioned


def _function(program: Program, name: str) -> Callable[..., Any]:
    body: Body = getattr(program, name)
    numbers = {f"{name}_{site.name}_bias": site.bias for site in body.sites}
    spreads = {f"{name}_{site.name}_spread": site.spread for site in body.sites}
    if body.numbers == "pyro_module":
        return _Module(program, name, numbers, spreads)
    if body.numbers in ("module", "frozen"):
        net = nn.Module()
        for each, value in {**numbers, **spreads}.items():
            setattr(net, each, nn.Parameter(double(value), requires_grad=body.numbers == "module"))
        net.train(body.numbers == "module")

        def function(*batch: Tensor) -> Any:
            pyro.module(name, net)
            Run(program, name, batch, lambda each: getattr(net, each))()

    else:

        def read(each: str) -> Tensor:
            value = double({**numbers, **spreads}[each])
            if body.numbers == "tensor":
                return value
            return pyro.param(each, value, constraint=constraints.positive if each in spreads else constraints.real)

        def function(*batch: Tensor) -> Any:
            Run(program, name, batch, read)()

    return function


class _Module(PyroModule):
    """A function whose numbers are constrained parameters of its own."""

    def __init__(self, program: Program, name: str, numbers: dict[str, float], spreads: dict[str, float]) -> None:
        super().__init__(name)
        self.program, self.function_name = program, name
        for each, value in numbers.items():
            setattr(self, each, PyroParam(double(value)))
        for each, value in spreads.items():
            setattr(self, each, PyroParam(double(value), constraint=constraints.positive))

    def forward(self, *batch: Tensor) -> None:
        Run(self.program, self.function_name, batch, lambda each: getattr(self, each))()
