"""What must be equal: objectives that are special cases of others, and numbers that no setting may move."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pvae
from pvae.estimators import ImportanceSampling
from pvae.guides import MeanField
from pvae.models import VAE
from pvae.objectives import CIWAE, CUBO, ELBO, IWAE, MIWAE, PIWAE, FisherAutoencoder, Renyi, ReweightedWakeSleep
from pvae.objectives.baselines import LeaveOneOut

IDENTITIES = {
    "IWAE(1) = ELBO": (IWAE(1), ELBO()),
    "MIWAE(1, K) = IWAE(K)": (MIWAE(1, 6), IWAE(6)),
    "MIWAE(M, 1) = ELBO(M)": (MIWAE(6, 1), ELBO(6)),
    "PIWAE(1, K) = IWAE(K)": (PIWAE(1, 6), IWAE(6)),
    "CIWAE(1, K) = ELBO(K)": (CIWAE(1.0, 6), ELBO(6)),
    "CIWAE(0, K) = IWAE(K)": (CIWAE(0.0, 6), IWAE(6)),
    "Renyi(0, K) = IWAE(K)": (Renyi(0.0, 6), IWAE(6)),
    "Renyi(1, K) = ELBO(K)": (Renyi(1.0, 6), ELBO(6)),
    "STL = DReG for the ELBO": (ELBO(6, gradient="stl"), ELBO(6, gradient="dreg")),
    "STL = DReG for one particle": (IWAE(1, gradient="stl"), IWAE(1, gradient="dreg")),
    "mixed = pathwise where all sites are": (IWAE(6, gradient="mixed"), IWAE(6)),
    "MIWAE(M, 1) by leave-one-out = ELBO(M)": (
        MIWAE(6, 1, gradient="score", baseline=LeaveOneOut()),
        ELBO(6, gradient="score", baseline=LeaveOneOut()),
    ),
}


@pytest.fixture
def pair():
    torch.manual_seed(0)
    x = torch.rand(7, 12).round().double()
    model = VAE((12,), 3).double()
    return model, MeanField(model, x, hidden=(8,)), x


def value_and_gradient(objective, pair):
    model, guide, x = pair
    leaves = [*model.parameters(), *guide.parameters()]
    objective.bound(model, guide, x)
    torch.manual_seed(1)
    bound = objective.bound(model, guide, x)
    return bound.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(bound.sum(), leaves)])


@pytest.mark.parametrize("name", IDENTITIES)
def test_special_cases_equal_each_other_in_value_and_gradient(name, pair):
    (value, gradient), (other_value, other_gradient) = (value_and_gradient(each, pair) for each in IDENTITIES[name])
    torch.testing.assert_close(value, other_value)
    torch.testing.assert_close(gradient, other_gradient)


def test_groups_are_averaged_over_m_and_weighed_over_k(pair):
    # Weights that sum to one over the groups instead would make MIWAE(1, K) the plain ELBO.
    value, _ = value_and_gradient(MIWAE(2, 3), pair)
    weights = weights_of(MIWAE(2, 3), pair)
    by_hand = (weights.unflatten(0, (2, 3)).logsumexp(1) - math.log(3)).mean(0)
    torch.testing.assert_close(value, by_hand)
    assert (value < value_and_gradient(IWAE(6), pair)[0]).all()
    assert (value > value_and_gradient(ELBO(6), pair)[0]).all()


def weights_of(objective, pair):
    """The log weights that `value_and_gradient` reduces."""
    return run_of(objective, pair).log_weights().values.detach()


def run_of(objective, pair):
    model, guide, x = pair
    objective.bound(model, guide, x)
    torch.manual_seed(1)
    with torch.no_grad():
        return objective._run(model, guide, (x,))


def test_values_fall_with_alpha_from_vr_max_to_the_least_weight(pair):
    alphas = [-math.inf, -2.0, 0.0, 0.5, 1.0, 3.0, math.inf]
    values = [value_and_gradient(Renyi(alpha, 6), pair)[0] for alpha in alphas]
    weights = weights_of(IWAE(6), pair)
    torch.testing.assert_close(values[0], weights.amax(0))
    torch.testing.assert_close(values[-1], weights.amin(0))
    assert all((high > low).all() for high, low in itertools.pairwise(values))
    torch.testing.assert_close(CUBO(6, order=1.0).reduce(run_of(IWAE(6), pair), 1.0), -values[2])


OBJECTIVES = [ELBO(3), ELBO(3, free_bits=0.1), IWAE(3), MIWAE(2, 2), CIWAE(0.5, 3), PIWAE(2, 2), Renyi(0.5, 3), CUBO(3)]
OBJECTIVES += [ReweightedWakeSleep(3, phase="both"), IWAE(3, gradient="dreg")]


def scaled_pair(data_scale):
    def model(x):
        weight = pyro.param("weight", torch.tensor(0.7))
        with pyro.plate("data", data_scale * len(x), subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(weight * z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", data_scale * len(x), subsample_size=len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.3)) * x, 0.6))

    return model, guide, torch.linspace(-1, 1, 5)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_a_subsampling_plate_scales_the_loss_and_never_the_bound(objective):
    numbers = []
    for data_scale in (1, 10):
        model, guide, x = scaled_pair(data_scale)
        objective.loss(model, guide, x)
        torch.manual_seed(2)
        # A subsampling plate draws its indices first: values are compared given the same draws.
        loss = objective.loss(model, guide, x) / data_scale
        torch.manual_seed(2)
        numbers.append((loss, -objective.bound(model, guide, x).sum().item()))
    assert numbers[1][0] == pytest.approx(numbers[1][1], rel=1e-5)
    assert numbers[0][0] == pytest.approx(numbers[0][1], rel=1e-5)


@pytest.mark.parametrize("data_scale", [1, 10])
@pytest.mark.parametrize("weight", [1.0, 0.2])
def test_no_scale_and_no_kl_weight_reaches_log_p(data_scale, weight):
    model, guide, x = scaled_pair(data_scale)

    def annealed_model(x):
        with poutine.scale(scale=weight):
            model(x)

    exact = dist.Normal(0.0, math.sqrt(0.7**2 + 0.25)).log_prob(x).double()
    answer = pvae.log_marginal(annealed_model, guide, x, ImportanceSampling(4000))
    assert ((answer.values - exact).abs() < 5 * answer.mc_standard_errors).all()


def test_the_order_and_the_batches_of_data_change_no_log_p_beyond_its_draws(pair):
    model, guide, x = pair
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    whole = pvae.log_marginal(model, guide, x, ImportanceSampling(20_000))
    for answer, index in (
        (pvae.log_marginal(model, guide, x[order], ImportanceSampling(20_000), seed=1), order),
        (pvae.log_marginal(model, guide, x, ImportanceSampling(20_000), batch_size=3, seed=2), slice(None)),
    ):
        error = (whole.mc_standard_errors[index].square() + answer.mc_standard_errors.square()).sqrt()
        assert ((answer.values - whole.values[index]).abs() < 5 * error).all()


@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_a_site_below_its_free_bits_costs_them_and_feels_no_pull(kl, pair):
    value, gradient = value_and_gradient(ELBO(3, kl=kl, free_bits=50.0), pair)
    free, free_gradient = value_and_gradient(ELBO(3, kl=kl, beta=0.0), pair)
    torch.testing.assert_close(value, free - 50)
    torch.testing.assert_close(gradient, free_gradient)


@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_a_site_above_its_free_bits_is_the_elbo_on_average(kl, pair):
    value, gradient = value_and_gradient(ELBO(3, kl=kl, free_bits=1e-6), pair)
    plain, plain_gradient = value_and_gradient(ELBO(3, kl=kl), pair)
    torch.testing.assert_close(value.mean(), plain.mean())
    torch.testing.assert_close(gradient, plain_gradient)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: IWAE(3, gradient="reparam"),
            "unknown gradient 'reparam': the choices are pathwise, stl, dreg, score, mixed",
        ),
        (lambda: IWAE(3, baseline=LeaveOneOut()), "a baseline serves the score function, gradient is 'pathwise'"),
        (lambda: IWAE(3, gradient="score", baseline="mean"), "baseline must be one of pvae.objectives.baselines"),
        (lambda: ELBO(kl="analytic", gradient="stl"), "gradient 'stl' works on sampled log weights"),
        (
            lambda: ELBO(free_bits=-1.0),
            "free_bits must be a finite number of at least 0, got -1.0",
        ),
        (lambda: MIWAE(0, 5), "num_averages must be a whole number of at least 1, got 0"),
        (lambda: CIWAE(1.5), r"beta must be a finite number of at least 0 and of at most 1, got 1.5"),
        (lambda: Renyi(math.nan), "alpha must be a finite number, got nan"),
        (lambda: CUBO(order=0.5), "order must be a finite number of at least 1, got 0.5"),
        (lambda: ReweightedWakeSleep(phase="dream"), "unknown phase 'dream': the choices are wake, sleep, both"),
        (lambda: FisherAutoencoder(0), "num_samples must be a whole number of at least 1"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
