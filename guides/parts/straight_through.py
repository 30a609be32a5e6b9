"""Discrete distributions whose draws have the gradient of their concrete relaxation."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import register_kl
from torch.nn.functional import logsigmoid

from pvae.guides.parts.temperature import Temperature

__all__ = ["OneHot", "StraightThroughBernoulli", "StraightThroughOneHot"]


class OneHot(dist.OneHotCategorical):
    """`OneHotCategorical` with draws that can be traced: torch's look at their own values."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """One-hot vectors, (*sample_shape, *batch_shape, C)."""
        return _one_hot(self._categorical.sample(torch.Size(sample_shape))[..., None], self.logits)


class StraightThroughBernoulli(dist.Bernoulli):
    """Bits h = [logits + L > 0] with L logistic noise, differentiated as sigmoid((logits + L) / temperature).

    Values and log probability are those of a Bernoulli; the latter is linear in the value, so that it has a gradient.

    Maddison, Mnih and Teh (2017), The Concrete Distribution; Jang, Gu and Poole (2017), section 2.2.
    """

    has_rsample = True

    def __init__(self, temperature: Temperature, logits: Tensor) -> None:
        self.temperature = temperature
        super().__init__(logits=logits, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StraightThroughBernoulli:
        """The same distribution of more draws."""
        return StraightThroughBernoulli(self.temperature, self.logits.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Bits, (*sample_shape, *batch_shape)."""
        logits = self.logits.expand(self._extended_shape(sample_shape))
        noisy = logits + _uniform(logits).logit()
        return _hard((noisy > 0).to(logits), torch.sigmoid(noisy / self.temperature.value))

    def log_prob(self, value: Tensor) -> Tensor:
        """log Bernoulli(value; logits), in nats."""
        return value * self.logits + logsigmoid(-self.logits)


class StraightThroughOneHot(OneHot):
    """One-hot h at the largest of logits + G, G Gumbel noise, differentiated as softmax((logits + G) / temperature).

    Values and log probability are those of a one-hot categorical; the latter is linear in the value, so that it has a
    gradient.

    Jang, Gu and Poole (2017), Categorical Reparameterization with Gumbel-Softmax.
    """

    has_rsample = True

    def __init__(self, temperature: Temperature, logits: Tensor) -> None:
        self.temperature = temperature
        super().__init__(logits=logits, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StraightThroughOneHot:
        """The same distribution of more draws."""
        return StraightThroughOneHot(self.temperature, self.logits.expand(*batch_shape, *self.event_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """One-hot vectors, (*sample_shape, *batch_shape, C)."""
        logits = self.logits.expand(self._extended_shape(sample_shape))
        noisy = logits - (-_uniform(logits).log()).log()
        return _hard(
            _one_hot(noisy.argmax(-1, keepdim=True), logits), torch.softmax(noisy / self.temperature.value, -1)
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """log Categorical(value; logits), in nats."""
        return (value * self.logits).sum(-1)


def _kl_bernoulli(p: StraightThroughBernoulli, q: dist.Bernoulli) -> Tensor:
    """In closed form, for batch shapes that broadcast, which torch's own does not take."""
    ones = p.probs * (logsigmoid(p.logits) - logsigmoid(q.logits))
    return ones + (1 - p.probs) * (logsigmoid(-p.logits) - logsigmoid(-q.logits))


register_kl(StraightThroughBernoulli, dist.Bernoulli)(_kl_bernoulli)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    """From indices (..., 1) to vectors (..., C) of the width and dtype of `like`."""
    return (index == torch.arange(like.shape[-1], device=like.device)).to(like)


def _uniform(like: Tensor) -> Tensor:
    """Uniform noise, away from 0 and 1."""
    tiny = torch.finfo(like.dtype).eps
    return torch.rand_like(like).clamp(tiny, 1 - tiny)


def _hard(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of one with the gradient of the other."""
    return hard + (soft - soft.detach())
