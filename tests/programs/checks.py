"""What pvae must do with a program: the right number, or a refusal in one line."""

from __future__ import annotations

import math
import re

import pyro
import torch
from pyro import poutine
from torch import Tensor

import pvae
from pvae.objectives import ELBO, IWAE
from tests.programs.engine import matrix_of
from tests.programs.program import STATES, Program
from tests.programs.pyro_side import build
from tests.programs.reference import Reference

TOLERANCE = 1e-8

# What pvae refuses of programs that a person may well write, and why. A refusal that is not here is a failure.
REFUSALS = {
    r"^the data plate stands at dim": "a subsampling plate of one datum of one takes no batch of another length, so "
    "that a plate of size 1 around every site of the guide may be taken for it",
    r"subsample_size does not match": "such a plate takes no copies, where a plate of size 1 around every site of both "
    "functions was taken for it",
}


class Disagreement(AssertionError):
    """pvae gave another number than the reference, no line, or refused what it should answer."""


def check_weights(program: Program) -> str:
    """Compare log weights at the same draws; "answered", or why pvae refused."""
    pair = build(program)
    subsampled = is_subsampled(program)
    try:
        torch.manual_seed(program.seed)
        with torch.no_grad():
            values = pvae.log_weights(pair.model, pair.guide, pair.batch, program.num_samples).values
    except ValueError as error:
        return refusal(program, error, expected=subsampled or bool(program.breach))
    except Exception as error:
        raise Disagreement(f"{type(error).__name__} instead of a ValueError: {error}\n{program}") from error
    if subsampled or (program.breach in ("outside", "again") and program.num_data > 1):
        raise Disagreement(f"pvae answers {values.tolist()} where it has to refuse\n{program}")
    again, draws = matrix_of(pair.model, pair.guide, pair.batch, program.num_samples, program.seed)
    if not torch.equal(values, again):
        raise Disagreement(f"the draws are not those of the weights: {values.tolist()}, {again.tolist()}\n{program}")
    reference = reference_of(program, pair.batch, draws)
    expected = [[reference.log_weight(k, b) for b in range(program.num_data)] for k in range(program.num_samples)]
    compare(program, values, expected, "log weights")
    return "answered"


def check_bounds(program: Program) -> str:
    """Compare the training bounds at the same draws; "answered", or why pvae refused."""
    # Of the guide's annotated sites the ELBO runs every state in place of the draws.
    branches = program.guide.wrapper == "config_enumerate" and any(s.family in STATES for s in program.guide.sites)
    if program.breach or is_subsampled(program) or branches:
        return "left out"
    pair = build(program)
    try:
        _, draws = matrix_of(pair.model, pair.guide, pair.batch, program.num_samples, program.seed)
        reference = reference_of(program, pair.batch, draws)
        # To Pyro's TraceEnum_ELBO, too, a sum over states of differently scaled sites is an error.
        if program.states() > 1 and not reference.shares_scale():
            return "left out"
        for objective, of_weights in ((ELBO(program.num_samples), False), (IWAE(program.num_samples), True)):
            torch.manual_seed(program.seed)
            with torch.no_grad():
                bound = objective.bound(pair.model, pair.guide, pair.batch)
            expected = [reference.bound(b, program.num_samples, of_weights=of_weights) for b in range(program.num_data)]
            compare(program, bound, expected, type(objective).__name__)
    except ValueError as error:
        return refusal(program, error, expected=False)
    except RuntimeError as error:
        raise Disagreement(f"{type(error).__name__} instead of a ValueError: {error}\n{program}") from error
    return "answered"


def check_against_pyro(program: Program) -> None:
    """Compare the reference's terms with Pyro's own log probabilities, one particle at a time, without scales."""
    pair = build(program)
    torch.manual_seed(program.seed)
    # Without validation, as a value outside of a support has the log probability -inf, not an error.
    with torch.no_grad(), pyro.validation_enabled(False):
        guide = poutine.trace(pair.guide).get_trace(*pair.batch)
        model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(*pair.batch)
    draws = {
        name: _as_draws(program, name, node["value"])
        for trace in (guide, model)
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and _site_of(program, name) is not None
    }
    reference = reference_of(program, pair.batch, draws)
    for name, trace in (("guide", guide), ("model", model)):
        for node in trace.nodes.values():
            if node["type"] == "sample":
                node["scale"] = 1.0
        with torch.no_grad(), pyro.validation_enabled(False):
            trace.compute_log_prob()
        found: dict[str, float] = {}
        for key, node in trace.nodes.items():
            site = _site_of(program, key)
            if site is not None and node["type"] == "sample":
                found[site.name] = found.get(site.name, 0.0) + node["log_prob_sum"].item()
        expected = dict.fromkeys(found, 0.0)
        for b in range(program.num_data):
            states = {key: _numbers(reference, key, b) for key in next(reference.states())}
            for term in reference.terms(name, 0, b, states):
                expected[term.site.name] += term.log_prob if term.dist_mask and term.mask else 0.0
        for site_name, value in expected.items():
            if not _close(found[site_name], value):
                raise Disagreement(f"{name} site {site_name}: Pyro {found[site_name]}, reference {value}\n{program}")


def reference_of(program: Program, batch: tuple[Tensor, ...], draws: dict[str, Tensor]) -> Reference:
    index = batch[1].tolist() if len(batch) > 1 else [0] * program.num_data
    return Reference(program, batch[0].tolist(), index, {name: _shaped(program, name, v) for name, v in draws.items()})


def refusal(program: Program, error: ValueError, *, expected: bool) -> str:
    """The reason of a refusal, without names and numbers."""
    line = str(error)
    if "\n" in line:
        raise Disagreement(f"a refusal of more than one line: {line}\n{program}") from error
    if not expected and not any(re.search(pattern, line) for pattern in REFUSALS):
        raise Disagreement(f"pvae refuses what it should answer: {line}\n{program}") from error
    return re.sub(r"-?\d+(\.\d+)?", "N", re.sub(r"'[^']*'", "'_'", line)).partition(";")[0]


def compare(program: Program, values: Tensor, expected: list, what: str) -> None:
    expected_values = torch.tensor(expected, dtype=torch.float64)
    # Where the reference, too, has no number (a guide outside of its own support), any answer would do.
    same = (values == expected_values) | ((values - expected_values).abs() <= TOLERANCE * (1 + expected_values.abs()))
    if values.shape != expected_values.shape or not same.all():
        raise Disagreement(f"{what}: pvae {values.tolist()}, reference {expected}\n{program}")


def is_subsampled(program: Program) -> bool:
    """Whether a site with a density is in an inner plate that holds a part of its entries."""
    parts = {plate.name for plate in program.plates if plate.how == "subsampled"}
    return any(parts.intersection(site.plates) for site in program.sites if site.is_random)


def _close(first: float, second: float) -> bool:
    return first == second or math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _site_of(program: Program, name: str):
    """The statement that made a site of this name."""
    base = name.split("_")[0]
    sites = {site.name: site for site in program.sites}
    return sites.get(base) if name in _names(program, sites.get(base)) else None


def _names(program: Program, site) -> set[str]:
    if site is None:
        return set()
    stem = f"{site.name}_decentered" if site.centered is not None else site.name
    names = {stem}
    for plate in program.inner(site):
        if plate.is_loop:
            names = {f"{name}_{i}" for name in names for i in range(plate.size)}
    return names


def _shaped(program: Program, name: str, draws: Tensor) -> list:
    """Draws as nested lists (K, B, *plates from the left, *event), without the dims that no plate uses."""
    site = _site_of(program, name)
    inner = sorted((p for p in program.inner(site) if not p.is_loop), key=lambda plate: plate.dim)
    event = (site.event,) if site.event else ()
    return draws.reshape(len(draws), program.num_data, *(plate.size for plate in inner), *event).tolist()


def _as_draws(program: Program, name: str, value: Tensor) -> Tensor:
    """The value of a single run as draws (1, B, ...)."""
    site = _site_of(program, name)
    event = 1 if site.event else 0
    full = value.reshape(*(1,) * (program.nesting + event - value.dim()), *value.shape)
    return full.movedim(program.data_dim - event, 0).unsqueeze(0)


def _numbers(reference: Reference, key: tuple[str, tuple[int, ...]], b: int) -> list[float]:
    """The value of a summed site in a run that drew it."""
    name, entry = key
    site = next(site for site in reference.program.model.sites if site.name == name)
    inner = reference.program.inner(site)
    return reference.draw(site, 0, b, {plate.name: i for plate, i in zip(inner, entry, strict=True)})
