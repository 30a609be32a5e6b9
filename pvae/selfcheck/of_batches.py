"""Objectives that compare the draws of a whole batch, against integrals over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from pvae.layout import read_layout
from pvae.objectives import BetaTCVAE, InfoVAE, Objective
from pvae.objectives.info import KernelName
from pvae.runs import run_pair
from pvae.selfcheck.answers import LineAnswers, expected, log_mean
from pvae.selfcheck.pairs import Line, LineGuide, X
from pvae.selfcheck.rows import Check, Measured, mean_of
from pvae.selfcheck.setting import Setting
from pvae.store import private_store
from pvae.truth import linear_gaussian

__all__ = ["checks"]

_REPEATS, _BATCH, _FEW = 200, 100, 4
_WEIGHTS = (0.5, 3.0, 2.0)
_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def checks(setting: Setting) -> Iterator[Check]:
    """InfoVAE with both kernels, and the weighted terms of beta-TCVAE."""
    for kernel in ("imq", "rbf"):
        yield Check("gradients", f"InfoVAE(0.5, 2, {kernel})", "Gaussian line", partial(_info, setting, kernel))
    yield Check("gradients", "BetaTCVAE(0.5, 3, 2)", "linear Gaussian", partial(_total_correlation, setting))


def _repeated(
    objective: Objective, model: nn.Module, guide: nn.Module, x: Tensor, leaves: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Means over the batch (R,) and their gradients (R, P), from as many runs."""
    values, gradients = [], []
    with private_store(model, guide):
        for _ in range(_REPEATS):
            value = objective.bound(model, guide, x).mean()
            found = torch.autograd.grad(value, leaves)
            values.append(value.detach())
            gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    return torch.stack(values), torch.stack(gradients)


def _info(setting: Setting, kernel: KernelName) -> dict[str, Measured]:
    line = LineAnswers()
    noise, probability = line.noise(161)
    z, pairs = line.draws(noise), probability[:, None] * probability

    def mean(left: Tensor, right: Tensor) -> Tensor:
        distances = (left[:, None] - right).square()
        if kernel == "rbf":
            return ((-distances / 2).exp() * pairs).sum()
        return (torch.stack([c / (c + distances) for c in _SCALES]).sum(0) * pairs).sum()

    mmd = mean(z, z) + mean(noise, noise) - 2 * mean(z, noise)
    # Half of the KL is left; the ELBO with none of it is log p(x | z).
    elbo, likelihood = expected(line.states(), 1, log_mean(0)), _log_likelihood(line)
    known = line.answer(0.5 * elbo + 0.5 * likelihood - (0.5 + 2 - 1) * mmd)
    model, guide = (pair(None).to(setting.device) for pair in (Line, LineGuide))
    leaves = [*model.parameters(), *guide.parameters()]
    x = torch.full((_BATCH, 1), X, dtype=torch.float64, device=setting.device)
    values, gradients = _repeated(InfoVAE(0.5, 2.0, kernel=kernel, scale=1.0), model, guide, x, leaves)
    return {"value": mean_of(values, known.value), "gradient": mean_of(gradients, known.gradient)}


def _log_likelihood(line: LineAnswers) -> Tensor:
    noise, probability = line.noise(161)
    return (Normal(line.theta + line.draws(noise), 1.0).log_prob(torch.tensor(X, dtype=torch.float64)) * probability).sum()


def _total_correlation(setting: Setting) -> dict[str, Measured]:
    known = linear_gaussian()
    model, guide = (part.to(setting.device) for part in (known.model, known.guide))  # type: ignore[attr-defined]
    x = known.x[:_FEW].to(setting.device)
    leaves = [guide.bias, guide.log_scale]
    truth = _integrated(model, guide, x)
    slope = torch.cat(torch.autograd.grad(truth, leaves))
    objective = BetaTCVAE(*_WEIGHTS, num_data=_FEW)
    values, gradients = _repeated(objective, model, guide, x, leaves)
    return {"value": mean_of(values, truth), "gradient": mean_of(gradients, slope)}


def _integrated(model: nn.Module, guide: nn.Module, x: Tensor) -> Tensor:
    """The mean over data of E[log p(x | z) - weighted terms of log q(z | x) - log p(z)], over a grid of z's noise."""
    with private_store(model, guide):
        layout = read_layout(model, guide, (x,), 1)
        q = run_pair(model, guide, (x,), 1, layout).guide["z"]["fn"].base_dist
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
