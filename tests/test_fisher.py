"""The Fisher autoencoder against the divergence it stands for."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pvae
from pvae.guides import Exact, FullCovariance, MeanField
from pvae.models import VAE, LinearGaussian
from pvae.models.likelihoods import Gaussian
from pvae.objectives import FisherAutoencoder


def linear_gaussian(scale=0.7):
    torch.manual_seed(0)
    model = LinearGaussian(3, 2).double()
    with torch.no_grad():
        model.log_scale.fill_(math.log(scale))
    return model


def covariance(model):
    return model.weight @ model.weight.T + (2 * model.log_scale).exp() * torch.eye(3, dtype=torch.float64)


def draws(model, num):
    return pvae.sample(model, num, like=torch.zeros(2, 3, dtype=torch.float64), seed=5)["x"]


def test_it_is_minus_the_constant_at_the_true_model_with_the_true_posterior():
    # The divergence is 0 there, and 1/2 E|d_x log p|^2 = 1/2 tr(cov^-1) for a Gaussian.
    model = linear_gaussian()
    values = FisherAutoencoder().bound(model, Exact(model), draws(model, 40_000))
    constant = 0.5 * torch.linalg.inv(covariance(model)).trace()
    assert abs(values.mean() - constant) < 5 * values.std() / math.sqrt(len(values))


class LinearGuide(nn.Module):
    """q(z | x) = N(A x, diag(s^2)), whose slopes have a closed form."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.slope = nn.Parameter(0.4 * torch.randn(2, 3, dtype=torch.float64, generator=generator))
        self.log_scale = nn.Parameter(torch.tensor([-0.3, 0.1], dtype=torch.float64))

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.slope.T, self.log_scale.exp()).to_event(1))


def direct_divergence(true, model, guide):
    """1/2 E |d log p_true(x) q(z | x) - d log p(x, z)|^2 over x and z in closed form, all three being Gaussian."""
    w, s2 = model.weight, (2 * model.log_scale).exp()
    a, r = guide.slope, guide.log_scale.exp()
    inverse = torch.linalg.inv(covariance(true))
    # z = a x + r e: both slopes are linear in (x, e).
    by_z = (-torch.diag(1 / r), torch.zeros(2, 3, dtype=torch.float64))
    of_model_z = (w.T @ w @ torch.diag(r) / s2 + torch.diag(r), -w.T @ (torch.eye(3) - w @ a) / s2 + a)
    by_x = (a.T @ torch.diag(1 / r), -inverse)
    of_model_x = (w @ torch.diag(r) / s2, -(torch.eye(3) - w @ a) / s2)
    total = 0.0
    for (e, x), (model_e, model_x), sign in ((by_z, of_model_z, 1.0), (by_x, of_model_x, -1.0)):
        # d_z log p(x, z) = w'(x - w z) / s2 - z, d_x log p(x | z) = -(x - w z) / s2.
        e, x = e + sign * model_e, x + sign * model_x
        total = total + 0.5 * (e @ e.T).trace() + 0.5 * (x @ covariance(true) @ x.T).trace()
    return total


@pytest.mark.parametrize("num_samples", [1, 3])
def test_with_its_constant_it_is_the_divergence_and_has_its_gradient(num_samples):
    true, guide = linear_gaussian(), LinearGuide()
    torch.manual_seed(2)
    model = LinearGaussian(3, 2).double()
    x = draws(true, 60_000)
    leaves = [*guide.parameters(), model.weight, model.log_scale]
    truth = torch.autograd.grad(direct_divergence(true, model, guide), leaves)
    constant = 0.5 * torch.linalg.inv(covariance(true)).trace()
    values = -FisherAutoencoder(num_samples).bound(model, guide, x)
    error = values.std() / math.sqrt(len(x))
    assert abs(values.mean() + constant - direct_divergence(true, model, guide)) < 5 * error
    parts = [torch.autograd.grad(part.mean(), leaves, retain_graph=True) for part in values.split(2000)]
    for leaf, expected in enumerate(truth):
        each = torch.stack([part[leaf] for part in parts])
        error = each.std(0) / math.sqrt(len(parts))
        assert ((each.mean(0) - expected).abs() < 5 * error + 1e-9).all()


@pytest.mark.parametrize("family", [MeanField, FullCovariance])
@pytest.mark.parametrize("step_mode", ["traced", pytest.param("eager", marks=pytest.mark.slow)])
def test_it_trains_a_gaussian_vae(family, step_mode):
    torch.manual_seed(0)
    x = draws(linear_gaussian(), 500).float()
    model = VAE((3,), 2, likelihood=Gaussian("shared"))
    guide = family(model, x[:2], hidden=(16,))
    result = pvae.fit(
        model, guide, x, objective=FisherAutoencoder(), steps=200, lr=3e-3, step_mode=step_mode, progress=False
    )
    assert result.step_mode == step_mode
    assert result.losses[-20:].mean() < result.losses[:20].mean() - 0.3


def test_a_laplacian_that_is_no_product_is_right_on_average():
    class Correlated(nn.Module):
        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
                pyro.sample("x", dist.MultivariateNormal(z, precision_matrix=PRECISION), obs=x)

    class Guide(nn.Module):
        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))

    PRECISION = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    x = torch.zeros(40_000, 2, dtype=torch.float64)
    torch.manual_seed(0)
    values = -FisherAutoencoder().bound(Correlated(), Guide(), x)
    # z ~ N(0, I): 1/2 E|P z|^2 for the mismatch and for the score, and -tr P.
    truth = (PRECISION @ PRECISION).trace() - PRECISION.trace()
    assert abs(values.mean() - truth) < 5 * values.std() / math.sqrt(len(x))


def test_scalar_latents_and_data_will_do():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

    x = math.sqrt(2) * torch.randn(40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)  # the guide must not draw the noise that made the data
    values = FisherAutoencoder().bound(model, guide, x)
    # The exact posterior: 1/2 E|d log p|^2 = 1/2 of 1 / 2.
    assert abs(values.mean() - 0.25) < 5 * values.std() / math.sqrt(len(x))


def test_validation_without_gradients_gives_the_same_number():
    model = linear_gaussian()
    guide, x = LinearGuide(), draws(model, 5)
    objective = FisherAutoencoder()
    objective.bound(model, guide, x)
    torch.manual_seed(0)
    expected = objective.bound(model, guide, x)
    torch.manual_seed(0)
    with torch.no_grad():
        found = objective.bound(model, guide, x)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach())


def test_discrete_data_are_refused():
    x = torch.rand(4, 5).round()
    model = VAE((5,), 2)
    with pytest.raises(ValueError, match="FisherAutoencoder needs continuous x, site 'x' is Bernoulli"):
        FisherAutoencoder().bound(model, MeanField(model, x), x)
