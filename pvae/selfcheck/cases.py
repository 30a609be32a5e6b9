"""Objectives with their gradients, and what each is to give on the line and on the bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pvae.objectives import (
    CIWAE,
    CUBO,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    FisherAutoencoder,
    Objective,
    Renyi,
    ReweightedWakeSleep,
    Supervised,
)
from pvae.objectives.baselines import LeaveOneOut, Neural, RunningMean
from pvae.selfcheck.answers import Answer, BitsAnswers, LineAnswers, expected, log_mean, wake
from pvae.selfcheck.pairs import X

__all__ = ["Case", "bits_cases", "line_cases"]

# Points of a grid for each of four draws, whose product must fit in memory.
_COARSE = 35


class Case(NamedTuple):
    """A name, how to build the objective, and its answer."""

    name: str
    make: Callable[[], Objective]
    answer: Callable[[], Answer]


def line_cases() -> Iterator[Case]:
    """Every objective that takes any pair, and every gradient that is right for it."""
    for name, make, answer in _line_bounds():
        for word, options in _options(name).items():
            yield Case(f"{name}{word})", partial(make, **options), answer)
    for phase in ("wake", "sleep", "both"):
        make = partial(ReweightedWakeSleep, 2, phase=phase)
        yield Case(f"ReweightedWakeSleep(2, {phase})", make, partial(_of_wake_sleep, phase))
    yield Case("FisherAutoencoder()", FisherAutoencoder, _of_fisher)
    # Nothing is labelled on the line, so that the bound is left alone.
    yield Case("Supervised(ELBO(2))", partial(Supervised, ELBO(2)), partial(_of_bound, 1, log_mean(0)))


def bits_cases() -> Iterator[Case]:
    """Score functions with every baseline, and wake phases."""

    def of_elbo() -> Answer:
        bits = BitsAnswers()
        return bits.answer(expected(bits.states(), 1, log_mean(0)))

    def of_iwae() -> Answer:
        bits = BitsAnswers()
        return bits.answer(expected(bits.states(), 2, log_mean(1)))

    def of_wake() -> Answer:
        bits = BitsAnswers()
        return bits.answer(expected(bits.states(), 2, log_mean(1)), wake(bits.states(), 2))

    score = partial(IWAE, 2, gradient="score")
    neural = Neural(torch.full((2, 1), X, dtype=torch.float64), hidden=(4,), normalize=False)
    yield Case("ELBO(2, score)", partial(ELBO, 2, gradient="score"), of_elbo)
    yield Case("ELBO(2, leave one out)", partial(ELBO, 2, gradient="score", baseline=LeaveOneOut()), of_elbo)
    yield Case("IWAE(2, score)", score, of_iwae)
    yield Case("IWAE(2, leave one out)", partial(score, baseline=LeaveOneOut()), of_iwae)
    yield Case("IWAE(2, running mean)", partial(score, baseline=RunningMean()), of_iwae)
    yield Case("IWAE(2, neural)", partial(score, baseline=neural), of_iwae)
    yield Case("IWAE(2, mixed)", partial(IWAE, 2, gradient="mixed"), of_iwae)
    yield Case("ReweightedWakeSleep(2, wake)", partial(ReweightedWakeSleep, 2), of_wake)


def _line_bounds() -> Iterator[tuple[str, Callable[..., Objective], Callable[[], Answer]]]:
    def mix(log_weights: Tensor) -> Tensor:
        return 0.3 * log_mean(0)(log_weights) + 0.7 * log_mean(1)(log_weights)

    yield "ELBO(2", partial(ELBO, 2), partial(_of_bound, 1, log_mean(0))
    yield "IWAE(4", partial(IWAE, 4), partial(_of_bound, 4, log_mean(1))
    yield "MIWAE(3, 2", partial(MIWAE, 3, 2), partial(_of_bound, 2, log_mean(1))
    yield "PIWAE(2, 2", partial(PIWAE, 2, 2), _of_piwae
    yield "CIWAE(0.3, 2", partial(CIWAE, 0.3, 2), partial(_of_bound, 2, mix)
    yield "Renyi(0.5, 2", partial(Renyi, 0.5, 2), partial(_of_bound, 2, log_mean(0.5))
    yield "Renyi(-1, 2", partial(Renyi, -1.0, 2), partial(_of_bound, 2, log_mean(2))
    yield "CUBO(2", partial(CUBO, 2), _of_cubo


def _options(name: str) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {
        "": {},
        ", dreg": {"gradient": "dreg"},
        ", score": {"gradient": "score"},
        ", leave one out": {"gradient": "score", "baseline": LeaveOneOut()},
    }
    if name == "ELBO(2":
        found[", stl"] = {"gradient": "stl"}
        found[", running mean"] = {"gradient": "score", "baseline": RunningMean()}
        found[", analytic KL"] = {"kl": "analytic"}
    return found


def _of_bound(num_samples: int, value: Callable[[Tensor], Tensor]) -> Answer:
    line = LineAnswers()
    states = line.states(_COARSE) if num_samples > 2 else line.states()
    return line.answer(expected(states, num_samples, value))


def _of_piwae() -> Answer:
    of_all, of_groups = _of_bound(4, log_mean(1)), _of_bound(2, log_mean(1))
    return Answer(of_all.value, torch.cat([of_all.gradient[:1], of_groups.gradient[1:]]))


def _of_cubo() -> Answer:
    upper = _of_bound(2, log_mean(2))
    return Answer(-upper.value, torch.cat([torch.zeros_like(upper.gradient[:1]), -upper.gradient[1:]]))


def _of_wake_sleep(phase: str) -> Answer:
    line = LineAnswers()
    of_wake = line.answer(expected(line.states(), 2, log_mean(1)), wake(line.states(detach="draws"), 2))
    # A dream is z ~ N(0, 1) and x = z + noise, as theta is 0: the guide's mean misses z by z - slope x - loc.
    missed = (1 - line.slope).square() + line.slope.square() + line.loc.square()
    of_sleep = line.answer((-0.5 * missed / (2 * line.log_scale).exp() - line.log_scale).sum()).gradient
    # Asleep or not, the model learns awake.
    of_guide = {"wake": of_wake.gradient, "sleep": of_sleep, "both": of_wake.gradient + of_sleep}[phase]
    return Answer(of_wake.value, torch.cat([of_wake.gradient[:1], of_guide[1:]]))


def _of_fisher() -> Answer:
    line = LineAnswers()
    noise, probability = line.noise(161)
    z, scale = line.draws(noise), line.log_scale.exp()
    left = X - line.theta - z
    mismatch = -noise / scale - (left - z)
    divergence = 0.5 * (mismatch.square() + (line.slope * noise / scale).square() + left.square()) - 1
    return line.answer(-(divergence * probability).sum())
