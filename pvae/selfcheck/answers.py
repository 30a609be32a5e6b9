"""Expected bounds and their gradients, by sums over all states of a latent or over a fine grid of its noise.

None of it runs a pair: densities are written out, and autograd goes through the sum itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from pvae.selfcheck.pairs import BITS, LINE, X

__all__ = ["Answer", "BitsAnswers", "LineAnswers", "States", "expected", "log_mean", "wake"]

Value = Callable[[Tensor], Tensor]
_X = torch.tensor(X, dtype=torch.float64)


class Answer(NamedTuple):
    """A value and its gradient by all parameters, model's first, (P,)."""

    value: Tensor
    gradient: Tensor


class States(NamedTuple):
    """Draws of the guide with their probabilities, log p(x, z) and log q(z | x), each (S,)."""

    probability: Tensor
    log_joint: Tensor
    log_guide: Tensor


def log_mean(power: float) -> Value:
    """1/a log of the mean of w^a over the first dim, from log weights; their mean for a = 0."""

    def value(log_weights: Tensor) -> Tensor:
        if power == 0:
            return log_weights.mean(0)
        return ((power * log_weights).logsumexp(0) - math.log(len(log_weights))) / power

    return value


def expected(states: States, num_samples: int, value: Value) -> Tensor:
    """E value(log w_1, ..., log w_K) over K independent draws, a scalar."""
    log_weights, probability = _all(states, num_samples)
    return (value(log_weights) * probability).sum()


def wake(states: States, num_samples: int) -> Tensor:
    """E sum_k v_k (log p(x, z_k) + log q(z_k | x)) with the normalised weights v and the draws held fixed, a scalar."""
    log_weights, probability = _all(states, num_samples)
    # All draws count alike, so K times the first.
    first = (log_weights.softmax(0)[0] * probability).detach().flatten(1).sum(1)
    return num_samples * (first * (states.log_joint + states.log_guide)).sum()


def _all(states: States, num_samples: int) -> tuple[Tensor, Tensor]:
    """Log weights (K, S, ..., S) of every K draws, and their probability."""
    log_weights = states.log_joint - states.log_guide
    shapes = [[-1 if k == dim else 1 for dim in range(num_samples)] for k in range(num_samples)]
    stacked = torch.stack(torch.broadcast_tensors(*[log_weights.reshape(shape) for shape in shapes]))
    probability = torch.ones((), dtype=log_weights.dtype)
    for shape in shapes:
        probability = probability * states.probability.reshape(shape)
    return stacked, probability


class _Answers:
    """Leaves to differentiate by, one for each parameter of a pair, model's first."""

    def __init__(self, values: Mapping[str, list[float]]) -> None:
        self.leaves = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values.values()]

    def answer(self, value: Tensor, of_gradient: Tensor | None = None) -> Answer:
        """A value, and the gradient of it or of another."""
        found = torch.autograd.grad(
            value if of_gradient is None else of_gradient, self.leaves, allow_unused=True, materialize_grads=True
        )
        return Answer(value.detach(), torch.cat(found))


class LineAnswers(_Answers):
    """Of `Line` and `LineGuide` at `X`, by the trapezoidal rule, whose error for a Gaussian falls like e^(-20/h^2)."""

    def __init__(self) -> None:
        super().__init__(LINE)
        self.theta, self.slope, self.loc, self.log_scale = self.leaves

    def noise(self, num_points: int = 161) -> tuple[Tensor, Tensor]:
        """Points of a standard normal and their probabilities."""
        points = torch.linspace(-7, 7, num_points, dtype=torch.float64)
        return points, Normal(0.0, 1.0).log_prob(points).exp() * (points[1] - points[0])

    def draws(self, noise: Tensor) -> Tensor:
        """z."""
        return self.slope * X + self.loc + self.log_scale.exp() * noise

    def log_likelihood(self, z: Tensor) -> Tensor:
        """log p(x | z)."""
        return Normal(self.theta + z, 1.0).log_prob(_X)

    def states(self, num_points: int = 161, *, detach: str = "") -> States:
        """On a grid; with the "draws" held fixed, or the parameters of the "density" q."""
        noise, probability = self.noise(num_points)
        z = self.draws(noise).detach() if detach == "draws" else self.draws(noise)
        mean, scale = self.slope * X + self.loc, self.log_scale.exp()
        if detach == "density":
            mean, scale = mean.detach(), scale.detach()
        log_joint = Normal(0.0, 1.0).log_prob(z) + self.log_likelihood(z)
        return States(probability, log_joint, Normal(mean, scale).log_prob(z))


class BitsAnswers(_Answers):
    """Of `Bits` and `BitsGuide` at `X`, by enumeration."""

    def __init__(self) -> None:
        super().__init__(BITS)

    def states(self) -> States:
        """All eight."""
        bias, weight, guide_slope, guide_bias = self.leaves
        y = ((torch.arange(8)[:, None] >> torch.arange(3)) & 1).double()
        log_guide = Bernoulli(logits=guide_slope * X + guide_bias).log_prob(y).sum(-1)
        log_joint = Bernoulli(logits=bias).log_prob(y).sum(-1) + Normal(y @ weight, 1.0).log_prob(_X)
        return States(log_guide.exp(), log_joint, log_guide)
