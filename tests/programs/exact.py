"""log p(x) of programs that have it in closed form: discrete latents by enumeration, Gaussian ones by algebra."""

from __future__ import annotations

import dataclasses
import itertools
import math

import torch
from torch import Tensor

import pvae
from pvae.estimators import Enumeration, ImportanceSampling
from tests.programs.checks import Disagreement, compare, is_subsampled, reference_of, refusal
from tests.programs.engine import matrix_of
from tests.programs.program import STATES, Program, Site
from tests.programs.pyro_side import build
from tests.programs.reference import Reference, log_sum_exp

_MOST_STATES, _MOST_DIMS = 256, 5


def is_small(program: Program, *, discrete: bool) -> bool:
    """Whether the sum, or the integral, over all latents is a matter of moments."""
    sizes = [entries(program, site) for site in program.model.sites if site.role == "latent"]
    if is_subsampled(program) or program.breach:
        return False
    if discrete:
        return program.states() * math.prod(STATES["bernoulli"] ** size for size in sizes) <= _MOST_STATES
    return sum(sizes) <= _MOST_DIMS


def entries(program: Program, site: Site) -> int:
    return math.prod(plate.size for plate in program.inner(site)) * max(site.event, 1)


def check_log_marginal(program: Program, *, discrete: bool, num_samples: int = 500) -> str:
    """Compare log p(x) with its closed form: by enumeration exactly, by importance sampling within 5 errors."""
    pair = build(program)
    exact = by_enumeration(program, pair.batch) if discrete else by_algebra(program, pair)
    estimators = [ImportanceSampling(num_samples, step_mode="eager"), *([Enumeration()] if discrete else [])]
    for estimator in estimators:
        try:
            found = pvae.log_marginal(
                pair.model, pair.guide, pair.batch, estimator, batch_size=program.num_data, seed=1, progress=False
            )
        except ValueError as error:
            return refusal(program, error, expected=False)
        if isinstance(estimator, Enumeration):
            compare(program, found.values.double(), exact, "Enumeration")
            continue
        for b, value in enumerate(exact):
            # Above this k-hat the weights may have no variance, and the standard error says nothing.
            if found.khat[b] < 0.5 and abs(found.values[b] - value) > 5 * found.mc_standard_errors[b] + 1e-6:
                estimate = f"{found.values[b]} +- {found.mc_standard_errors[b]}"
                raise Disagreement(f"log p(x) of datum {b} is {value}, pvae {estimate}\n{program}")
    return "answered"


def by_enumeration(program: Program, batch: tuple[Tensor, ...]) -> list[float]:
    """log p(x) of every datum, all of the latents summed out."""
    sites = [dataclasses.replace(s, role="summed") if s.role == "latent" else s for s in program.model.sites]
    summed = dataclasses.replace(program, model=dataclasses.replace(program.model, sites=tuple(sites)))
    reference = reference_of(summed, batch, {})
    return [reference.log_joint(0, b) for b in range(program.num_data)]


def by_algebra(program: Program, pair) -> list[float]:
    """log p(x) of every datum where log p(x, z) is quadratic in z, from its values at a few z.

    At a state of the summed sites, log p(x, z) = c + g z - z A z / 2, so that its integral is
    exp(c + g A^-1 g / 2) sqrt((2 pi)^D / det A).
    """
    _, draws = matrix_of(pair.model, pair.guide, pair.batch, 1, 0)
    names = list(draws)
    sizes = [draws[name][0, 0].numel() for name in names]
    values = []
    for b in range(program.num_data):
        points = _points(sum(sizes))
        placed = {name: torch.zeros(len(points), *draws[name].shape[1:], dtype=torch.float64) for name in names}
        for name, part in zip(names, points.split(sizes, dim=1), strict=True):
            placed[name][:, b] = part.reshape(len(points), *draws[name].shape[2:])
        reference = reference_of(program, pair.batch, placed)
        values.append(log_sum_exp([_integral(reference, b, state, points) for state in reference.states()]))
    return values


def _points(dims: int) -> Tensor:
    """Where a quadratic function of so many dims has to be known: 0, each unit, its negative, each pair of units."""
    units = torch.eye(dims, dtype=torch.float64)
    pairs = [units[i] + units[j] for i, j in itertools.combinations(range(dims), 2)]
    return torch.stack([torch.zeros(dims, dtype=torch.float64), *units, *-units, *pairs])


def _integral(reference: Reference, b: int, state, points: Tensor) -> float:
    def value(k: int) -> float:
        return sum(reference.counted(term) for term in reference.terms("model", k, b, state))

    f, dims = [value(k) for k in range(len(points))], points.shape[1]
    if not dims:
        return f[0]
    up, down, both = f[1 : 1 + dims], f[1 + dims : 1 + 2 * dims], iter(f[1 + 2 * dims :])
    precision = torch.diag(torch.tensor([2 * f[0] - u - d for u, d in zip(up, down, strict=True)], dtype=torch.float64))
    for i, j in itertools.combinations(range(dims), 2):
        precision[i, j] = precision[j, i] = -(next(both) - up[i] - up[j] + f[0])
    slope = torch.tensor([(u - d) / 2 for u, d in zip(up, down, strict=True)], dtype=torch.float64)
    quadratic = slope @ torch.linalg.solve(precision, slope) / 2
    return (f[0] + quadratic + dims / 2 * math.log(2 * math.pi) - torch.logdet(precision) / 2).item()
