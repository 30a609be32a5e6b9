"""Every guide on a model with all kinds of continuous sites: positive, simplex, interval, real, and a nested plate."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pvae
from pvae.estimators import ImportanceSampling
from pvae.guides import MeanField
from pvae.objectives import ELBO, IWAE
from tests.tables import DISCRETE, GUIDES, IMPLICIT, NO_DENSITY


class Every(nn.Module):
    """rate > 0, share in (0, 1), mix on the simplex, z real, and a deviation per reading; x is (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(7, 1)

    def forward(self, x):
        pyro.module("every", self)
        with pyro.plate("data", len(x), dim=-2):
            rate = pyro.sample("rate", dist.Gamma(torch.tensor(3.0), 1.0))
            share = pyro.sample("share", dist.Beta(torch.tensor(2.0), 2.0))
            mix = pyro.sample("mix", dist.Dirichlet(torch.ones(3)))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            features = torch.cat([rate[..., None], share[..., None], mix, z], -1)
            with pyro.plate("readings", 4, dim=-1):
                deviation = pyro.sample("deviation", dist.Normal(torch.tensor(0.0), 0.4))
                pyro.sample("x", dist.Normal(self.net(features)[..., 0] + deviation, 0.5), obs=x)


# Exact and the discrete guides serve other models; Ladder needs Gaussian sites and says so; an implicit one has no
# density; Empty serves models without latents, and the last three one model each.
ANY = sorted(set(GUIDES) - {"Empty", "Exact", "Ladder", "Chained", "Recurrent", "SemiSupervised"} - DISCRETE - IMPLICIT)


def pair(name):
    torch.manual_seed(0)
    model, x = Every(), torch.randn(6, 4)
    return model, GUIDES[name](model, x), x


@pytest.mark.parametrize("name", ANY)
def test_weights_and_gradients(name):
    model, guide, x = pair(name)
    for num_samples in (1, 3):
        weights = pvae.log_weights(model, guide, x, num_samples)
        assert weights.values.shape == (num_samples, 6)
        assert torch.isfinite(weights.values).all()
    (-ELBO(2).bound(model, guide, x).mean()).backward()
    assert all(torch.isfinite(p.grad).all() for p in guide.parameters() if p.grad is not None)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in guide.parameters())


@functools.cache
def by_the_prior():
    """The answer for the model of every pair, which needs no guide."""
    torch.manual_seed(0)
    model, x = Every().requires_grad_(False).eval(), torch.randn(6, 4)
    return pvae.log_marginal(model, None, x, pvae.estimators.PriorSampling(200_000), seed=7)


# Each trains for seconds: the usual ones at every run.
USUAL = {"IAF", "MeanField"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in USUAL else pytest.mark.slow) for name in ANY])
def test_log_p_is_the_same_whatever_the_guide(name):
    if name in NO_DENSITY:
        pytest.skip("a point has no density")
    model, guide, x = pair(name)
    model.requires_grad_(False).eval()
    pvae.fit(model, guide, x, objective=IWAE(8), steps=300, batch_size=6, lr=1e-2, train="guide", progress=False)
    found = pvae.log_marginal(model, guide, x, ImportanceSampling(20_000))
    prior = by_the_prior()
    error = (found.mc_standard_errors.square() + prior.mc_standard_errors.square()).sqrt()
    trusted = (found.khat < found.khat_threshold) & (prior.khat < prior.khat_threshold)
    assert trusted.any()
    assert ((found.values - prior.values).abs() < 5 * error)[trusted].all()


def test_a_mixture_of_ones_own_is_a_prior_as_any():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    locs = torch.tensor([[-1.0, 0.0], [2.0, 1.0]], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            components = dist.Normal(locs, 1.0).to_event(1)
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(2)), components))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    torch.manual_seed(0)
    guide = MeanField(model, x, hidden=(5,))
    found = pvae.log_marginal(model, guide, x, ImportanceSampling(20_000))
    exact = dist.Normal(locs, 1.25**0.5).log_prob(x[:, None]).sum(-1).logsumexp(-1) - math.log(2)
    assert ((found.values - exact).abs() < 5 * found.mc_standard_errors).all()
