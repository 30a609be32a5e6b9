"""The sigmoid belief net: its exact log p(x), its guide, and training by score functions on real digits."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pvae
from pvae.estimators import Enumeration, ImportanceSampling
from pvae.guides import Bernoulli
from pvae.models import VAE, LinearGaussian, SigmoidBeliefNet
from pvae.nets import init_output_bias
from pvae.objectives import IWAE
from pvae.objectives.baselines import LeaveOneOut, Neural


def net(*layer_dims, x_shape=(3,)):
    torch.manual_seed(0)
    model = SigmoidBeliefNet(x_shape, layer_dims).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def every(bits):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=bits)), dtype=torch.float64)


@pytest.mark.parametrize("layer_dims", [(4,), (3, 2), (2, 3, 2)])
def test_log_prob_sums_to_one_and_equals_enumeration(layer_dims):
    model, x = net(*layer_dims), every(3)
    log_prob = model.log_prob(x)
    assert log_prob.logsumexp(0).item() == pytest.approx(0.0, abs=1e-12)
    found = pvae.log_marginal(model, None, x, Enumeration())
    torch.testing.assert_close(found.values, log_prob, rtol=0, atol=1e-12)


def test_log_prob_of_one_layer_is_the_sum_by_hand():
    model, x = net(2), every(3)
    h = every(2)
    joint = dist.Bernoulli(logits=model.top).log_prob(h).sum(-1)
    logits = model.layers[0](h)
    by_hand = torch.stack([(joint + dist.Bernoulli(logits=logits).log_prob(each).sum(-1)).logsumexp(0) for each in x])
    torch.testing.assert_close(model.log_prob(x), by_hand)


def test_importance_sampling_from_the_guide_finds_the_exact_value():
    model = net(3, 2, x_shape=(1, 2, 3))
    x = pvae.sample(model, 12, like=torch.zeros(2, 1, 2, 3, dtype=torch.float64), seed=4)["x"]
    guide = Bernoulli(model, x, hidden=(5,))
    found = pvae.log_marginal(model, guide, x, ImportanceSampling(40_000))
    assert ((found.values - model.log_prob(x)).abs() < 5 * found.mc_standard_errors).all()


def test_the_guide_reads_the_layers_from_the_data_up():
    model, x = net(4, 2, x_shape=(1, 2, 3)), torch.zeros(5, 1, 2, 3, dtype=torch.float64)
    guide = Bernoulli(model, x)
    assert [site.name for site in guide.sites] == ["h1", "h2"]
    assert {name: value.shape for name, value in pvae.encode(guide, x).items()} == {"h1": (5, 4), "h2": (5, 2)}
    affine = Bernoulli(model, x, encoder=nn.Flatten())
    assert [tuple(parameter.shape) for parameter in affine.parameters()] == [(4, 6), (4,), (2, 4), (2,)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SigmoidBeliefNet((3,), ()), r"layer_dims must name at least one layer, got none"),
        (lambda: net(9, 9).log_prob(every(3)), r"summed over at most 2\^16 states, got 18 bits"),
        (lambda: net(2).log_prob(every(2)), r"expects a batch of shape \(B, 3\), got \(4, 2\)"),
        (lambda: Bernoulli(VAE((3,), 2), every(3)), "site 'z' is not binary, this guide serves binary sites"),
        (
            lambda: pvae.guides.MeanField(net(2), every(3)),
            "site 'h1' is discrete, .* for binary sites use pvae.guides.Bernoulli",
        ),
        (
            lambda: pvae.fit(net(2), Bernoulli(net(2), every(3)), every(3), steps=1),
            "Bernoulli has no pathwise gradient; .* gradient='score'",
        ),
        (lambda: LinearGaussian(3, 2).posterior(every(2)), "LinearGaussian expects"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def trained(data, units, baseline, steps):
    torch.manual_seed(0)
    model = SigmoidBeliefNet(data.shape, (units,) * 3)
    init_output_bias(model.layers[0], data.train.float().mean(0))
    guide = Bernoulli(model, data.train[:2], encoder=nn.Flatten())
    objective = IWAE(5, gradient="score", baseline=baseline)
    result = pvae.fit(model, guide, data, objective=objective, steps=steps, batch_size=24, lr=1e-3, progress=False)
    return result.losses, pvae.log_marginal(model, guide, data, ImportanceSampling(5), batch_size=500)


def assert_rising_and_ahead(data, units, steps):
    losses, by_net = trained(data, units, Neural(data.train[:2]), steps)
    ahead, by_others = trained(data, units, LeaveOneOut(), steps)
    quarter = steps // 4
    for each in (losses, ahead):
        first, last = each[:quarter], each[-quarter:]
        assert first.mean() - last.mean() > 5 * (each.std() / math.sqrt(quarter))
    comparison = pvae.compare(by_others, by_net)
    assert comparison.mean > 3 * comparison.standard_error
    return by_net.mean, by_others.mean


def test_both_baselines_train_and_the_other_draws_are_the_better_one():
    assert_rising_and_ahead(pvae.data.load("digits", binarize="static"), 20, 600)


@pytest.mark.slow
def test_vimco_is_ahead_of_nvil_on_the_static_binarised_mnist(data_root):
    print(assert_rising_and_ahead(pvae.data.load("binarized_mnist", root=data_root), 200, 20_000))
