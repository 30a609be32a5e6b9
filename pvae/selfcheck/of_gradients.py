"""Values and gradients of the objectives made of log weights or slopes, against sums over all their draws can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

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
)
from pvae.objectives.baselines import LeaveOneOut, Neural, RunningMean
from pvae.selfcheck.answers import Answer, BitsAnswers, LineAnswers, expected, log_mean, wake
from pvae.selfcheck.pairs import Bits, BitsGuide, Line, LineGuide, X
from pvae.selfcheck.rows import Check, Measured, apart, mean_of
from pvae.selfcheck.setting import Setting
from pvae.store import private_store

__all__ = ["checks"]

_LINE, _BITS = "Gaussian line", "three bits"
_STILL = 1e-12
# The guide's loc among the parameters of the line.
_LOC = 2

Make = Callable[..., Objective]


class _Draws(NamedTuple):
    """Values (N,) and gradients (N, P) of copies of one datum."""

    values: Tensor
    gradients: Tensor


def checks(setting: Setting) -> Iterator[Check]:
    """Each objective with each gradient that it takes, on the line; with score functions also on bits."""
    for name, make, answer in _line_families():
        for word, options in _options(name).items():
            measure = partial(_against, setting, partial(make, **options), (Line, LineGuide), answer)
            yield Check("gradients", f"{name}{word})", _LINE, measure)
    yield Check("gradients", "IWAE(4, stl)", _LINE, partial(_biased, setting))
    for name, make, answer in _line_cases():
        yield Check("gradients", name, _LINE, partial(_against, setting, make, (Line, LineGuide), answer))
    for gradient in ("stl", "dreg"):
        for name, make in (("ELBO(4", partial(ELBO, 4)), ("IWAE(4", partial(IWAE, 4))):
            measure = partial(_at_posterior, setting, partial(make, gradient=gradient))
            yield Check("gradients", f"{name}, {gradient})", "posterior of the line", measure)
    for name, make, answer in _bits_cases():
        yield Check("gradients", name, _BITS, partial(_against, setting, make, (Bits, BitsGuide), answer))


def _line_families() -> Iterator[tuple[str, Make, Callable[[LineAnswers], Answer]]]:
    def mean(num_samples: int, value: Callable[[Tensor], Tensor], points: int = 161) -> Callable[[LineAnswers], Answer]:
        return lambda line: line.answer(expected(line.states(points), num_samples, value))

    yield "ELBO(2", partial(ELBO, 2), mean(1, log_mean(0))
    yield "IWAE(4", partial(IWAE, 4), mean(4, log_mean(1), 35)
    yield "MIWAE(3, 2", partial(MIWAE, 3, 2), mean(2, log_mean(1))
    yield "PIWAE(2, 2", partial(PIWAE, 2, 2), _of_piwae
    yield "CIWAE(0.3, 2", partial(CIWAE, 0.3, 2), mean(2, lambda w: 0.3 * log_mean(0)(w) + 0.7 * log_mean(1)(w))
    yield "Renyi(0.5, 2", partial(Renyi, 0.5, 2), mean(2, log_mean(0.5))
    yield "Renyi(-1, 2", partial(Renyi, -1.0, 2), mean(2, log_mean(2))
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
        found[", analytic"] = {"kl": "analytic"}
    return found


def _line_cases() -> Iterator[tuple[str, Make, Callable[[LineAnswers], Answer]]]:
    for phase in ("wake", "sleep", "both"):
        make = partial(ReweightedWakeSleep, 2, phase=phase)
        yield f"ReweightedWakeSleep(2, {phase})", make, partial(_of_wake_sleep, phase)
    yield "FisherAutoencoder()", FisherAutoencoder, _of_fisher


def _bits_cases() -> Iterator[tuple[str, Make, Callable[[BitsAnswers], Answer]]]:
    def of_elbo(bits: BitsAnswers) -> Answer:
        return bits.answer(expected(bits.states(), 1, log_mean(0)))

    def of_iwae(bits: BitsAnswers) -> Answer:
        return bits.answer(expected(bits.states(), 2, log_mean(1)))

    def of_wake(bits: BitsAnswers) -> Answer:
        return bits.answer(expected(bits.states(), 2, log_mean(1)), wake(bits.states(), 2))

    score = partial(IWAE, 2, gradient="score")
    neural = Neural(torch.full((2, 1), X, dtype=torch.float64), hidden=(4,), normalize=False)
    yield "ELBO(2, score)", partial(ELBO, 2, gradient="score"), of_elbo
    yield "ELBO(2, leave one out)", partial(ELBO, 2, gradient="score", baseline=LeaveOneOut()), of_elbo
    yield "IWAE(2, score)", score, of_iwae
    yield "IWAE(2, leave one out)", partial(score, baseline=LeaveOneOut()), of_iwae
    yield "IWAE(2, running mean)", partial(score, baseline=RunningMean()), of_iwae
    yield "IWAE(2, neural)", partial(score, baseline=neural), of_iwae
    yield "IWAE(2, mixed)", partial(IWAE, 2, gradient="mixed"), of_iwae
    yield "ReweightedWakeSleep(2, wake)", partial(ReweightedWakeSleep, 2), of_wake


def _of_piwae(line: LineAnswers) -> Answer:
    of_all = line.answer(expected(line.states(35), 4, log_mean(1)))
    of_groups = line.answer(expected(line.states(), 2, log_mean(1)))
    return Answer(of_all.value, torch.cat([of_all.gradient[:1], of_groups.gradient[1:]]))


def _of_cubo(line: LineAnswers) -> Answer:
    value, gradient = line.answer(-expected(line.states(), 2, log_mean(2)))
    return Answer(value, torch.cat([torch.zeros_like(gradient[:1]), gradient[1:]]))


def _of_wake_sleep(phase: str, line: LineAnswers) -> Answer:
    of_wake = wake(line.states(detach="draws"), 2)
    # A dream is z ~ N(0, 1) and x = z + noise, as theta is 0: the guide's mean misses z by z - slope x - loc.
    missed = (1 - line.slope).square() + line.slope.square() + line.loc.square()
    of_sleep = -0.5 * missed / (2 * line.log_scale).exp() - line.log_scale
    surrogate = of_sleep if phase == "sleep" else of_wake if phase == "wake" else of_wake + of_sleep
    value, gradient = line.answer(expected(line.states(), 2, log_mean(1)), surrogate)
    # Asleep or not, the model learns awake.
    return Answer(value, torch.cat([line.answer(of_wake).gradient[:1], gradient[1:]]))


def _of_fisher(line: LineAnswers) -> Answer:
    noise, probability = line.noise(161)
    z, scale = line.draws(noise), line.log_scale.exp()
    left = X - line.theta - z
    mismatch = -noise / scale - (left - z)
    divergence = 0.5 * (mismatch.square() + (line.slope * noise / scale).square() + left.square()) - 1
    return line.answer(-(divergence * probability).sum())


def _against(
    setting: Setting,
    make: Make,
    pair: tuple[Callable[[int], nn.Module], Callable[[int], nn.Module]],
    answer: Callable[..., Answer],
) -> dict[str, Measured]:
    known = answer(LineAnswers() if pair[0] is Line else BitsAnswers())
    draws = _draw(setting, make(), *pair)
    return {"value": mean_of(draws.values, known.value), "gradient": mean_of(draws.gradients, known.gradient)}


def _draw(
    setting: Setting, objective: Objective, model: Callable[[int], nn.Module], guide: Callable[[int], nn.Module]
) -> _Draws:
    copies = 10 * setting.num_samples
    x = torch.full((copies, 1), X, dtype=torch.float64, device=setting.device)
    pair = model(copies).to(setting.device), guide(copies).to(setting.device)
    leaves = [leaf for part in pair for leaf in part.parameters()]
    with private_store(*pair):
        if objective.gradient.baseline is not None:
            objective.gradient.baseline.to(setting.device)
            objective.bound(*pair, x)  # so that a moving average has moved
        bound = objective.bound(*pair, x)
    found = torch.autograd.grad(bound.sum(), leaves, allow_unused=True, materialize_grads=True)
    return _Draws(bound.detach(), torch.cat([gradient.reshape(copies, -1) for gradient in found], 1))


def _biased(setting: Setting) -> dict[str, Measured]:
    """Sticking the landing with several particles: on the spot where its own formula says, and not where it should."""
    line = LineAnswers()
    right = line.answer(expected(line.states(35), 4, log_mean(1))).gradient[_LOC]
    wrong = line.answer(expected(line.states(35, detach="density"), 4, log_mean(1))).gradient[_LOC]
    draws = _draw(setting, IWAE(4, gradient="stl"), Line, LineGuide).gradients[:, _LOC]
    biased = mean_of(draws, right, if_close="off", if_far="biased")
    return {"gradient by loc": biased, "its own mean": mean_of(draws, wrong)}


class _Posterior(LineGuide):
    """N(x / 2, 1 / 2)."""

    def __init__(self, copies: int) -> None:
        super().__init__(copies)
        with torch.no_grad():
            self.loc.zero_()
            self.log_scale.fill_(0.5 * math.log(0.5))


def _at_posterior(setting: Setting, make: Make) -> dict[str, Measured]:
    gradients = _draw(setting, make(), Line, _Posterior).gradients[:, 1:]
    return {"gradient of each draw": apart(gradients, torch.zeros_like(gradients), _STILL)}
