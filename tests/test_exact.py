"""The linear-Gaussian model, whose every answer is known, against all that estimates it."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

import pvae
from pvae.estimators import ImportanceSampling
from pvae.guides import Exact, FullCovariance, MeanField
from pvae.models import LinearGaussian
from pvae.objectives import ELBO, IWAE

X_DIM, LATENT_DIM, NUM_DATA = 8, 3, 400


@pytest.fixture
def truth():
    """A model with a correlated posterior, and data drawn from it."""
    torch.manual_seed(0)
    model = LinearGaussian(X_DIM, LATENT_DIM).double()
    model.log_scale.data.fill_(math.log(0.7))
    model.loc.data.normal_()
    model.requires_grad_(False).eval()
    x = pvae.sample(model, NUM_DATA, like=torch.zeros(1, X_DIM, dtype=torch.float64))["x"]
    return model, x


def precision(model):
    return model.weight.T @ model.weight / math.exp(2 * model.log_scale) + torch.eye(LATENT_DIM, dtype=torch.float64)


def test_log_prob_is_the_density_of_the_marginal_gaussian(truth):
    model, x = truth
    covariance = model.weight @ model.weight.T + math.exp(2 * model.log_scale) * torch.eye(X_DIM, dtype=torch.float64)
    torch.testing.assert_close(model.log_prob(x), MultivariateNormal(model.loc, covariance).log_prob(x))


def test_posterior_satisfies_bayes_rule(truth):
    model, x = truth
    z = torch.randn(NUM_DATA, LATENT_DIM, dtype=torch.float64)
    scale = model.log_scale.exp()
    joint = torch.distributions.Normal(0, 1).log_prob(z).sum(-1)
    joint = joint + torch.distributions.Normal(z @ model.weight.T + model.loc, scale).log_prob(x).sum(-1)
    torch.testing.assert_close(joint - model.posterior(x).log_prob(z), model.log_prob(x))


@pytest.mark.parametrize("num_samples", [1, 7])
def test_every_weight_of_the_exact_guide_is_log_p(truth, num_samples):
    model, x = truth
    weights = pvae.log_weights(model, Exact(model), x, num_samples).values
    assert weights.shape == (num_samples, NUM_DATA)
    assert (weights - model.log_prob(x)).abs().max() < 1e-10


def test_the_exact_guide_gives_log_p_with_no_error_and_no_tail(truth):
    model, x = truth
    result = pvae.log_marginal(model, Exact(model), x, ImportanceSampling(100))
    assert (result.values - model.log_prob(x)).abs().max() < 1e-10
    assert result.mc_standard_error < 1e-6
    assert (result.ess - 100).abs().max() < 1e-6
    assert torch.isneginf(result.khat).all()
    assert result.fraction_untrusted == 0
    assert result.standard_error == pytest.approx(model.log_prob(x).std().item() / math.sqrt(NUM_DATA))


def test_float32_keeps_four_digits(truth):
    model, x = truth
    single = LinearGaussian(X_DIM, LATENT_DIM)
    single.load_state_dict(model.state_dict())
    weights = pvae.log_weights(single, Exact(single), x.float(), 7).values
    assert (weights - model.log_prob(x)).abs().max() < 1e-4


@pytest.mark.slow
def test_trained_full_covariance_reaches_log_p(truth):
    model, x = truth
    guide = FullCovariance(model, x, encoder=nn.Identity()).double()
    pvae.fit(model, guide, x, steps=2000, batch_size=NUM_DATA, lr=3e-2, schedule="cosine")
    gap = (model.log_prob(x) - pvae.log_weights(model, guide, x, 100).values.detach()).mean(0)
    assert -5 * gap.std() / math.sqrt(NUM_DATA) < gap.mean() < 1e-3


def test_best_mean_field_gap_is_its_closed_form(truth):
    model, x = truth
    guide = MeanField(model, x, encoder=nn.Identity()).double()
    exact = precision(model)
    matrix = torch.linalg.solve(exact, model.weight.T) / math.exp(2 * model.log_scale)
    scale = exact.diagonal().rsqrt() - guide.min_scale
    with torch.no_grad():
        guide.encoder.head.weight[:LATENT_DIM] = matrix
        guide.encoder.head.bias[:LATENT_DIM] = -matrix @ model.loc
        guide.encoder.head.weight[LATENT_DIM:] = 0
        guide.encoder.head.bias[LATENT_DIM:] = scale.expm1().log()
        torch.manual_seed(1)
        gap = (model.log_prob(x) - pvae.log_weights(model, guide, x, 500).values).mean(0)
    expected = 0.5 * (exact.diagonal().log().sum() - exact.logdet())
    assert expected > 0.05
    assert abs(gap.mean() - expected) < 5 * gap.std() / math.sqrt(NUM_DATA)


def test_trained_mean_field_gap_is_its_closed_form(truth):
    model, x = truth
    guide = MeanField(model, x, encoder=nn.Identity()).double()
    objective = ELBO(kl="analytic")
    pvae.fit(model, guide, x, objective=objective, steps=2500, batch_size=100, lr=3e-2, schedule="cosine")
    gap = (model.log_prob(x) - pvae.log_weights(model, guide, x, 500).values.detach()).mean(0)
    exact = precision(model)
    expected = 0.5 * (exact.diagonal().log().sum() - exact.logdet())
    assert abs(gap.mean() - expected) < 5 * gap.std() / math.sqrt(NUM_DATA) + 1e-3


def test_bounds_rise_with_k_and_stay_below_log_p(truth):
    model, x = truth
    torch.manual_seed(2)
    guide = MeanField(model, x, encoder=nn.Identity()).double()
    pvae.fit(model, guide, x, steps=300, batch_size=100, lr=3e-2)
    with torch.no_grad():
        draws = {k: torch.stack([IWAE(k).bound(model, guide, x) for _ in range(40)]).mean(0) for k in (1, 5, 50)}
    draws[math.inf] = model.log_prob(x)
    for smaller, larger in ((1, 5), (5, 50), (50, math.inf)):
        difference = draws[larger] - draws[smaller]
        assert difference.mean() > -5 * difference.std() / math.sqrt(NUM_DATA)
    assert (draws[math.inf] - draws[1]).mean() > 5 * (draws[math.inf] - draws[1]).std() / math.sqrt(NUM_DATA)


def test_importance_sampling_meets_log_p_within_its_own_error(truth):
    model, x = truth
    guide = MeanField(model, x, encoder=nn.Identity()).double()
    pvae.fit(model, guide, x, steps=600, batch_size=100, lr=3e-2)
    result = pvae.log_marginal(model, guide, x, ImportanceSampling(2000), seed=3)
    assert abs(result.mean - model.log_prob(x).mean().item()) < 5 * result.mc_standard_error
    trusted = result.khat < result.khat_threshold
    score = (result.values - model.log_prob(x)) / result.mc_standard_errors
    assert trusted.double().mean() > 0.9
    # The error bars must be of the right size, not only wide enough: z-scores have variance near one.
    assert 0.6 < score[trusted].square().mean() < 1.6


def test_overshoot_obeys_markov(truth):
    model, x = truth
    torch.manual_seed(4)
    guide = MeanField(model, x, encoder=nn.Identity()).double()
    result = pvae.log_marginal(model, guide, x, ImportanceSampling(10))
    assert (result.values - model.log_prob(x)).max() < 10


def test_maximum_likelihood_is_the_published_optimum():
    torch.manual_seed(5)
    x = torch.randn(300, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    model = LinearGaussian.maximum_likelihood(x, 2)
    eigenvalues = torch.linalg.eigvalsh(x.T.cov(correction=0)).flip(0)
    noise = eigenvalues[2:].mean()
    optimum = -0.5 * (6 * math.log(2 * math.pi) + eigenvalues[:2].log().sum() + 4 * noise.log() + 6)
    assert model.log_prob(x).mean().item() == pytest.approx(optimum.item(), abs=1e-12)


@pytest.mark.parametrize(
    ("x", "latent_dim", "message"),
    [
        (torch.tensor([[0.0, 1.0, math.nan], [1.0, 2.0, 0.0]]), 1, "data hold 1 values that are nan or inf"),
        (torch.tensor([[0.0, 1.0, math.inf], [1.0, 2.0, 0.0]]), 1, "data hold 1 values that are nan or inf"),
        (torch.zeros(0, 3), 1, "N >= 2"),
        (torch.zeros(1, 3), 1, "N >= 2"),
        (torch.eye(3), 2, "the 3 data vary in no more than 2 directions"),
        (torch.ones(9, 3), 1, "the 9 data vary in no more than 1 directions"),
        (torch.eye(3, dtype=torch.int64), 1, "expected data of real numbers, got torch.int64"),
    ],
)
def test_data_without_a_maximum_likelihood_are_refused(x, latent_dim, message):
    with pytest.raises(ValueError, match=message) as refusal:
        LinearGaussian.maximum_likelihood(x, latent_dim)
    assert "\n" not in str(refusal.value)


def test_trained_linear_vae_is_probabilistic_pca():
    torch.manual_seed(6)
    basis = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64)).Q[:3]
    z = torch.randn(1000, 3, dtype=torch.float64) * torch.tensor([3.0, 2.0, 1.3])
    x = z @ basis + 0.5 * torch.randn(1000, 10, dtype=torch.float64)
    best = LinearGaussian.maximum_likelihood(x, 3).log_prob(x).mean()
    model = LinearGaussian(10, 3).double()
    guide = MeanField(model, x, encoder=nn.Identity()).double()
    pvae.fit(model, guide, x, objective=ELBO(kl="analytic"), steps=5000, batch_size=250, lr=4e-2, schedule="cosine")
    reached = model.log_prob(x).mean()
    assert best - 1e-2 < reached <= best + 1e-9
    directions = torch.linalg.eigh(x.T.cov(correction=0)).eigenvectors.flip(1)[:, :3]
    cosines = (directions.T @ nn.functional.normalize(model.weight.detach(), dim=0)).abs()
    assert cosines.max(0).values.min() > 0.99
    assert sorted(cosines.argmax(0).tolist()) == [0, 1, 2]
