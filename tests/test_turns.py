"""Turns of guide and model, and schedules of the KL's weight."""

import math

import pytest
import torch

import pvae
from pvae.guides import MeanField
from pvae.models import VAE, LinearGaussian
from pvae.pair.aggregate import information
from pvae.pair.store import private_store
from pvae.training import Aggressive, Alternating, cyclical, linear_warmup


def pair():
    torch.manual_seed(0)
    x = torch.rand(40, 12).round()
    model = VAE((12,), 3)
    return model, MeanField(model, x, hidden=(8,)), x


def state(module):
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


@pytest.mark.parametrize("step_mode", ["eager", "traced"])
@pytest.mark.parametrize(
    ("turns", "moved"),
    [
        (Alternating(), [(False, True), (True, True), (True, True)]),
        (Alternating(2), [(False, True), (False, True), (True, True)]),
        (Alternating(0, 1), [(True, False), (True, False), (True, False)]),
    ],
)
def test_turns_move_what_they_say(turns, moved, step_mode):
    for steps, (model_moves, guide_moves) in enumerate(moved, 1):
        model, guide, x = pair()
        before = state(model), state(guide)
        pvae.fit(model, guide, x, steps=steps, inference_steps=turns, step_mode=step_mode, progress=False)
        assert (not torch.equal(state(model), before[0])) == model_moves
        assert (not torch.equal(state(guide), before[1])) == guide_moves


def test_a_number_is_joint_alternation():
    results = []
    for turns in (3, Alternating(2, joint=True)):
        model, guide, x = pair()
        pvae.fit(model, guide, x, steps=7, inference_steps=turns, progress=False)
        results.append(state(model))
    assert torch.equal(*results)


def feed(turns, losses):
    """Whose turn each step was, with these losses."""
    taken = []
    for loss in losses:
        taken.append(turns.turn())
        turns.note(loss)
    return taken


def test_the_guide_goes_on_while_it_gains_and_then_the_model_takes_one_step():
    falling, flat = [10.0 - i for i in range(6)], [4.0] * 6
    taken = feed(Aggressive(100, window=2), [*falling, *flat])
    # Steps 7 and 8 lie above 5 and 6 no more: 4.5 before, 4 then, then 4 again.
    assert taken == ["guide"] * 10 + ["model", "guide"]


def test_the_guide_stops_at_the_most():
    assert feed(Aggressive(4, window=1), [-float(i) for i in range(6)]) == ["guide"] * 4 + ["model", "guide"]


def test_the_phase_ends_when_the_information_no_longer_rises():
    turns = Aggressive()
    for value, over in ((0.5, False), (0.9, False), (0.9, True), (5.0, True)):
        turns.end_epoch(lambda value=value: value)
        assert turns.is_over is over
    assert turns.turn() == "both"


def test_information_is_that_of_the_exact_posterior():
    # I(x; z) = 1/2 logdet(I + W'W / s2).
    torch.manual_seed(0)
    model = LinearGaussian(4, 2).double()
    guide = pvae.guides.Exact(model)
    x = pvae.sample(model, 2000, like=torch.zeros(2, 4, dtype=torch.float64), seed=3)["x"]
    with private_store(model, guide), torch.no_grad():
        found = information(guide, [(part,) for part in x.split(500)])
        truth = 0.5 * torch.logdet(torch.eye(2) + model.weight.T @ model.weight / (2 * model.log_scale).exp())
    assert abs(found.mean() - truth) < 5 * found.std() / math.sqrt(len(x))


def excess_gap(inference_steps):
    """How far the trained guide lies above the best gap of its family, in nats, for the model it was trained with."""
    torch.manual_seed(0)
    model = LinearGaussian(6, 2)
    x = pvae.sample(LinearGaussian(6, 2), 8000, like=torch.zeros(2, 6))["x"]
    guide = MeanField(model, x[:2], hidden=(16,))
    pvae.fit(model, guide, x, steps=300, batch_size=20, lr=1e-2, inference_steps=inference_steps, progress=False)
    with torch.no_grad():
        gap = (model.log_prob(x) - pvae.objectives.ELBO(200).bound(model, guide, x)).mean()
        precision = torch.eye(2) + model.weight.T @ model.weight / (2 * model.log_scale).exp()
        return (gap - 0.5 * (precision.diagonal().log().sum() - precision.logdet())).item()


def test_aggressive_turns_leave_the_guide_closer_to_the_best_of_its_family():
    turns = Aggressive()
    together, aggressive = excess_gap(1), excess_gap(turns)
    assert 0 < aggressive < 0.8 * together
    # The object that was given is not the one that counts.
    assert turns.turn() == "guide"
    assert not turns.is_over


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Alternating(-1), "guide must be a whole number of at least 0, got -1"),
        (lambda: Aggressive(5), "window must be no larger than most, got 10 and 5"),
        (lambda: cyclical(0), "steps must be a whole number of at least 1, got 0"),
        (lambda: pvae.fit(*pair(), steps=1, inference_steps="often"), "inference_steps must be a whole number"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("turns", [2, Alternating(), Aggressive()])
def test_turns_of_a_guide_that_is_none_are_refused(turns):
    model, _, x = pair()
    with pytest.raises(ValueError, match="inference_steps asks to train a guide by itself, and there is none"):
        pvae.fit(model, None, x, epochs=1, inference_steps=turns, progress=False)


def test_aggressive_turns_of_a_guide_without_a_density_are_refused_before_training():
    model, _, x = pair()
    guide = pvae.guides.Delta(model, x, hidden=(8,))
    before = state(guide)
    with pytest.raises(ValueError, match=r"inference_steps measures I\(x; z\) of the guide, and cannot: .*Delta"):
        pvae.fit(model, guide, x, epochs=1, inference_steps=Aggressive(), progress=False)
    assert torch.equal(state(guide), before)


def test_schedules_of_the_kl_weight():
    cycle = cyclical(10, rise=0.5)
    assert [cycle(step) for step in range(12)] == [0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 0, 0.2]
    assert linear_warmup(4)(1) == 0.25
