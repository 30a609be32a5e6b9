"""Discrete sites of a guide that the ELBO sums out, against Pyro's enumeration, closed forms and sums by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn

import pvae
from pvae import truth
from pvae.estimators import ImportanceSampling
from pvae.guides import Categorical, Mixed
from pvae.objectives import ELBO, IWAE
from pvae.objectives.baselines import LeaveOneOut
from pvae.pair.contexts import seeded
from pvae.pair.store import private_store

DOUBLE = torch.float64
PARALLEL = {"enumerate": "parallel"}
NUM_DATA = 7


class Clusters(nn.Module):
    """y one of 3, z | y ~ N(loc_y, 1) in the plane, x | z ~ N(z, 0.5^2)."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.1, 0.7, -0.4], dtype=DOUBLE))
        self.loc = nn.Parameter(torch.tensor([[0.0, 2.0], [-1.0, 0.5], [1.5, -1.0]], dtype=DOUBLE))

    def forward(self, x):
        pyro.module("model", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            z = pyro.sample("z", dist.Normal(self.loc[y], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def log_prob(self, x):
        parts = dist.Normal(self.loc, math.sqrt(1.25)).log_prob(x[:, None]).sum(-1)
        return (self.logits.log_softmax(-1) + parts).logsumexp(-1)


class Branching(nn.Module):
    """q(y | x) q(z | x, y), linear."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = {"logits": (2, 3), "slope": (3, 2), "loc": (3, 2), "log_scale": (3, 2)}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(0.3 * torch.randn(shape, generator=generator, dtype=DOUBLE)))

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=x @ self.logits), infer=PARALLEL)
            loc = self.loc[y] + self.slope[y] * x
            pyro.sample("z", dist.Normal(loc, self.log_scale[y].exp()).to_event(1))


def data(*shape):
    return torch.randn(NUM_DATA, *shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


def loss_and_gradients(objective, model, guide, x):
    with private_store(model, guide):
        with seeded(3):
            if not isinstance(objective, TraceEnum_ELBO):
                objective.bound(model, guide, x)  # finds out how to run the pair, by draws of its own
        with seeded(3):
            loss = objective.differentiable_loss(model, guide, x)
        return loss, torch.autograd.grad(loss, [*model.parameters(), *guide.parameters()])


def test_loss_and_gradients_are_those_of_pyro():
    model, guide, x = Clusters(), Branching(), data(2)
    mine, gradients = loss_and_gradients(ELBO(), model, guide, x)
    other, expected = loss_and_gradients(TraceEnum_ELBO(max_plate_nesting=1), model, guide, x)
    torch.testing.assert_close(mine, other, rtol=1e-10, atol=0)
    for found, known in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, known, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_the_bound_is_the_sum_over_states_in_closed_form(kl):
    model, guide, x = Clusters(), Branching(), data(2)
    with torch.no_grad():
        draws = torch.stack([ELBO(500, kl=kl).bound(model, guide, x) for _ in range(20)])
        log_q = (x @ guide.logits).log_softmax(-1)
        exact = torch.zeros(NUM_DATA, dtype=DOUBLE)
        for y in range(3):
            loc, scale = guide.loc[y] + guide.slope[y] * x, guide.log_scale[y].exp()
            log_likelihood = dist.Normal(loc, 0.5).log_prob(x) - scale**2 / (2 * 0.25)
            kl_z = torch.distributions.kl_divergence(dist.Normal(loc, scale), dist.Normal(model.loc[y], 1.0))
            rest = model.logits.log_softmax(-1)[y] - log_q[:, y]
            exact = exact + log_q[:, y].exp() * ((log_likelihood - kl_z).sum(-1) + rest)
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - exact).abs() < 5 * error + 1e-12).all()
    assert (exact < model.log_prob(x)).all()


def test_estimators_draw_the_sites_as_before():
    model, guide, x = Clusters(), Branching(), data(2)
    found = pvae.log_marginal(model, guide, x, ImportanceSampling(20_000))
    assert ((found.values - model.log_prob(x)).abs() < 5 * found.mc_standard_errors).all()


def test_it_trains_a_built_in_guide_to_the_exact_posterior():
    known = truth.gaussian_mixture()
    torch.manual_seed(0)
    guide = config_enumerate(Categorical(known.model, known.x, hidden=(16,)))
    assert pvae.check(known.model, guide, known.x, ELBO()) == []
    options = {"steps": 800, "lr": 2e-2, "batch_size": len(known.x), "step_mode": "traced"}
    result = pvae.fit(known.model, guide, known.x, train="guide", **options)
    assert result.step_mode == "traced"
    # No draw takes part, so that the bound at the exact posterior is log p(x) itself.
    gap = known.log_prob.mean() - result.history[-1]["train_bound"]
    assert 0 <= gap < 0.01


def test_continuous_sites_after_the_discrete_ones_learn_too():
    torch.manual_seed(0)
    model, x = Clusters(), data(2)
    guide = Mixed(model, x, hidden=(16,))
    options = {"steps": 400, "lr": 1e-2, "batch_size": NUM_DATA, "train": "guide"}
    pvae.fit(model, config_enumerate(guide), x, objective=ELBO(5), **options)
    with torch.no_grad():
        gap = model.log_prob(x) - ELBO(5000).bound(model, config_enumerate(guide), x)
    assert gap.mean() < 0.05


class Labelled(nn.Module):
    """y one of 3, some of them known (y >= 0), x | y ~ N(2 y, 1)."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.1, 0.7, -0.4], dtype=DOUBLE))

    def forward(self, x, y):
        pyro.module("labelled", self)
        with pyro.plate("data", len(x)):
            fn = dist.Categorical(logits=self.logits)
            y = pyro.sample("y", fn, obs=y.clamp(min=0), obs_mask=y >= 0)
            pyro.sample("x", dist.Normal(2.0 * y, 1.0), obs=x)

    def log_prob(self, x, y):
        """log p(x, y) where y is known, else log p(x)."""
        joint = self.logits.log_softmax(-1) + dist.Normal(2.0 * torch.arange(3, dtype=DOUBLE), 1.0).log_prob(x[:, None])
        return torch.where(y >= 0, joint.gather(1, y.clamp(min=0)[:, None])[:, 0], joint.logsumexp(1))


def classifier(x, y):
    """The exact q(y | x), where y is missing."""
    states = torch.arange(3, dtype=DOUBLE)
    logits = x.new_tensor([0.1, 0.7, -0.4]) + dist.Normal(2.0 * states, 1.0).log_prob(x[:, None])
    with pyro.plate("data", len(x)), poutine.mask(mask=y < 0):
        pyro.sample("y_unobserved", dist.Categorical(logits=logits), infer=dict(PARALLEL))


def test_a_label_that_is_known_counts_once():
    x, y = data(), torch.tensor([0, -1, 2, -1, 1, 1, -1])
    model = Labelled()
    exact = model.log_prob(x, y)
    with torch.no_grad():
        torch.testing.assert_close(ELBO().bound(model, classifier, (x, y)), exact, rtol=0, atol=1e-10)
        summed = config_enumerate(model)
        weights = pvae.log_weights(summed, None, (x, y), 2)
        torch.testing.assert_close(weights.values, exact.expand(2, -1), rtol=0, atol=1e-10)
        torch.testing.assert_close(ELBO().bound(summed, None, (x, y)), exact, rtol=0, atol=1e-10)


def test_objectives_that_draw_the_sites_say_so():
    model, guide, x = Clusters(), Branching(), data(2)
    with pytest.raises(ValueError, match=r"'y' is drawn from Categorical, which has no pathwise") as error:
        IWAE(3).bound(model, guide, x)
    assert "\n" not in str(error.value)
    assert any("pathwise" in str(finding) for finding in pvae.check(model, guide, x, IWAE(3)))
    assert IWAE(3, gradient="mixed", baseline=LeaveOneOut()).bound(model, guide, x).shape == (NUM_DATA,)
