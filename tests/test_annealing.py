"""Annealed importance sampling and bidirectional Monte Carlo against models whose log p(x) is known."""

import math
from functools import partial
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

import pvae
from pvae.estimators import AnnealedImportanceSampling, BidirectionalMonteCarlo, ImportanceSampling, PriorSampling
from pvae.estimators.density.annealing import temperatures
from pvae.estimators.density.hmc import Point, transition
from pvae.estimators.density.step_sizes import tuned_steps
from pvae.estimators.density.unconstrained import UnconstrainedJoint
from pvae.models import VAE, LinearGaussian
from pvae.nets import ConvDecoder
from pvae.pair.contexts import seeded
from pvae.pair.parameters import find_parameters
from pvae.pair.simulate import simulate
from pvae.pair.store import private_store
from tests import own_pairs
from tests.test_clean_world import assert_unchanged, world

BETA = 0.7


@pytest.fixture
def linear():
    """The model of the anchors, D = 20 and L = 5, with data of its own."""
    torch.manual_seed(0)
    model = LinearGaussian(20, 5).requires_grad_(False).eval()
    return model, pvae.sample(model, 8, like=torch.zeros(1, 20))["x"]


# --- models with bounded latents, each with the exact log p of the data beside it


def gamma_poisson():
    x = torch.tensor([[0.0, 1, 2], [4, 3, 7]])

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(rate[..., None].expand(*rate.shape, 3)).to_event(1), obs=x)

    total = x.sum(-1)
    exact = torch.lgamma(2 + total) - (2 + total) * math.log(4) - torch.lgamma(x + 1).sum(-1)
    return model, x, exact


def beta_bernoulli():
    x = torch.tensor([[0.0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])

    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Beta(0.8, 1.5).expand([1]).to_event(1))
            pyro.sample("x", dist.Bernoulli(p.expand(*p.shape[:-1], 5)).to_event(1), obs=x)

    ones = x.sum(-1)

    def log_beta(a, b):
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

    return model, x, log_beta(0.8 + ones, 6.5 - ones) - log_beta(torch.tensor(0.8), torch.tensor(1.5))


def dirichlet_categorical():
    x = torch.tensor([[0, 0, 1, 0], [2, 1, 0, 2]])

    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 0.7])))
            pyro.sample("x", dist.Categorical(p[..., None, :].expand(*p.shape[:-1], 4, 3)).to_event(1), obs=x)

    prior = torch.tensor([1.0, 2.0, 0.7])
    counts = torch.nn.functional.one_hot(x, 3).sum(1)
    rising = torch.lgamma(prior + counts).sum(-1) - torch.lgamma(prior).sum()
    return model, x, rising + torch.lgamma(prior.sum()) - torch.lgamma(prior.sum() + 4)


def support_of_another_draw():
    """u ~ U(0, 1), v ~ U(0, u), so that v has density -log v."""
    x = torch.tensor([[0.1], [0.9]])

    def model(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Uniform(0.0, 1.0))
            v = pyro.sample("v", dist.Uniform(torch.zeros_like(u), u))
            pyro.sample("x", dist.Normal(v[..., None], 0.2).to_event(1), obs=x)

    middles = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    return model, x, (-middles.log() * Normal(middles, 0.2).log_prob(x.double()).exp()).mean(-1).log()


def plate_within():
    """x_j = w'z + b + u_j + noise, each reading j with a latent of its own."""
    model, _, x = own_pairs.nested_plate()
    loc = model.__self__.loc
    covariance = loc.weight.square().sum() * torch.ones(5, 5) + 1.25 * torch.eye(5)
    return model, x[:2], MultivariateNormal(loc.bias.expand(5), covariance).log_prob(x[:2]).detach()


KNOWN = [gamma_poisson, beta_bernoulli, dirichlet_categorical, support_of_another_draw, plate_within]


def within(found, expected, standard_error):
    return abs(found - expected) < 5 * standard_error


# --- the transition


def gaussian_target(position):
    """Prior N(0, I), and a likelihood of curvature diag(1, 9) about (1, -1)."""
    shift, curvature = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 9.0])
    off = position - shift
    return Point(
        position, -position.square().sum(-1) / 2, -(curvature * off.square()).sum(-1) / 2, -position, -curvature * off
    )


def exact_draws(num):
    precision = 1 + BETA * torch.tensor([1.0, 9.0])
    mean = BETA * torch.tensor([1.0, -9.0]) / precision
    return gaussian_target(mean + torch.randn(num, 1, 2) / precision.sqrt()), mean, precision


@pytest.mark.parametrize("num_leapfrog", [1, 3])
def test_a_transition_leaves_its_target_as_it_is(num_leapfrog):
    torch.manual_seed(0)
    num = 200_000
    point, mean, precision = exact_draws(num)
    for _ in range(3):
        point, probability = transition(gaussian_target, point, BETA, torch.tensor([0.68]), num_leapfrog)
    # Of proposals at so large a step many are refused: without the right refusals the moments would be off.
    assert 0.4 < probability.mean() < 0.8
    standard = (point.position[:, 0] - mean) * precision.sqrt()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        raised = standard**power
        assert (abs(raised.mean(0) - moment) < 5 * raised.std(0) / math.sqrt(num)).all(), power
    mixed = standard.prod(-1)
    assert within(mixed.mean(), 0, mixed.std() / math.sqrt(num))


def test_a_transition_moves_towards_its_target():
    torch.manual_seed(1)
    point = gaussian_target(torch.full((20_000, 1, 2), 4.0))
    for _ in range(30):
        point, _ = transition(gaussian_target, point, BETA, torch.tensor([0.4]), 5)
    _, mean, precision = exact_draws(1)
    standard = (point.position[:, 0] - mean) * precision.sqrt()
    assert (standard.mean(0).abs() < 5 / math.sqrt(20_000)).all()
    assert ((standard.var(0) - 1).abs() < 5 * math.sqrt(2 / 20_000)).all()


def test_what_is_not_finite_is_never_taken():
    def cliff(position):
        point = gaussian_target(position)
        return point._replace(log_prior=torch.where(position[..., 0] > 0, math.inf, point.log_prior))

    torch.manual_seed(2)
    start = cliff(torch.full((1000, 1, 2), -0.5))
    point, probability = transition(cliff, start, BETA, torch.tensor([0.3]), 3)
    assert (point.position[..., 0] <= 0).all()
    assert 0 < probability.mean() < 1
    far, probability = transition(gaussian_target, start, BETA, torch.tensor([1e30]), 3)
    assert torch.equal(far.position, start.position)
    assert (probability == 0).all()


def test_tuned_steps_are_accepted_as_often_as_they_should():
    torch.manual_seed(3)
    start = gaussian_target(torch.randn(64, 1, 2))
    steps = tuned_steps(gaussian_target, start, [0.0, 0.01, BETA, 1.0], 10)
    assert steps.shape == (4, 1)
    # The narrower the target, the shorter the step.
    assert steps[0] > steps[2] > steps[3]
    point, _, _ = exact_draws(20_000)
    _, probability = transition(gaussian_target, point, BETA, steps[2], 10)
    assert 0.5 < probability.mean() < 0.8


# --- densities on unconstrained space


@pytest.mark.parametrize("known", KNOWN)
def test_gradients_are_those_of_the_densities(known):
    model, x, _ = known()
    with private_store(model), seeded(0), torch.no_grad():
        joint = UnconstrainedJoint(model, find_parameters(model, None, (x,)), "eager")
        point = joint.locate((x,), 3)
        ahead = torch.randn_like(point.position)
        both = [joint.point((x,), point.position + sign * 1e-2 * ahead) for sign in (-1, 1)]
    for density, slope in (("log_prior", point.prior_slope), ("log_likelihood", point.likelihood_slope)):
        change = (getattr(both[1], density) - getattr(both[0], density)) / 2e-2
        torch.testing.assert_close((slope * ahead).sum(-1), change, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("known", KNOWN)
def test_prior_includes_the_change_of_volume(known):
    """E over prior draws u of exp(N(u; m, s) - log p(u)) is 1 for any normalised density on unconstrained space."""
    model, x, _ = known()
    with private_store(model), seeded(0), torch.no_grad():
        joint = UnconstrainedJoint(model, find_parameters(model, None, (x,)), "eager")
        draws = joint.locate((x,), 20_000)
        mean, scale = draws.position.mean(0), draws.position.std(0)
        # Narrower than the prior, for the variance to be finite.
        other = Normal(mean, 0.3 * scale)
        ratio = (other.log_prob(draws.position).sum(-1) - draws.log_prior).exp()
    assert (abs(ratio.mean(0) - 1) < 5 * ratio.std(0) / math.sqrt(20_000)).all()
    assert (ratio.std(0) < 30).all()


# --- the estimators


@pytest.mark.parametrize("schedule", ["linear", "sigmoidal"])
@pytest.mark.parametrize("known", KNOWN)
def test_weights_are_unbiased_for_bounded_latents(known, schedule):
    model, x, exact = known()
    estimator = AnnealedImportanceSampling(4000, num_temperatures=4, num_leapfrog=3, schedule=schedule)
    result = pvae.log_marginal(model, None, x, estimator)
    ratio = (result.values - exact).exp()
    assert (result.mc_standard_errors < 0.1).all()
    assert (abs(ratio - 1) < 5 * ratio * result.mc_standard_errors).all()
    assert (result.ess > 200).all()


def test_weights_are_unbiased_and_need_fewer_chains_at_more_temperatures(linear):
    model, x = linear
    exact = model.log_prob(x)
    spread = []
    for num_temperatures in (5, 20, 80):
        estimator = AnnealedImportanceSampling(1000, num_temperatures=num_temperatures, num_leapfrog=5)
        result = pvae.log_marginal(model, None, x, estimator)
        error = result.mc_standard_errors
        if num_temperatures > 5:  # at 5 the weights are too heavy-tailed for a normal error
            assert (abs((result.values - exact).exp() - 1) < 5 * error * (result.values - exact).exp()).all()
        spread.append(error.mean())
    # 1 / sqrt(T), so half at four times as many.
    assert spread[0] > 1.6 * spread[1] > 1.6**2 * spread[2]


def test_one_temperature_is_prior_sampling(linear):
    model, x = linear
    settings = {"num_samples": 7, "step_mode": "eager"}
    estimator = AnnealedImportanceSampling(num_temperatures=1, step_size=0.1, **settings)
    annealed = pvae.log_marginal(model, None, x, estimator)
    prior = pvae.log_marginal(model, None, x, PriorSampling(**settings))
    torch.testing.assert_close(annealed.values, prior.values)
    torch.testing.assert_close(annealed.ess, prior.ess, rtol=1e-5, atol=0)


@pytest.mark.parametrize("step_mode", ["eager", "traced"])
def test_chains_that_always_diverge_weigh_their_prior_draws(step_mode):
    """A `Gamma` built under Pyro's validation refuses nan and negative rates, which must not surface."""
    model, x, _ = gamma_poisson()
    stuck = AnnealedImportanceSampling(50, num_temperatures=3, step_size=1e25, step_mode=step_mode)
    prior = pvae.log_marginal(model, None, x, PriorSampling(50, step_mode="eager"))
    torch.testing.assert_close(pvae.log_marginal(model, None, x, stuck).values, prior.values, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_every_mode_gives_the_same_numbers(linear):
    model, x = linear
    eager, traced, again, other = (
        pvae.log_marginal(model, None, x, AnnealedImportanceSampling(3, num_temperatures=5, step_mode=mode), seed=seed)
        for mode, seed in (("eager", 0), ("traced", 0), ("traced", 0), ("traced", 1))
    )
    torch.testing.assert_close(eager.values, traced.values, rtol=1e-4, atol=1e-4)
    assert torch.equal(again.values, traced.values)
    assert not torch.isclose(other.values, traced.values).any()


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [AnnealedImportanceSampling, BidirectionalMonteCarlo])
def test_num_samples_is_honoured_whatever_the_chunks_and_batches(estimator, linear):
    model, x = linear
    x = x.repeat(3, 1)
    wide = estimator(7, num_temperatures=200, num_leapfrog=3, chunk_size=3, step_mode="traced")
    result = pvae.log_marginal(model, None, x, wide, batch_size=20)
    assert result.num_samples == 7
    assert len(result.values) == 24
    assert ((result.ess > 3) & (result.ess <= 7 + 1e-9)).all()
    if result.upper_values is None:
        assert (result.values - model.log_prob(x)).abs().max() < 1.5


def test_chains_are_added_until_the_error_is_small_enough(linear):
    model, x = linear
    exact = model.log_prob(x)
    estimator = AnnealedImportanceSampling(4, num_temperatures=50, num_leapfrog=5)
    result = pvae.log_marginal(model, None, x, estimator, target_se=0.1)
    assert (result.mc_standard_errors <= 0.1).all()
    assert (result.samples > 4).any()
    assert within(result.mean, exact.mean(), result.mc_standard_error)
    with pytest.raises(ValueError, match="BidirectionalMonteCarlo"):
        pvae.log_marginal(model, None, x, BidirectionalMonteCarlo(4), target_se=0.1)


def test_annealing_beats_importance_sampling_from_a_bad_guide(linear):
    model, x = linear

    def bad(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.full((5,), 2.0), 0.3).to_event(1))

    exact = model.log_prob(x)
    importance = pvae.log_marginal(model, bad, x, ImportanceSampling(5000))
    annealed = pvae.log_marginal(model, None, x, AnnealedImportanceSampling(8, num_temperatures=1000, num_leapfrog=5))
    assert annealed.bound == "lower"
    assert (annealed.values - exact).abs().max() < 0.5
    assert abs(annealed.values.mean() - exact.mean()) < 5 * annealed.mc_standard_error
    assert (importance.values - exact).mean() < -2
    assert ((importance.values - exact).abs() > (annealed.values - exact).abs()).all()


def test_a_convolutional_model_of_any_picture_size():
    torch.manual_seed(4)
    model = VAE((1, 8, 6), 2, decoder=ConvDecoder(2, (4, 3), (1, 8, 6)))
    x = pvae.sample(model, 3, like=torch.zeros(1, 1, 8, 6))["x"]
    prior = pvae.log_marginal(model, None, x, PriorSampling(20_000))
    annealed = pvae.log_marginal(model, None, x, AnnealedImportanceSampling(100, num_temperatures=20, num_leapfrog=3))
    error = (prior.mc_standard_errors.square() + annealed.mc_standard_errors.square()).sqrt()
    assert (error < 0.1).all()
    assert (abs(prior.values - annealed.values) < 5 * error).all()
    both = pvae.log_marginal(model, None, x, BidirectionalMonteCarlo(20, num_temperatures=20, num_leapfrog=3))
    assert both.upper_values.shape == (3,)
    assert abs(both.gap) < 1


def test_a_pair_whose_nets_take_no_particles():
    """Its reshapes know of one batch dim, so chains are rows of one long batch; of its dropout nothing may be seen."""
    model, guide, x = own_pairs.convolutional()
    importance = pvae.log_marginal(model, guide, x, ImportanceSampling(3000))
    annealed = pvae.log_marginal(model, None, x, AnnealedImportanceSampling(30, num_temperatures=20, num_leapfrog=3))
    error = (importance.mc_standard_errors.square() + annealed.mc_standard_errors.square()).sqrt()
    assert (abs(importance.values - annealed.values) < 5 * error).all()
    assert model.__self__.training


# --- both directions


def sandwich(model, x, estimator):
    """Both bounds, and the exact log p of the data that were simulated: they are the first that the seed draws."""
    result = pvae.log_marginal(model, None, x, estimator, batch_size=len(x), seed=3)
    with private_store(model), seeded(3):
        (data,) = simulate(model, (x,)).batch
    return result, model.log_prob(data)


def mean_and_error(values):
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def test_reverse_weights_are_unbiased_for_one_over_p():
    torch.manual_seed(5)
    model = LinearGaussian(3, 2).requires_grad_(False).eval()
    estimator = BidirectionalMonteCarlo(4, num_temperatures=8, num_leapfrog=3)
    result, exact = sandwich(model, torch.zeros(4000, 3), estimator)
    for ratio in ((result.values - exact).exp(), (exact - result.upper_values).exp()):
        mean, error = mean_and_error(ratio)
        assert error < 0.03
        assert within(mean, 1, error)


@pytest.mark.slow
def test_bounds_enclose_log_p_ever_closer(linear):
    model, _ = linear
    gaps = []
    for num_temperatures in (10, 20, 40, 80):
        estimator = BidirectionalMonteCarlo(2, num_temperatures=num_temperatures, num_leapfrog=5)
        result, exact = sandwich(model, torch.zeros(100, 20), estimator)
        below, below_error = mean_and_error(result.values - exact)
        above, above_error = mean_and_error(result.upper_values - exact)
        assert below < 5 * below_error
        assert above > -5 * above_error
        gaps.append(mean_and_error(result.upper_values - result.values))
        assert result.gap == pytest.approx(gaps[-1][0])
    for (coarse, coarse_error), (fine, fine_error) in pairwise(gaps):
        assert coarse > fine - 5 * math.hypot(coarse_error, fine_error)
    assert gaps[0][0] > gaps[-1][0] + 5 * math.hypot(gaps[0][1], gaps[-1][1])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "sigmoidal"])
def test_a_thousand_temperatures_leave_less_than_half_a_nat(linear, schedule):
    model, _ = linear
    gaps = []
    for num_temperatures in (500, 1000):
        estimator = BidirectionalMonteCarlo(16, num_temperatures=num_temperatures, schedule=schedule)
        result, exact = sandwich(model, torch.zeros(20, 20), estimator)
        below, below_error = mean_and_error(result.values - exact)
        above, above_error = mean_and_error(result.upper_values - exact)
        assert below < 5 * below_error
        assert above > -5 * above_error
        gaps.append(mean_and_error(result.upper_values - result.values))
    assert result.gap < 0.5
    assert gaps[0][0] > gaps[1][0] - 5 * math.hypot(gaps[0][1], gaps[1][1])


def test_a_sandwich_says_what_it_is(linear):
    model, x = linear
    result = pvae.log_marginal(model, None, x, BidirectionalMonteCarlo(2, num_temperatures=5))
    assert (result.bound, result.data["simulated"]) == ("lower", True)
    summary = result.summary()
    assert summary["gap"] == pytest.approx(summary["upper_mean"] - summary["mean"])
    plain = pvae.log_marginal(model, None, x, AnnealedImportanceSampling(2, num_temperatures=5))
    assert "simulated" not in plain.data
    assert not {"gap", "upper_mean"} & plain.summary().keys()
    with pytest.raises(ValueError, match="BidirectionalMonteCarlo"):
        _ = plain.gap


# --- the rest


def test_schedules():
    assert temperatures(4, "linear") == [0, 0.25, 0.5, 0.75, 1]
    curve = temperatures(10, "sigmoidal")
    low, high = 1 / (1 + math.exp(4)), 1 / (1 + math.exp(-4))
    assert curve[3] == pytest.approx((1 / (1 + math.exp(4 * 0.4)) - low) / (high - low))
    assert curve == pytest.approx([1 - beta for beta in reversed(curve)])
    assert (curve[0], curve[10]) == (0, 1)


def test_models_that_cannot_be_annealed_are_refused():
    def discrete(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def bare(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    for model, message in ((discrete, "'z' is discrete.*Enumeration"), (bare, "no latent site")):
        for estimator in (AnnealedImportanceSampling(2), BidirectionalMonteCarlo(2)):
            with pytest.raises(ValueError, match=message) as caught:
                pvae.log_marginal(model, None, torch.zeros(3), estimator)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "mistake",
    [
        {"num_samples": 0},
        {"num_temperatures": 0},
        {"num_leapfrog": 2.5},
        {"schedule": "sigmoid"},
        {"step_size": -0.1},
        {"step_size": math.nan},
        {"chunk_size": 0},
        {"step_mode": "fast"},
    ],
)
def test_bad_settings_are_refused_in_one_line(mistake):
    with pytest.raises(ValueError, match=next(iter(mistake))) as caught:
        AnnealedImportanceSampling(**mistake)
    assert "\n" not in str(caught.value)


def test_nothing_global_is_left_behind(linear):
    model, x = linear
    before = world()
    for step_mode in ("eager", "traced"):
        estimator = partial(BidirectionalMonteCarlo, 2, num_temperatures=3)
        pvae.log_marginal(model, None, x, estimator(step_mode=step_mode))
        assert_unchanged(before)
