"""The two-stage VAE against the closed form of linear stages, and its dimensions against a manifold's."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pvae
from pvae.diagnostics import active_dimensions, collapse
from pvae.guides import Chained, FullCovariance, MeanField
from pvae.models import VAE, LinearGaussian, TwoStageVAE
from pvae.models.likelihoods import Gaussian
from pvae.nets import MLP

SCALES = (0.5, 0.8)  # of x | z and z | u


def linear_stages():
    with pvae.pair.contexts.seeded(0):
        first = VAE((5,), 3, likelihood=Gaussian(SCALES[0]), decoder=MLP(3, (), (5,)))
        second = VAE((3,), 2, likelihood=Gaussian(SCALES[1]), decoder=MLP(2, (), (3,)))
    return TwoStageVAE(first, second).double()


def weights_of(model):
    """The maps u -> z and z -> x of linear stages, whose biases are 0."""
    return model.second.decoder.layers[-1].weight, model.first.decoder.layers[-1].weight


def covariances(model):
    """Of z and x, under linear stages."""
    up, down = weights_of(model)
    of_z = up @ up.T + SCALES[1] ** 2 * torch.eye(3).double()
    return of_z, down @ of_z @ down.T + SCALES[0] ** 2 * torch.eye(5).double()


def posterior(weight, prior_covariance, scale):
    """The guide z | x of z ~ N(0, prior_covariance), x ~ N(weight z, scale^2)."""
    precision = prior_covariance.inverse() + weight.T @ weight / scale**2

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = x @ weight @ precision.inverse() / scale**2
            pyro.sample("z", dist.MultivariateNormal(loc, precision_matrix=precision))

    return guide


def data(model, num, seed=0):
    return pvae.sample(model, num, seed=seed)["x"]


@torch.no_grad()
def test_the_chained_posteriors_of_linear_stages_weigh_every_draw_by_log_p():
    model = linear_stages()
    up, down = weights_of(model)
    of_z, of_x = covariances(model)
    guide = Chained(model, posterior(down, of_z, SCALES[0]), posterior(up, torch.eye(2).double(), SCALES[1]))
    x = data(model, 7)
    log_prob = dist.MultivariateNormal(torch.zeros(5).double(), of_x).log_prob(x)
    for num_samples in (1, 4):
        weights = pvae.log_weights(model, guide, x, num_samples).values
        torch.testing.assert_close(weights, log_prob.expand(num_samples, 7), rtol=0, atol=1e-10)


def test_importance_sampling_with_stage_guides_meets_log_p():
    model = linear_stages()
    x = data(model, 6)
    with pvae.pair.contexts.seeded(1):
        first = MeanField(model.first, x, hidden=(8,)).double()
        second = MeanField(model.second, torch.zeros(2, 3).double(), hidden=(8,)).double()
    guide = Chained(model, first, second)
    assert pvae.check(model, guide, x) == []
    pvae.fit(model, guide, x, steps=100, lr=2e-2, train="guide", step_mode="eager")
    answer = pvae.log_marginal(model, guide, x, pvae.estimators.ImportanceSampling(5000, step_mode="eager"), seed=2)
    exact = dist.MultivariateNormal(torch.zeros(5).double(), covariances(model)[1]).log_prob(x).detach()
    assert ((answer.values - exact).abs() < 5 * answer.mc_standard_errors).all()


def test_samples_have_the_moments_of_the_whole():
    model, num = linear_stages(), 20_000
    draws = pvae.sample(model, num, seed=3)
    assert {name: tuple(z.shape[1:]) for name, z in draws.items()} == {"u": (2,), "z": (3,), "x": (5,)}
    expected = covariances(model)[1].detach()
    # The variance of a product of two jointly normal numbers.
    error = ((expected.diag()[:, None] * expected.diag() + expected.square()) / num).sqrt()
    assert ((draws["x"].T.cov() - expected).abs() < 5 * error).all()


def test_each_stage_guide_keeps_its_own_parameters_in_the_store():
    model = linear_stages()
    x = data(model, 4)

    def stage(loc):
        def guide(x):
            loc_of = pyro.param("loc", torch.tensor(loc).double())
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc_of, 1.0).expand([3 if x.shape[1] == 5 else 2]).to_event(1))

        return guide

    store = pyro.get_param_store()
    with store.scope():
        Chained(model, stage(1.0), stage(-2.0))(x)
        assert {name: value.item() for name, value in store.items()} == {"loc": 1.0, "second.loc": -2.0}


def test_fitting_stage_by_stage_takes_two_calls():
    true = LinearGaussian(4, 1).double()
    with torch.no_grad():
        true.log_scale.fill_(math.log(0.3))
    x = pvae.sample(true, 500, like=torch.zeros(1, 4).double())["x"]
    with pvae.pair.contexts.seeded(0):
        first = VAE((4,), 2, likelihood=Gaussian("shared"), decoder=MLP(2, (), (4,))).double()
        second = VAE((2,), 2, likelihood=Gaussian("shared"), decoder=MLP(2, (8,), (2,))).double()
        first_guide = MeanField(first, x, hidden=(8,)).double()
        second_guide = FullCovariance(second, torch.zeros(2, 2).double(), hidden=(8,)).double()
    options = {"objective": pvae.objectives.ELBO(4), "lr": 3e-2, "schedule": "cosine", "step_mode": "traced"}
    assert pvae.fit(first, first_guide, x, steps=250, batch_size=500, **options).step_mode == "traced"
    z = pvae.encode(first_guide, x, num_samples=1)["z"][0]
    pvae.fit(second, second_guide, z, steps=60, batch_size=500, **options)
    scale = first.likelihood(x, (4,)).base_dist.scale.mean()
    noise = LinearGaussian.maximum_likelihood(x, 1).log_scale.exp()
    assert (scale / noise - 1).abs() < 0.05
    assert active_dimensions(first_guide, x[:100])["z"].sum() == 1
    model = TwoStageVAE(first, second)
    whole = pvae.fit(model, Chained(model, first_guide, second_guide), x, steps=5, step_mode="traced")
    assert whole.step_mode == "traced"


def test_active_dimensions_are_those_of_narrow_posteriors():
    scale = torch.tensor([0.1, 1.0, 0.6, 0.8])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, scale).to_event(1))

    x = torch.zeros(200, 4)
    assert active_dimensions(guide, x)["z"].tolist() == [True, False, True, False]
    assert active_dimensions(guide, x, threshold=0.1)["z"].tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match=r"threshold must be a finite number above 0 and below 1, got 2\.0"):
        active_dimensions(guide, x, threshold=2.0)
    with pytest.raises(ValueError, match="num_samples must be a whole number of at least 2"):
        active_dimensions(guide, x, num_samples=1)


@pytest.mark.slow
def test_active_dimensions_are_those_of_the_manifold():
    """Data on a curved surface in 20 dimensions: the scale falls to near nothing, and 2 of 6 latents are active."""
    with pvae.pair.contexts.seeded(0), torch.no_grad():
        surface = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 20))
        x = surface(torch.randn(2000, 2))
        x = (x - x.mean(0)) / x.std()
        model = VAE((20,), 6, likelihood=Gaussian("shared"), decoder=MLP(6, (64, 64), (20,)))
        guide = MeanField(model, x, hidden=(64, 64))
    pvae.fit(model, guide, x, epochs=300, lr=3e-3, schedule="cosine", clip_norm=10.0)
    assert model.likelihood(x, (20,)).base_dist.scale.max() < 0.05
    assert active_dimensions(guide, x[:500])["z"].sum() == 2
    assert collapse(model, guide, x, num_data=500, threshold=0.5).num_active == 2


def test_bad_stages_are_refused():
    first, second = VAE((5,), 3), VAE((4,), 2)
    with pytest.raises(ValueError, match=r"of shape \(3,\), got a VAE of shape \(4,\)"):
        TwoStageVAE(first, second)
    with pytest.raises(ValueError, match="first must be a built VAE, got LinearGaussian"):
        TwoStageVAE(LinearGaussian(5, 3), second)
    with pytest.raises(ValueError, match=r"TwoStageVAE expects a batch of shape \(B, 5\), got \(2, 6\)"):
        linear_stages()(torch.zeros(2, 6))
    with pytest.raises(ValueError, match="chained for TwoStageVAE, got VAE; use TopDown"):
        Chained(first, MeanField(first, torch.zeros(2, 5)), MeanField(second, torch.zeros(2, 4)))
