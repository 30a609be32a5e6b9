"""What other libraries, or Pyro itself, get wrong about log p(x): each test fails on code with that error."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import nn

import pvae
from pvae.estimators import DefensiveMixture, ImportanceSampling, Jackknife, PriorSampling
from pvae.estimators.weights.stream import WeightStream
from pvae.guides import Exact, MeanField
from pvae.models import VAE, LinearGaussian
from pvae.objectives import ELBO, IWAE, MIWAE

ESTIMATORS = [ImportanceSampling, PriorSampling, DefensiveMixture, Jackknife]
NUM_ONES, NUM_FLIPS = torch.tensor([0.0, 1.0, 3.0, 8.0]).double(), 8


def coin(x):
    """Flips x (B, 8) of a coin with bias z ~ Beta(2, 3)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Beta(2 * x.new_ones(1), 3 * x.new_ones(1)).to_event(1))
        pyro.sample("x", dist.Bernoulli(z.expand(*z.shape[:-1], NUM_FLIPS)).to_event(1), obs=x)


def coin_posterior(x):
    ones = x.sum(-1, keepdim=True)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Beta(2 + ones, 3 + NUM_FLIPS - ones).to_event(1))


def flips():
    return (torch.arange(NUM_FLIPS) < NUM_ONES[:, None]).double()


def log_beta(a, b):
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def linear_pair(num_data=7):
    torch.manual_seed(0)
    model = LinearGaussian(4, 2).double().requires_grad_(False).eval()
    return model, Exact(model).eval(), torch.randn(num_data, 4).double()


def within_errors(found, exact):
    return ((found.values - exact) / found.mc_standard_errors).abs().max() < 5


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_log_p_is_negative_for_binary_data_and_equals_the_closed_form(estimator):
    x = flips()
    exact = log_beta(2 + NUM_ONES, 3 + NUM_FLIPS - NUM_ONES) - log_beta(*torch.tensor([2.0, 3.0]).double())
    found = pvae.log_marginal(coin, coin_posterior, x, estimator(4000))
    assert (found.values < 0).all()
    assert found.mean < 0
    if estimator in (ImportanceSampling, Jackknife):
        assert (found.values - exact).abs().max() < 1e-10
    else:
        assert within_errors(found, exact)
        assert found.mc_standard_errors.max() < 0.1


@pytest.mark.parametrize("num_samples", [10, 250])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_as_many_weights_count_as_were_asked_for_whatever_the_chunk(estimator, num_samples, monkeypatch):
    model, guide, x = linear_pair()
    rows = []
    original = WeightStream.update
    monkeypatch.setattr(WeightStream, "update", lambda self, part: rows.append(part.shape) or original(self, part))
    found = pvae.log_marginal(model, guide, x, estimator(num_samples, chunk_size=100))
    assert sum(shape[0] for shape in rows) == num_samples
    assert {shape[1] for shape in rows} == {7}
    assert found.num_samples == num_samples
    if estimator in (ImportanceSampling, Jackknife):
        # Weights beyond those asked for, or a division by another count, would shift log p by the log of the ratio.
        assert (found.values - model.log_prob(x)).abs().max() < 1e-10


@pytest.mark.parametrize("num_samples", [10, 250])
def test_no_chunk_is_drawn_that_does_not_count(num_samples):
    """Ten particles in chunks of a hundred are ten; 250 are three chunks of 84, of which two draws are left out."""
    model, exact, x = linear_pair()
    drawn = []

    def guide(x):
        with poutine.trace() as run:
            exact(x)
        drawn.append(run.trace.nodes["z"]["value"].numel() // 2 // len(x))

    counted = []
    for passes in (1, 2):
        drawn.clear()
        estimator = ImportanceSampling(num_samples, chunk_size=100, step_mode="eager")
        # The looks at the pair take the same draws whether the data come once or twice.
        pvae.log_marginal(model, guide, x.repeat(passes, 1), estimator, batch_size=7)
        counted.append(sum(drawn))
    assert counted[1] - counted[0] == {10: 10, 250: 252}[num_samples]


@pytest.mark.parametrize("shape", [(5,), (2, 3), (3, 5, 7), (1, 2, 3, 2)])
def test_data_may_have_any_shape(shape):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            loc = z.reshape(*z.shape[:-1], *(1,) * len(shape)).expand(*z.shape[:-1], *shape)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(len(shape)), obs=x)

    size = math.prod(shape)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = x.flatten(1).sum(1, keepdim=True) / (size + 1)
            pyro.sample("z", dist.Normal(loc, math.sqrt(1 / (size + 1))).to_event(1))

    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0)).double()
    flat = torch.ones(size, 1).double()
    exact = dist.LowRankMultivariateNormal(flat[:, 0] * 0, flat, flat[:, 0]).log_prob(x.flatten(1))
    found = pvae.log_marginal(model, guide, x, ImportanceSampling(50), batch_size=4)
    torch.testing.assert_close(found.values, exact, rtol=0, atol=1e-8)


def test_miwae_of_one_group_is_iwae_and_of_one_particle_the_elbo():
    """Weights normalised over the M groups in place of the K particles would make the first the ELBO instead."""
    torch.manual_seed(0)
    x = torch.rand(5, 12).round()
    model = VAE((12,), 3)
    guide = MeanField(model, x, hidden=(8,))

    def value_and_gradients(objective):
        torch.manual_seed(1)
        objective.bound(model, guide, x)
        torch.manual_seed(1)
        bound = objective.bound(model, guide, x)
        parameters = [*model.parameters(), *guide.parameters()]
        return bound.detach(), torch.autograd.grad(bound.sum(), parameters)

    torch.testing.assert_close(value_and_gradients(MIWAE(1, 50)), value_and_gradients(IWAE(50)))
    torch.testing.assert_close(value_and_gradients(MIWAE(50, 1)), value_and_gradients(ELBO(50)))
    difference = value_and_gradients(MIWAE(1, 50))[0] - value_and_gradients(ELBO(50))[0]
    assert (difference > 0).all()


def shifted(x):
    """z ~ N(1, 2^2), x ~ N(z, 1): so x ~ N(1, 5)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_ones(1), 2.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def shifted_posterior(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((1 + 4 * x) / 5, math.sqrt(0.8)).to_event(1))


def normal_log_prob(x, loc, variance):
    return -0.5 * ((x - loc).square() / variance + math.log(2 * math.pi * variance))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_prior_is_the_models_own(estimator):
    x = torch.linspace(-3, 5, 5).double()[:, None]
    found = pvae.log_marginal(shifted, shifted_posterior, x, estimator(4000))
    exact = normal_log_prob(x[:, 0], 1.0, 5.0)
    if estimator in (ImportanceSampling, Jackknife):
        assert (found.values - exact).abs().max() < 1e-6
    else:
        assert within_errors(found, exact)
        assert found.mc_standard_errors.max() < 0.1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_prior_that_depends_on_another_latent_is_evaluated_at_it(estimator):
    """z2 ~ N(1, 2^2), z1 ~ N(z2, 1), x ~ N(z1, 1): so x ~ N(1, 6)."""

    def model(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(x.new_ones(1), 2.0).to_event(1))
            low = pyro.sample("low", dist.Normal(top, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(low, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            low = pyro.sample("low", dist.Normal((1 + 5 * x) / 6, 1.0).to_event(1))
            pyro.sample("top", dist.Normal((1 + 4 * low) / 5, 1.0).to_event(1))

    x = torch.linspace(-3, 5, 5).double()[:, None]
    found = pvae.log_marginal(model, guide, x, estimator(4000))
    assert within_errors(found, normal_log_prob(x[:, 0], 1.0, 6.0))
    assert found.mc_standard_errors.max() < 0.1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_mean_over_data_gives_every_datum_the_same_say(estimator):
    """A mean of batch means would weigh the 3 data of the last batch more, a last batch alone would forget 4."""
    model, guide, x = linear_pair()
    x[-1] += 10
    by_size = {size: pvae.log_marginal(model, guide, x, estimator(2000), batch_size=size) for size in (4, 7)}
    for found in by_size.values():
        assert len(found.values) == 7
        assert found.mean == pytest.approx(found.values.sum().item() / 7, abs=1e-12)
    if estimator in (ImportanceSampling, Jackknife):
        assert by_size[4].mean == pytest.approx(by_size[7].mean, abs=1e-10)
        assert by_size[4].mean == pytest.approx(model.log_prob(x).mean().item(), abs=1e-10)
        mean_of_means = (by_size[4].values[:4].mean() + by_size[4].values[4:].mean()).item() / 2
        assert abs(mean_of_means - by_size[4].mean) > 1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_evaluation_changes_no_weight_buffer_optimizer_or_param_store(estimator):
    torch.manual_seed(0)
    x = torch.rand(20, 12).round()
    model = VAE((12,), 3)
    guide = MeanField(model, x, encoder=nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=ELBO())
    for _ in range(5):  # an optimizer with momentum would go on moving
        svi.step(x)

    def world():
        store = pyro.get_param_store()
        return {
            **{f"model {name}": value.clone() for name, value in model.state_dict().items()},
            **{f"guide {name}": value.clone() for name, value in guide.state_dict().items()},
            **{f"store {name}": store[name].detach().clone() for name in store},
            **{
                f"optimizer {name} {key}": torch.as_tensor(value).clone()
                for name, state in svi.optim.get_state().items()
                for key, value in state["state"].get(0, {}).items()
            },
        }

    before, modes = world(), [module.training for module in [*model.modules(), *guide.modules()]]
    assert any("exp_avg" in name for name in before)
    found = [pvae.log_marginal(model, guide, x, estimator(50), batch_size=8) for _ in range(3)]
    after = world()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert modes == [module.training for module in [*model.modules(), *guide.modules()]]
    assert not found[0].values.requires_grad
    # With nothing changed, and no dropout, the same seed gives the same numbers.
    assert torch.equal(found[0].values, found[2].values)


@pytest.mark.parametrize("binarize", ["dynamic", "static", "threshold", None])
def test_a_result_says_how_its_data_were_made_binary(binarize):
    grey = torch.rand(6, NUM_FLIPS, generator=torch.Generator().manual_seed(0))
    if binarize == "dynamic":
        data = pvae.data.DataSet("grey", train=grey, test=grey, kind="unit", binarize=binarize)
    else:
        data = pvae.data.DataSet("grey", train=grey.round(), test=grey.round(), kind="binary", binarize=binarize)
    found = pvae.log_marginal(coin, None, data, PriorSampling(10))
    for record in (found.data, found.summary()["data"]):
        assert (record["name"], record["binarize"], record["split"]) == ("grey", binarize, "test")


# --- Pyro's own


def test_weights_are_those_of_each_datum_not_of_the_batch():
    """Summed over a batch, one datum with a bad guide would spoil the k-hat and the ESS of all."""
    model, exact, x = linear_pair(64)
    x[5, 0] = 9

    def guide(x):
        posterior = model.posterior(x)
        width = (1 - 0.9 * (x[:, 0] > 8).double())[:, None, None]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(posterior.loc, scale_tril=width * posterior.scale_tril))

    assert pvae.log_weights(model, exact, x, 9).values.shape == (9, 64)
    found = pvae.log_marginal(model, guide, x, ImportanceSampling(1000))
    good = torch.arange(64) != 5
    assert found.values.shape == found.ess.shape == found.khat.shape == (64,)
    assert found.khat[5] > 0.7
    assert torch.isneginf(found.khat[good]).all()
    assert (found.ess[good] - 1000).abs().max() < 1e-6
    assert (found.values - model.log_prob(x))[good].abs().max() < 1e-10


def scaled_pair(plate_scale, scale):
    """`shifted` with a wider guide, under a subsampling plate and with a KL weight in the code of the pair."""

    def model(x):
        with poutine.scale(scale=scale), pyro.plate("data", plate_scale * len(x), subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(x.new_ones(1), 2.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with poutine.scale(scale=scale), pyro.plate("data", plate_scale * len(x), subsample_size=len(x)):
            pyro.sample("z", dist.Normal((1 + 4 * x) / 5, 1.0).to_event(1))

    return model, guide


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("plate_scale", "scale"), [(10, 1.0), (1, 0.3), (10, 0.3)])
def test_no_scale_of_training_enters_log_p(estimator, plate_scale, scale):
    """Pyro raises the weights to the power of the scale, inside the logarithm of their mean."""
    x = torch.linspace(-3, 5, 5).double()[:, None]
    found = pvae.log_marginal(*scaled_pair(plate_scale, scale), x, estimator(2000))
    assert within_errors(found, normal_log_prob(x[:, 0], 1.0, 5.0))
    assert found.mc_standard_errors.max() < 0.1
    if plate_scale == 1:  # a subsampling plate draws its indices from the same generator
        plain = pvae.log_marginal(*scaled_pair(1, 1.0), x, estimator(2000))
        torch.testing.assert_close(found.values, plain.values, rtol=0, atol=1e-10)
