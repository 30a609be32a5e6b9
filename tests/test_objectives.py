"""The objectives against Pyro's own, against their formulas, and under SVI."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

import pvae
from pvae.guides import FullCovariance, MeanField
from pvae.models import VAE
from pvae.objectives import ELBO, IWAE


@pytest.fixture
def pair():
    torch.manual_seed(0)
    x = torch.rand(7, 12).round()
    model = VAE((12,), 3)
    return model, MeanField(model, x, hidden=(8,)), x


def same_seed(objective, *args):
    objective.loss(*args)
    torch.manual_seed(1)
    return objective.loss(*args)


@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize(("kl", "theirs"), [("sampled", Trace_ELBO), ("analytic", TraceMeanField_ELBO)])
def test_elbo_equals_pyro_from_the_same_seed(pair, kl, theirs, num_samples):
    pyro_elbo = theirs(num_particles=num_samples, vectorize_particles=True, max_plate_nesting=1)
    assert same_seed(ELBO(num_samples, kl=kl), *pair) == pytest.approx(same_seed(pyro_elbo, *pair), rel=1e-5)


@pytest.mark.parametrize(("kl", "theirs"), [("sampled", Trace_ELBO), ("analytic", TraceMeanField_ELBO)])
def test_gradients_equal_pyro_from_the_same_seed(pair, kl, theirs):
    _model, guide, _x = pair
    gradients = []
    for objective in (ELBO(kl=kl), theirs(max_plate_nesting=1)):
        objective.loss(*pair)
        guide.zero_grad()
        torch.manual_seed(1)
        objective.loss_and_grads(*pair)
        gradients.append(guide.encoder.head.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def scaled_pair(plate_scale, kl_scale):
    def model(x):
        with pyro.plate("data", plate_scale * len(x), subsample_size=len(x)):
            with poutine.scale(scale=kl_scale):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.3))
        with pyro.plate("data", plate_scale * len(x), subsample_size=len(x)), poutine.scale(scale=kl_scale):
            pyro.sample("z", dist.Normal(loc * x, 0.6))

    return model, guide, torch.linspace(-1, 1, 5)


@pytest.mark.parametrize(("kl", "theirs"), [("sampled", Trace_ELBO), ("analytic", TraceMeanField_ELBO)])
@pytest.mark.parametrize(("plate_scale", "kl_scale"), [(10, 1.0), (1, 0.3), (10, 0.3)])
def test_svi_honours_scales_as_pyro_does(kl, theirs, plate_scale, kl_scale):
    args = scaled_pair(plate_scale, kl_scale)
    expected = same_seed(theirs(max_plate_nesting=1), *args)
    assert same_seed(ELBO(kl=kl), *args) == pytest.approx(expected, rel=1e-5)


def test_a_subsampling_plate_scales_iwae_outside_the_logarithm():
    # Pyro's RenyiELBO raises the weights to the power N / B instead, which bounds nothing.
    plain = same_seed(IWAE(6), *scaled_pair(1, 1.0))
    model, guide, x = scaled_pair(10, 1.0)
    objective = IWAE(6)
    objective.loss(model, guide, x)
    losses = []
    for seed in range(400):
        torch.manual_seed(seed)
        losses.append(objective.loss(model, guide, x) / 10)
    losses = torch.tensor(losses)
    assert abs(losses.mean() - plain) < 5 * losses.std() * (1 + 1 / math.sqrt(400))
    bound = -losses.mean() / len(x)
    exact = dist.Normal(0.0, math.sqrt(1.25)).log_prob(x).mean()
    assert bound <= exact + 5 * losses.std() / len(x) / math.sqrt(400)
    assert bound > exact - 0.5


def test_iwae_is_the_log_mean_exp_of_the_weights(pair):
    objective = IWAE(9)
    objective.bound(*pair)
    torch.manual_seed(3)
    bound = objective.bound(*pair)
    torch.manual_seed(3)
    with pyro.plate("k", 9, dim=-2):
        guide_trace = poutine.trace(pair[1]).get_trace(pair[2])
        model_trace = poutine.trace(poutine.replay(pair[0], trace=guide_trace)).get_trace(pair[2])
    z, x = guide_trace.nodes["z"], model_trace.nodes["x"]
    by_hand = x["fn"].log_prob(pair[2]) + dist.Normal(0.0, 1.0).log_prob(z["value"]).sum(-1)
    by_hand = (by_hand - z["fn"].log_prob(z["value"])).logsumexp(0) - math.log(9)
    torch.testing.assert_close(bound, by_hand)


def test_iwae_of_one_sample_is_the_elbo(pair):
    torch.manual_seed(4)
    one = IWAE(1).bound(*pair)
    torch.manual_seed(4)
    torch.testing.assert_close(one, ELBO().bound(*pair))


def test_analytic_kl_is_the_gaussian_formula(pair):
    model, guide, x = pair
    loc, raw = guide.encoder(x).unflatten(-1, (2, 3)).unbind(1)
    scale = guide.min_scale + torch.nn.functional.softplus(raw)
    kl = 0.5 * (loc.square() + scale.square() - 1 - 2 * scale.log()).sum(-1)
    bounds = []
    for kl_weight in (1.0, 0.25):
        torch.manual_seed(5)
        bounds.append(ELBO(kl="analytic").bound(model, guide, x, kl_weight))
    torch.testing.assert_close(bounds[1] - bounds[0], 0.75 * kl)


def test_beta_weighs_the_kl_like_a_kl_weight(pair):
    torch.manual_seed(6)
    beta = ELBO(beta=0.3).bound(*pair)
    torch.manual_seed(6)
    torch.testing.assert_close(beta, ELBO().bound(*pair, 0.3))


def test_analytic_and_sampled_kl_agree_on_average(pair):
    model, _guide, x = pair
    with torch.no_grad():
        sampled = torch.stack([ELBO(50).bound(*pair) for _ in range(40)])
        analytic = torch.stack([ELBO(50, kl="analytic").bound(*pair) for _ in range(40)])
    difference = (sampled - analytic).mean(1)
    assert abs(difference.mean()) < 5 * difference.std() / math.sqrt(40)
    full = FullCovariance(model, x, hidden=(8,))
    assert torch.isfinite(ELBO(kl="analytic").bound(model, full, x)).all()


@pytest.mark.parametrize("objective", [ELBO(), ELBO(3, kl="analytic"), IWAE(5)], ids=["elbo", "analytic", "iwae"])
def test_svi_and_elbo_module_train_with_our_objectives(pair, objective):
    model, guide, x = pair
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=objective)
    losses = [svi.step(x) for _ in range(80)]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    module = objective(model, guide)
    assert module(x).item() == pytest.approx(losses[-1], rel=0.3)


def test_a_draw_without_pathwise_gradient_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Poisson(torch.tensor(2.0)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Poisson(pyro.param("rate", torch.tensor(1.0))))

    with pytest.raises(ValueError, match="site 'z' is drawn from Poisson, which has no pathwise gradient"):
        ELBO().loss_and_grads(model, guide, torch.zeros(3))


@pytest.mark.parametrize("make", [lambda: ELBO(0), lambda: IWAE(-1), lambda: IWAE(2.5), lambda: ELBO(True)])
def test_particles_must_be_a_positive_whole_number(make):
    with pytest.raises(ValueError, match="num_samples must be a whole number of at least 1"):
        make()


def test_options_are_checked():
    with pytest.raises(ValueError, match="unknown kl 'exact': the choices are sampled, analytic"):
        ELBO(kl="exact")
    with pytest.raises(ValueError, match="beta must be a finite number of at least 0"):
        ELBO(beta=-1.0)


def test_a_reported_bound_ignores_the_kl_schedule(pair):
    model, guide, x = pair
    data = pvae.data.DataSet("x", train=x, valid=x, kind="binary")
    history = pvae.fit(model, guide, data, epochs=1, lr=1e-9, kl_schedule=lambda step: 0.0).history
    plain = pvae.fit(model, guide, data, epochs=1, lr=1e-9).history
    assert history[0]["valid_bound"] == pytest.approx(plain[0]["valid_bound"], rel=1e-6)
    assert history[0]["train_bound"] == pytest.approx(plain[0]["train_bound"], rel=1e-6)
