"""Several guides of one model as one proposal."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pvae
from pvae.estimators import GuideMixture, ImportanceSampling
from pvae.guides import Exact, MeanField
from pvae.models import LinearGaussian


class TwoModes(nn.Module):
    """z ~ N(0, 1), x | z ~ N(|z|, 0.1^2): a posterior of two modes, of which neither guide below sees both."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z.abs(), 0.1), obs=x)


class OneMode(nn.Module):
    def __init__(self, sign):
        super().__init__()
        self.sign = nn.Parameter(torch.tensor(float(sign), dtype=torch.float64))

    def forward(self, x):
        pyro.module("one_mode", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.sign * x, 0.12))


X = torch.linspace(1.0, 2.0, 9, dtype=torch.float64)


def truth():
    grid = torch.linspace(-6, 6, 60_001, dtype=torch.float64)
    log_joint = dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(grid.abs(), 0.1).log_prob(X[:, None])
    return log_joint.logsumexp(1) + (grid[1] - grid[0]).log()


@pytest.mark.parametrize("step_mode", ["eager", "traced"])
def test_what_one_guide_misses_the_other_covers(step_mode):
    exact = truth()
    half = pvae.log_marginal(TwoModes(), OneMode(1), X, ImportanceSampling(4000))
    torch.testing.assert_close(half.values, exact - torch.tensor(2.0).log(), rtol=0, atol=0.05)
    estimator = GuideMixture([OneMode(-1)], 4001, chunk_size=700, step_mode=step_mode)
    whole = pvae.log_marginal(TwoModes(), OneMode(1), X, estimator)
    assert whole.bound == "lower"
    assert ((whole.values - exact).abs() < 5 * whole.mc_standard_errors).all()
    assert whole.mc_standard_errors.max() < 0.02


def test_guides_that_are_all_exact_give_the_exact_value():
    torch.manual_seed(0)
    model = LinearGaussian(4, 2).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    found = pvae.log_marginal(model, Exact(model), x, GuideMixture([Exact(model), Exact(model)], 10))
    torch.testing.assert_close(found.values, model.log_prob(x), rtol=0, atol=1e-10)


def test_companions_keep_their_mode_and_more_draws_may_join():
    torch.manual_seed(0)
    model = LinearGaussian(4, 2).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    guides = [MeanField(model, x, hidden=(5,)) for _ in range(2)]
    found = pvae.log_marginal(model, guides[0], x, GuideMixture(guides[1:], 200), target_se=0.05)
    assert guides[1].training
    assert (found.mc_standard_errors <= 0.05).all()
    assert ((found.values - model.log_prob(x)).abs() < 5 * found.mc_standard_errors + 0.01).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuideMixture([]), r"others must be guides of the same model, got \[\]"),
        (lambda: GuideMixture(["mean_field"]), "each of others must be a function or a built module, got 'mean_field'"),
        (lambda: GuideMixture([OneMode(1)] * 3, 3), "4 guides need as many draws, got num_samples 3"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
