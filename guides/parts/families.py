"""Reparameterised families by name: where each lives, what numbers it takes, how its draws carry gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pvae.guides.parts import inverse_cdf

__all__ = ["FAMILIES", "NORMAL", "Family", "Number", "table"]


@dataclass(frozen=True)
class Number:
    """One number of a family: raw itself for a floor of None, else `floor` + softplus(raw).

    Or by ratio, `floor` + exp(raw), which goes on linearly above exp(8): for shapes, whose effect goes by their ratios,
    so that training reaches large ones in few steps.
    """

    name: str
    floor: float | None = 0.0
    by_ratio: bool = False

    def of(self, raw: Tensor, min_scale: float) -> Tensor:
        """The number, of the shape of `raw`; at least `min_scale` unless it is free."""
        if self.floor is None:
            return raw
        # The gradient of beta draws, torch's, is wrong for shapes of 1e5 and not finite for 1e7.
        value = raw.clamp(max=8).exp() * (1 + (raw - 8).clamp(min=0)) if self.by_ratio else softplus(raw)
        return max(self.floor, min_scale) + value


@dataclass(frozen=True)
class Family:
    """A family of distributions of one latent number (of one vector on a simplex).

    Attributes:
        name: what `MeanField(..., family=name)` calls it.
        lives: the kinds of support it serves as it is: "real", "positive", "interval", "simplex".
        numbers: what it takes per latent; the encoder gives as many.
        build: from these numbers to the distribution on the reals, the positive reals, (0, 1) or the simplex.
        pathwise: how a draw depends on the numbers: "inverse CDF", "location-scale", "composition" or "implicit".
        use: when to choose it.
        covers: whether it has mass wherever the support has.
        carried: whether its tails are light enough to be carried to other supports by a bijection.
        inside: of a family of the reals that has ends, what it is on (0, 1), given its ends and corners.
    """

    name: str
    lives: tuple[str, ...]
    numbers: tuple[Number, ...]
    build: Callable[..., Any]
    pathwise: str
    use: str
    covers: bool = True
    carried: bool = False
    inside: Callable[..., Any] | None = None

    def on(self, kind: str, raw: tuple[Tensor, ...], min_scale: float) -> Any:
        """The distribution on a kind of support, from one raw tensor per number; all of one shape, which is kept."""
        if kind == "interval" and self.inside is not None:
            return self.inside(*_corners(raw, min_scale))
        return self.build(*(number.of(each, min_scale) for number, each in zip(self.numbers, raw, strict=True)))


def _corners(raw: tuple[Tensor, ...], min_scale: float) -> tuple[Tensor, ...]:
    """As many rising points of (0, 1) as there are raw tensors, each gap at least `min_scale` (or a tenth)."""
    floor = min(min_scale, 0.1)
    gaps = torch.stack([*raw, torch.zeros_like(raw[0])], -1).softmax(-1)
    return (floor + (1 - floor * gaps.shape[-1]) * gaps)[..., :-1].cumsum(-1).unbind(-1)


class _Beta(dist.Beta):
    """Beta whose draws stay off 1, where 1 - z is lost to the floats and the density is not finite."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        draws: Tensor = super().rsample(sample_shape)
        limits = torch.finfo(draws.dtype)
        return draws.clamp(limits.tiny, 1 - limits.eps / 2)


_LOC, _SCALE = Number("loc", None), Number("scale")
# Below a tenth, most draws of a gamma are smaller than any float.
_SHAPE = Number("concentration", 0.1, by_ratio=True)
# Stages of the Erlang distribution, a whole number: its mode is off 0.
_STAGES = 2.0

_TABLE = (
    Family(
        "normal",
        ("real",),
        (_LOC, _SCALE),
        dist.Normal,
        "location-scale",
        "the start",
        carried=True,
    ),
    Family(
        "laplace",
        ("real",),
        (_LOC, _SCALE),
        dist.Laplace,
        "location-scale",
        "sharp modes, exponential tails; sparse priors",
        carried=True,
    ),
    Family(
        "logistic",
        ("real",),
        (_LOC, _SCALE),
        inverse_cdf.logistic,
        "inverse CDF",
        "a little heavier than normal: safer weights",
        carried=True,
    ),
    Family(
        "gumbel",
        ("real",),
        (_LOC, _SCALE),
        dist.Gumbel,
        "inverse CDF",
        "skewed to the right",
        carried=True,
    ),
    Family(
        "student_t",
        ("real",),
        (_LOC, _SCALE, Number("df", 2.0)),
        lambda loc, scale, df: dist.StudentT(df, loc, scale),
        "composition",
        "tails as heavy as needed, the variance finite: weights of log p(x)",
    ),
    Family(
        "cauchy",
        ("real",),
        (_LOC, _SCALE),
        dist.Cauchy,
        "inverse CDF",
        "the heaviest tails, bounded weights; its ELBO is -inf under a Gaussian prior, so train by IWAE",
    ),
    Family(
        "uniform",
        ("real", "interval"),
        (_LOC, Number("half_width")),
        lambda loc, half_width: inverse_cdf.uniform(loc - half_width, loc + half_width),
        "location-scale",
        "known to be bounded; ELBO only",
        covers=False,
        inside=inverse_cdf.uniform,
    ),
    Family(
        "triangular",
        ("real", "interval"),
        (_LOC, Number("left"), Number("right")),
        lambda loc, left, right: inverse_cdf.triangular(loc - left, loc, loc + right),
        "location-scale",
        "known to be bounded, with a mode; ELBO only",
        covers=False,
        inside=inverse_cdf.triangular,
    ),
    Family(
        "exponential",
        ("positive",),
        (_SCALE,),
        lambda scale: dist.Exponential(1 / scale),
        "inverse CDF",
        "waiting times, mass at 0",
    ),
    Family(
        "erlang",
        ("positive",),
        (_SCALE,),
        lambda scale: dist.Gamma(torch.full_like(scale, _STAGES), 1 / scale),
        "composition",
        "gamma of two stages: one number, nothing at 0",
    ),
    Family(
        "rayleigh",
        ("positive",),
        (_SCALE,),
        inverse_cdf.rayleigh,
        "inverse CDF",
        "lengths, Gaussian tail: too light under an exponential posterior",
    ),
    Family(
        "weibull",
        ("positive",),
        (_SCALE, Number("concentration", 0.5)),
        dist.Weibull,
        "inverse CDF",
        "gamma-like with an explicit gradient; the usual stand-in for gamma posteriors",
    ),
    Family(
        "gompertz",
        ("positive",),
        (_SHAPE, _SCALE),
        inverse_cdf.gompertz,
        "inverse CDF",
        "life times with a sharp end: its tail is lighter than any other here",
    ),
    Family(
        "log_normal",
        ("positive",),
        (_LOC, _SCALE),
        dist.LogNormal,
        "composition",
        "rates and scales over orders of magnitude; what normal is on a positive site",
    ),
    Family(
        "gamma",
        ("positive",),
        (_SHAPE, Number("mean")),
        # Shape and mean are orthogonal in Fisher's sense, shape and rate nearly collinear.
        lambda concentration, mean: dist.Gamma(concentration, concentration / mean),
        "implicit",
        "rates of counts: exact for Poisson likelihoods under gamma priors",
    ),
    Family(
        "chi_squared",
        ("positive",),
        (Number("df", 0.2, by_ratio=True),),
        dist.Chi2,
        "implicit",
        "sums of squares, one number",
    ),
    Family(
        "f",
        ("positive",),
        (Number("df1", 0.2, by_ratio=True), Number("df2", 4.0, by_ratio=True)),
        dist.FisherSnedecor,
        "implicit",
        "ratios of variances, a power tail with finite variance",
    ),
    Family(
        "pareto",
        ("positive",),
        (_SCALE, Number("alpha", 2.0)),
        inverse_cdf.pareto,
        "inverse CDF",
        "power tails above a threshold; ELBO only",
        covers=False,
    ),
    Family(
        "reciprocal",
        ("positive",),
        (Number("low"), Number("log_ratio")),
        lambda low, log_ratio: inverse_cdf.reciprocal(low, low * log_ratio.exp()),
        "inverse CDF",
        "scales known between two ends; ELBO only",
        covers=False,
    ),
    Family(
        "beta",
        ("interval",),
        (Number("concentration1", 0.1, by_ratio=True), Number("concentration0", 0.1, by_ratio=True)),
        _Beta,
        "implicit",
        "probabilities: exact for Bernoulli likelihoods under beta priors",
    ),
    Family(
        "dirichlet",
        ("simplex",),
        (_SHAPE,),
        dist.Dirichlet,
        "implicit",
        "shares and topics: exact for categorical likelihoods under Dirichlet priors; sparse ones stay near corners",
    ),
)

# Each coordinate of an elliptical distribution with these radii is Student-t, and here coordinates are independent.
FAMILIES: Mapping[str, Family] = {family.name: family for family in _TABLE} | {
    "elliptical": next(family for family in _TABLE if family.name == "student_t")
}
NORMAL = FAMILIES["normal"]


def table() -> str:
    """All families as a Markdown table; every one has an exact density and pathwise gradients.

    "carried" is a family of the reals that serves any other continuous support, too, through a bijection. One that does
    not cover its site gives a lower bound of log p(x) which more samples do not close.
    """
    lines = [
        "| family | lives on | numbers per latent | pathwise | covers the site | when |",
        "|---|---|---|---|---|---|",
    ]
    for name, family in FAMILIES.items():
        lives = ", ".join(family.lives) + (", carried to others" if family.carried else "")
        numbers = ", ".join(number.name for number in family.numbers)
        count = f"{len(family.numbers)}: {numbers}"
        covers = "yes" if family.covers else "no"
        lines.append(f"| `{name}` | {lives} | {count} | {family.pathwise} | {covers} | {family.use} |")
    return "\n".join(lines)
