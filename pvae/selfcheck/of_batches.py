"""Objectives that compare the draws of a whole batch, against integrals over them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from pvae.objectives import BetaTCVAE, InfoVAE, Objective
from pvae.objectives.info import KernelName
from pvae.pair.pair import Pair
from pvae.selfcheck.answers import LineAnswers, expected, log_mean
from pvae.selfcheck.pairs import Line, LineGuide, X
from pvae.selfcheck.rows import Check, Measured, mean_of, value_and_parameters
from pvae.selfcheck.setting import Setting
from pvae.truth import linear_gaussian

__all__ = ["checks"]

_BATCH, _FEW = 100, 4
_WEIGHTS = (0.5, 3.0, 2.0)
_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def checks(setting: Setting) -> Iterator[Check]:
    """InfoVAE with both kernels, and the weighted terms of beta-TCVAE."""
    for kernel in ("imq", "rbf"):
        yield Check("gradients", f"InfoVAE(0.5, 2, {kernel})", "Gaussian line", partial(_info, setting, kernel))
    yield Check("gradients", "BetaTCVAE(0.5, 3, 2)", "linear Gaussian", partial(_total_correlation, setting))


def _against(
    setting: Setting, objective: Objective, pair: tuple[Any, Any, Tensor], leaves: dict[str, Tensor], truth: Tensor
) -> list[Measured]:
    """The mean over the batch and its gradients, in as many runs, against the truth (1 + P,)."""
    (model, guide, x), draws = pair, []
    with Pair(model, guide).inside():
        for _ in range(max(100, setting.num_samples // 40)):
            value = objective.bound(model, guide, x).mean()
            gradients = torch.autograd.grad(value, list(leaves.values()))
            draws.append(torch.cat([value.detach()[None], *[gradient.flatten() for gradient in gradients]]))
    return [mean_of(torch.stack(draws), truth, value_and_parameters(leaves))]


def _info(setting: Setting, kernel: KernelName) -> list[Measured]:
    line = LineAnswers()
    noise, probability = line.noise()
    z, pairs = line.draws(noise), probability[:, None] * probability

    def mean(left: Tensor, right: Tensor) -> Tensor:
        distances = (left[:, None] - right).square()
        if kernel == "rbf":
            return ((-distances / 2).exp() * pairs).sum()
        return (torch.stack([c / (c + distances) for c in _SCALES]).sum(0) * pairs).sum()

    mmd = mean(z, z) + mean(noise, noise) - 2 * mean(z, noise)
    # Half of the KL is left; the ELBO with none of it is log p(x | z).
    elbo, likelihood = expected(line.states(), 1, log_mean(0)), (line.log_likelihood(z) * probability).sum()
    known = line.answer(0.5 * elbo + 0.5 * likelihood - (0.5 + 2 - 1) * mmd)
    x = torch.full((_BATCH, 1), X, dtype=torch.float64)
    pair = setting.place(Line(None), LineGuide(None), x)
    leaves = dict([*pair[0].named_parameters(), *pair[1].named_parameters()])
    objective = InfoVAE(0.5, 2.0, kernel=kernel, scale=1.0)
    return _against(setting, objective, pair, leaves, torch.cat([known.value[None], known.gradient]))


def _total_correlation(setting: Setting) -> list[Measured]:
    known = linear_gaussian()
    model, guide, x = setting.place(known.model, known.guide, known.x[:_FEW])
    leaves = {"bias": guide.bias, "log_scale": guide.log_scale}
    value = _integrated(model, guide, x)
    truth = torch.cat([value.detach()[None], *torch.autograd.grad(value, list(leaves.values()))])
    return _against(setting, BetaTCVAE(*_WEIGHTS, num_data=_FEW), (model, guide, x), leaves, truth)


def _integrated(model: Any, guide: Any, x: Tensor) -> Tensor:
    """The mean over data of E[log p(x | z) - weighted terms of log q(z | x) - log p(z)], over a grid of z's noise."""
    pair = Pair(model, guide)
    with pair.inside():
        q = pair.run((x,), 1).guide["z"]["fn"].base_dist
    points = torch.linspace(-6, 6, 31, dtype=x.dtype, device=x.device)
    noise = torch.cartesian_prod(points, points, points)
    probability = Normal(0.0, 1.0).log_prob(noise).sum(-1).exp() * (points[1] - points[0]) ** 3
    z = (q.loc + q.scale * noise[:, None]).expand(-1, len(x), -1)
    log_prior = Normal(0.0, 1.0).log_prob(z).sum(-1)
    # (draws, the datum of the draw, the datum of the density, dims)
    pairs = Normal(q.loc, q.scale.expand_as(q.loc)).log_prob(z[:, :, None])
    own = pairs.diagonal(dim1=1, dim2=2).sum(1)
    joint = pairs.sum(-1).logsumexp(2) - math.log(len(x))
    product = (pairs.logsumexp(2) - math.log(len(x))).sum(-1)
    log_likelihood = Normal(model.loc + z @ model.weight.T, model.log_scale.exp()).log_prob(x).sum(-1)
    terms = (own - joint, joint - product, product - log_prior)
    integrand = log_likelihood - sum(weight * term for weight, term in zip(_WEIGHTS, terms, strict=True))
    return (integrand * probability[:, None]).sum(0).mean()
