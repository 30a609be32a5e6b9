"""The densities of the programs' families, written out for one number at a time, and the rule of what is observed."""

from __future__ import annotations

import math


def log_prob(family: str, at: float, spread: float, value: float) -> float:
    """The log density of one number under a family with this predictor and spread."""
    squashed = math.tanh(at)
    if family == "normal":
        return -0.5 * ((value - at) / spread) ** 2 - math.log(spread) - 0.5 * math.log(2 * math.pi)
    if family == "lognormal":
        return log_prob("normal", squashed, spread, math.log(value)) - math.log(value) if value > 0 else -math.inf
    if family == "gamma":
        shape = math.exp(squashed)
        if value <= 0:
            return -math.inf
        return shape * math.log(spread) - math.lgamma(shape) + (shape - 1) * math.log(value) - spread * value
    if family == "beta":
        a, b = math.exp(squashed), 1 + spread
        if not 0 < value < 1:
            return -math.inf
        log_norm = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
        return (a - 1) * math.log(value) + (b - 1) * math.log1p(-value) - log_norm
    if family == "uniform":
        return -math.log(3.0) if at - 1.5 <= value < at + 1.5 else -math.inf
    if family == "bernoulli":
        return -math.log1p(math.exp(-at if value else at))
    if family == "categorical":
        logits = [0.0, at, -0.5 * at]
        return logits[int(value)] - math.log(sum(map(math.exp, logits)))
    assert family == "poisson"
    return value * squashed - math.exp(squashed) - math.lgamma(value + 1)


def observation(family: str, row: list[float], number: float, e: int) -> float:
    """What is observed at one entry: a rule of the datum's row and of the entry."""
    real = row[2] + 0.4 * number - 0.3 * e
    if family == "bernoulli":
        return float(real > 0)
    if family == "categorical":
        return float(math.floor(2 * abs(real)) % 3)
    if family == "poisson":
        return float(math.floor(2 * abs(real)))
    if family == "beta":
        return 1 / (1 + math.exp(-real))
    return math.exp(real) if family in ("lognormal", "gamma") else real


def log_sum_exp(values: list[float]) -> float:
    """log of the sum of exponentials."""
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values)) if top > -math.inf else -math.inf
