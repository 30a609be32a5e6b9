"""Bounds on the log p(x) of every truth: their order, their known gaps, and objectives that must equal each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from pvae.objectives import CIWAE, ELBO, IWAE, MIWAE, PIWAE, Objective, Renyi
from pvae.pair.contexts import seeded
from pvae.pair.pair import Pair
from pvae.selfcheck.rows import Check, Measured, apart, mean_of, not_above
from pvae.selfcheck.setting import Setting
from pvae.truth import Truth, linear_gaussian

__all__ = ["checks"]

_REPEATS = 400
_ROUNDED = 1e-10

_IDENTITIES: dict[str, tuple[Callable[[], Objective], Callable[[], Objective]]] = {
    "IWAE(1) = ELBO()": (partial(IWAE, 1), ELBO),
    "MIWAE(1, 6) = IWAE(6)": (partial(MIWAE, 1, 6), partial(IWAE, 6)),
    "MIWAE(6, 1) = ELBO(6)": (partial(MIWAE, 6, 1), partial(ELBO, 6)),
    "PIWAE(1, 6) = IWAE(6)": (partial(PIWAE, 1, 6), partial(IWAE, 6)),
    "CIWAE(1, 6) = ELBO(6)": (partial(CIWAE, 1.0, 6), partial(ELBO, 6)),
    "CIWAE(0, 6) = IWAE(6)": (partial(CIWAE, 0.0, 6), partial(IWAE, 6)),
    "Renyi(0, 6) = IWAE(6)": (partial(Renyi, 0.0, 6), partial(IWAE, 6)),
    "Renyi(1, 6) = ELBO(6)": (partial(Renyi, 1.0, 6), partial(ELBO, 6)),
}


def checks(setting: Setting) -> Iterator[Check]:
    """For each truth the order of its bounds, and the ELBO's gap where the posterior is known; the identities."""
    for build in setting.builders:
        known = build()
        yield Check("bounds", "ELBO <= IWAE <= log p(x)", known.name, partial(_order, setting, known))
        if known.exact_guide is not None:
            yield Check("bounds", "ELBO = log p(x) - KL", known.name, partial(_gap, setting, known))
    for name, (left, right) in _IDENTITIES.items():
        yield Check("bounds", name, linear_gaussian().name, partial(_same, setting, left, right))


@torch.no_grad()
def _draws(setting: Setting, known: Truth, objective: Objective) -> Tensor:
    """A bound's mean over data, in independent draws (R,): one run on the data so many times over."""
    model, guide, x = setting.place(known.model, known.guide, known.x)
    with Pair(model, guide).inside():
        bound = objective.bound(model, guide, x.repeat(_REPEATS, *(1,) * (x.dim() - 1)))
    return bound.reshape(_REPEATS, -1).mean(1).cpu()


def _order(setting: Setting, known: Truth) -> list[Measured]:
    draws = [_draws(setting, known, objective) for objective in (ELBO(), IWAE(5), IWAE(50))]
    log_prob = known.log_prob.mean().expand(_REPEATS)
    return [not_above([*draws, log_prob], ["ELBO", "IWAE(5)", "IWAE(50)", "log p(x)"])]


def _gap(setting: Setting, known: Truth) -> list[Measured]:
    """The ELBO against log p(x) - KL(q(z | x) || p(z | x)), the KL in closed form."""
    model, guide, x = setting.place(known.model, known.guide, known.x)
    _, posterior, _ = setting.place(model, known.exact_guide, x)
    with Pair(model, guide).inside(), torch.no_grad():
        kl = kl_divergence(*[_distribution(model, each, x) for each in (guide, posterior)])
    truth = (known.log_prob - kl.cpu()).mean()
    return [mean_of(_draws(setting, known, ELBO()), truth, ["mean bound"])]


def _distribution(model: Any, guide: Any, x: Tensor) -> Distribution:
    """What the guide draws its only latent from."""
    (site,) = Pair(model, guide).run((x,), 1).guide.values()
    fn: Distribution = site["fn"]
    if isinstance(fn, Independent) and isinstance(fn.base_dist, Normal):
        return MultivariateNormal(fn.mean, scale_tril=torch.diag_embed(fn.stddev))
    return fn


def _same(setting: Setting, left: Callable[[], Objective], right: Callable[[], Objective]) -> list[Measured]:
    known = linear_gaussian()
    model, guide, x = setting.place(known.model, known.guide, known.x)
    leaves = [*model.parameters(), *guide.parameters()]
    found = []
    for make in (left, right):
        with Pair(model, guide).inside(), seeded(setting.seed, setting.device):
            bound = make().bound(model, guide, x)
        gradients = torch.autograd.grad(bound.sum(), leaves)
        found.append(torch.cat([bound.detach(), *[gradient.flatten() for gradient in gradients]]))
    return [apart(found[0], found[1], _ROUNDED, "value and gradient")]
