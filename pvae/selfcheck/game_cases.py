"""Adversarial objectives with a given discriminator, and what each is to give on the line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pvae.objectives import AdversarialAutoencoder, AdversarialVB, GenerativeAdversarial
from pvae.selfcheck.answers import Answer, LineAnswers, expected, log_mean
from pvae.selfcheck.cases import Case
from pvae.selfcheck.pairs import LINE, Line, X

__all__ = ["game_cases"]

_DIVERGENCE = 3.0


def game_cases() -> Iterator[Case]:
    """The players' gradients while the discriminator stands still; at the true log ratio the ELBO has its own."""
    x = torch.full((2, 1), X, dtype=torch.float64)
    ratio = partial(AdversarialVB, Line(None), x, discriminator=_log_ratio)
    yield Case("AdversarialVB(log q - log p)", ratio, _of_elbo)
    autoencoder = partial(AdversarialAutoencoder, Line(None), x, _DIVERGENCE, discriminator=_affine)
    yield Case("AdversarialAutoencoder(3)", autoencoder, _of_autoencoder)
    yield Case("GenerativeAdversarial()", partial(GenerativeAdversarial, x, discriminator=_affine), _of_generator)


def _log_ratio(x: Tensor, z: Tensor) -> Tensor:
    """log q(z | x) - log p(z) of the line, its parameters held fixed."""
    (slope,), (loc,), (log_scale,) = LINE["slope"], LINE["loc"], LINE["log_scale"]
    noise = (z - slope * x - loc) / math.exp(log_scale)
    return 0.5 * (z.square() - noise.square()) - log_scale


def _affine(values: Tensor) -> Tensor:
    return 0.8 * values - 0.3


def _of_elbo() -> Answer:
    line = LineAnswers()
    return line.answer(expected(line.states(), 1, log_mean(0)))


def _of_autoencoder() -> Answer:
    line = LineAnswers()
    noise, probability = line.noise()
    z = line.draws(noise)
    likelihood = (line.log_likelihood(z) * probability).sum()
    told = ((logsigmoid(_affine(z)) + logsigmoid(-_affine(noise))) * probability).sum()
    fooled = (logsigmoid(-_affine(z)) * probability).sum()
    value = likelihood - 0.5 * _DIVERGENCE * (told + math.log(4))
    return line.answer(value, likelihood + _DIVERGENCE * fooled)


def _of_generator() -> Answer:
    line = LineAnswers()
    noise, probability = line.noise()
    # x' = theta + z + noise
    draws = line.theta + math.sqrt(2) * noise
    of_data = logsigmoid(_affine(torch.tensor(X, dtype=torch.float64)))
    told = of_data + (logsigmoid(-_affine(draws)) * probability).sum()
    return line.answer(-0.5 * (told + math.log(4)), (logsigmoid(_affine(draws)) * probability).sum())
