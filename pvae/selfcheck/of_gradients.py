"""Values and gradients of the objectives, each against a sum over all that its draws can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from pvae.objectives import ELBO, IWAE, Objective
from pvae.pair.store import own_store
from pvae.selfcheck.answers import LineAnswers, expected, log_mean
from pvae.selfcheck.cases import Case, bits_cases, line_cases
from pvae.selfcheck.game_cases import game_cases
from pvae.selfcheck.pairs import Bits, BitsGuide, Line, LineGuide, X
from pvae.selfcheck.rows import Check, Measured, apart, mean_of, value_and_parameters
from pvae.selfcheck.setting import Setting

__all__ = ["checks"]

_LINE, _BITS = "Gaussian line", "three bits"
_STILL = 1e-12
# Of the line: the guide's loc among the value and the parameters.
_LOC = 3

Pair = tuple[Callable[[int], nn.Module], Callable[[int], nn.Module]]


def checks(setting: Setting) -> Iterator[Check]:
    """Each objective with each gradient that it takes, on the line; with score functions also on the bits."""
    for case in (*line_cases(), *game_cases()):
        yield Check("gradients", case.name, _LINE, partial(_against, setting, case, (Line, LineGuide)))
    yield Check("gradients", "IWAE(4, stl)", _LINE, partial(_biased, setting))
    for gradient in ("stl", "dreg"):
        for name, make in (("ELBO", ELBO), ("IWAE", IWAE)):
            measure = partial(_at_posterior, setting, partial(make, 4, gradient=gradient))
            yield Check("gradients", f"{name}(4, {gradient})", "Gaussian line, posterior", measure)
    for case in bits_cases():
        yield Check("gradients", case.name, _BITS, partial(_against, setting, case, (Bits, BitsGuide)))


def _against(setting: Setting, case: Case, pair: Pair) -> list[Measured]:
    value, gradient = case.answer()
    names, draws = _draw(setting, case.make(), pair)
    return [mean_of(draws, torch.cat([value[None], gradient]), names)]


def _draw(setting: Setting, objective: Objective, pair: Pair) -> tuple[list[str], Tensor]:
    """Names, and a draw per copy, of the value and of the gradient by each parameter: (N, 1 + P)."""
    copies = 10 * setting.num_samples
    x = torch.full((copies, 1), X, dtype=torch.float64)
    model, guide, x = setting.place(pair[0](copies), pair[1](copies), x)
    leaves = dict([*model.named_parameters(), *guide.named_parameters()])
    with own_store(model, guide):
        for module in objective.companions.values():
            module.to(setting.device)
            objective.bound(model, guide, x)  # so that a moving average has moved
        bound = objective.bound(model, guide, x)
    gradients = torch.autograd.grad(bound.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    names = value_and_parameters({name: leaf[0] for name, leaf in leaves.items()})
    return names, torch.cat([bound.detach()[:, None], *gradients], 1)


def _biased(setting: Setting) -> list[Measured]:
    """Sticking the landing with several particles: its mean is known, and is not the bound's gradient."""
    line, answers = LineAnswers(), []
    for detach in ("", "density"):
        answers.append(line.answer(expected(line.states(35, detach=detach), 4, log_mean(1))).gradient[_LOC - 1])
    names, draws = _draw(setting, IWAE(4, gradient="stl"), (Line, LineGuide))
    draws, names = draws[:, _LOC:][:, :1], names[_LOC:][:1]
    biased = mean_of(draws, answers[0], names, if_close="off", if_far="biased")
    return [biased, mean_of(draws, answers[1], [f"{names[0]} + bias"])]


class _Posterior(LineGuide):
    """N(x / 2, 1 / 2)."""

    def __init__(self, copies: int) -> None:
        super().__init__(copies)
        with torch.no_grad():
            self.slope.fill_(0.5)
            self.loc.zero_()
            self.log_scale.fill_(0.5 * math.log(0.5))


def _at_posterior(setting: Setting, make: Callable[[], Objective]) -> list[Measured]:
    _, draws = _draw(setting, make(), (Line, _Posterior))
    of_guide = draws[:, 2:]
    return [apart(of_guide, torch.zeros_like(of_guide), _STILL, "each draw")]
