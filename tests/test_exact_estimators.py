"""Quadrature, enumeration and kernel densities against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from torch.distributions import MultivariateNormal, Normal

import pvae
from pvae import truth
from pvae.estimators import Enumeration, ImportanceSampling, ParzenWindow, Quadrature
from pvae.estimators.density.box import bounding_box
from pvae.estimators.density.cubature import integrate
from pvae.estimators.enumeration import joint_states
from pvae.models import LinearGaussian

DOUBLE = torch.float64


def answer(model, x, estimator, **options):
    return pvae.log_marginal(model, None, x, estimator, **options)


def gaussian(latent_dim, dtype=DOUBLE):
    torch.manual_seed(3)
    model = LinearGaussian(5, latent_dim).to(dtype)
    model.log_scale.data.fill_(math.log(0.3))
    return model.requires_grad_(False), torch.randn(7, 5, dtype=dtype)


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_quadrature_is_the_linear_gaussian_marginal(latent_dim):
    model, x = gaussian(latent_dim)
    result = answer(model, x, Quadrature())
    assert (result.values - model.log_prob(x)).abs().max() < 1e-9
    assert result.mc_standard_errors.max() < 1e-9
    assert result.bound == "none"
    assert result.fraction_untrusted == 0


def test_quadrature_in_single_precision():
    model, x = gaussian(2, torch.float32)
    assert (answer(model, x, Quadrature()).values - model.log_prob(x)).abs().max() < 1e-4


@pytest.mark.parametrize("build", [truth.beta_bernoulli, truth.gamma_poisson, truth.ring, truth.shifted_gaussian])
def test_quadrature_meets_the_truths(build):
    known = build()
    result = answer(known.model, known.x, Quadrature())
    assert (result.values - known.log_prob).abs().max() < 1e-8
    assert result.mc_standard_errors.max() < 1e-9


def test_quadrature_on_a_ring_wherever_its_singular_point_falls_in_the_cells():
    angle = torch.linspace(0, 5, 40, dtype=DOUBLE)
    x = torch.stack([angle.cos(), angle.sin()], -1) * torch.linspace(0.75, 1.2, 40, dtype=DOUBLE)[:, None]
    known = truth.ring(x)
    result = answer(known.model, x, Quadrature(120), batch_size=11)
    assert (result.values - known.log_prob).abs().max() < 1e-6


def test_quadrature_counts_its_points():
    model, x = gaussian(1)
    estimator = Quadrature(400)
    assert estimator.num_samples == 0
    result = answer(model, x, estimator)
    # 13 cells of 15 points, and then their halves.
    assert result.num_samples == estimator.num_samples == 195 + 390
    assert result.ess.tolist() == [585] * 7


def two_humps(x):
    """z ~ N(0, 3^2), x ~ N(|z|, 0.05^2): two needles, far apart."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 3.0))
        pyro.sample("x", dist.Normal(z.abs(), 0.05), obs=x)


def test_quadrature_of_a_posterior_with_two_modes():
    x = torch.tensor([0.5, 2.0, 8.0], dtype=DOUBLE)
    scale = torch.tensor(math.sqrt(9 + 0.05**2), dtype=DOUBLE)
    sides = 2 * Normal(0.0, 1.0).cdf(x * 3 / (0.05 * scale))
    exact = Normal(torch.zeros_like(scale), scale).log_prob(x) + sides.log()
    assert (answer(two_humps, x, Quadrature()).values - exact).abs().max() < 1e-8


def far_and_heavy(x):
    """A Cauchy prior and a likelihood far out in its tail."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Cauchy(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 0.01), obs=x)


def test_quadrature_finds_a_needle_far_outside_the_prior_draws():
    x = torch.tensor([0.3, 5e4], dtype=DOUBLE)
    exact = []
    for value in x.tolist():
        integrand = lambda u, at=value: math.exp(-0.5 * u * u) / (1 + (at + 0.01 * u) ** 2)  # noqa: E731
        exact.append(math.log(quad(integrand, -10, 10, epsabs=0, epsrel=1e-12)[0] / math.pi / math.sqrt(2 * math.pi)))
    assert (answer(far_and_heavy, x, Quadrature()).values - torch.tensor(exact, dtype=DOUBLE)).abs().max() < 1e-8


def bounded(x):
    """A positive latent and one between 0 and 2."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.LogNormal(x.new_zeros(()), 0.5))
        w = pyro.sample("w", dist.Uniform(x.new_zeros(()), 2.0))
        pyro.sample("x", dist.Normal(z + w, 0.5), obs=x)


def mixed(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        y = pyro.sample("y", dist.Bernoulli(x.new_full((), 0.5)))
        pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)


def moving(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.LogNormal(x.new_zeros(()), 1.0))
        b = pyro.sample("b", dist.Uniform(torch.zeros_like(a), a))
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)


def counts(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Poisson(x.new_ones(())))
        pyro.sample("x", dist.Normal(y, 1.0), obs=x)


def test_quadrature_over_two_sites_with_bounds():
    x = torch.tensor([0.5, 1.5, 3.0], dtype=DOUBLE)

    def outer(log_z, value):
        z = math.exp(log_z)
        inside = math.erf((value - z) / 0.5 / math.sqrt(2)) - math.erf((value - z - 2) / 0.5 / math.sqrt(2))
        return math.exp(-0.5 * (log_z / 0.5) ** 2) / (0.5 * math.sqrt(2 * math.pi)) * inside / 4

    exact = [math.log(quad(outer, -5, 5, args=(value,), epsabs=1e-11)[0]) for value in x.tolist()]
    assert (answer(bounded, x, Quadrature()).values - torch.tensor(exact, dtype=DOUBLE)).abs().max() < 1e-8


@pytest.mark.parametrize(
    ("estimator", "model", "message"),
    [
        (Quadrature(), LinearGaussian(4, 3), "3 dims in all.*AnnealedImportanceSampling"),
        (Quadrature(), mixed, "'y' is discrete.*Enumeration"),
        (
            Quadrature(),
            moving,
            "'b' .Uniform. has a support that is not the same for all",
        ),
        (Enumeration(), mixed, "'z' is continuous.*Quadrature"),
        (Enumeration(), counts, r"'y' \(Poisson\) has no finite support"),
    ],
)
def test_what_cannot_be_exact_is_refused_in_a_line(estimator, model, message):
    x = torch.zeros(3, 4) if isinstance(model, LinearGaussian) else torch.zeros(3)
    with pytest.raises(ValueError, match=message) as error:
        answer(model, x, estimator)
    assert "\n" not in str(error.value)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="points_per_dim must be a whole number of at least 30"):
        Quadrature(10)
    with pytest.raises(ValueError, match="at least 1"):
        Enumeration(0)
    with pytest.raises(ValueError, match="bandwidth must be a finite number above 0"):
        ParzenWindow(10, bandwidth=0.0)
    with pytest.raises(ValueError, match="no spread"):
        ParzenWindow(1)


def test_an_integral_with_a_step_and_its_error():
    """A half-plane of a Gaussian, cut along a slanted line: the error says at least what it is."""

    def log_f(points):
        log_density = -0.5 * points.square().sum(-1) - math.log(2 * math.pi)
        return log_density.masked_fill(points[..., 0] + 0.3 * points[..., 1] > 0, -math.inf)

    low, high = bounding_box(log_f, torch.full((1, 2), -3.0, dtype=DOUBLE), torch.full((1, 2), 3.0, dtype=DOUBLE))
    result = integrate(log_f, low, high, 13, 1e-4)
    actual = (result.log_value - math.log(0.5)).abs()
    assert actual < 1e-3
    assert actual <= result.error


@pytest.mark.parametrize("build", [truth.gaussian_mixture, truth.sigmoid_belief_net])
def test_enumeration_is_exact(build):
    known = build()
    result = answer(known.model, known.x, Enumeration(), batch_size=5)
    assert (result.values - known.log_prob).abs().max() < 1e-10
    assert result.mc_standard_error == 0
    assert result.num_samples == (4 if build is truth.gaussian_mixture else 1024)
    assert result.bound == "unbiased"


def zoo(x):
    """Each kind of finite site: binomial, one-hot, categorical with an event dim, and two coins in a nested plate."""
    with pyro.plate("data", len(x), dim=-2):
        n = pyro.sample("n", dist.Binomial(3, x.new_full((1,), 0.3)))
        hot = pyro.sample("hot", dist.OneHotCategorical(logits=x.new_tensor([0.0, 1.0, 2.0])))
        pair = pyro.sample("pair", dist.Categorical(logits=x.new_tensor([0.5, 0.0])).expand([2]).to_event(1))
        with pyro.plate("coins", 2, dim=-1):
            coin = pyro.sample("coin", dist.Bernoulli(x.new_full((), 0.2)))
            loc = n + hot[..., 1] + 0.5 * pair.sum(-1) + coin
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def test_enumeration_of_every_kind_of_site():
    x = torch.randn(4, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    result = answer(zoo, x, Enumeration())
    assert result.num_samples == 4 * 3 * 4 * 4
    terms = []
    hot_logits, pair_logits = (torch.tensor(v, dtype=DOUBLE).log_softmax(0) for v in ([0.0, 1.0, 2.0], [0.5, 0.0]))
    for n in range(4):
        for hot in range(3):
            for pair in ((0, 0), (0, 1), (1, 0), (1, 1)):
                log_prior = dist.Binomial(3, torch.tensor(0.3, dtype=DOUBLE)).log_prob(torch.tensor(n, dtype=DOUBLE))
                log_prior = log_prior + hot_logits[hot] + pair_logits[pair[0]] + pair_logits[pair[1]]
                base = n + (hot == 1) + 0.5 * sum(pair)
                heads, tails = (Normal(base + c, 1.0).log_prob(x) for c in (1, 0))
                terms.append(log_prior + torch.logaddexp(heads + math.log(0.2), tails + math.log(0.8)).sum(-1))
    assert (result.values - torch.stack(terms).logsumexp(0)).abs().max() < 1e-12
    with pytest.raises(ValueError, match="192 joint states, more than max_states=50"):
        answer(zoo, x, Enumeration(50))


def test_joint_states_are_the_posterior_and_differentiable():
    known = truth.gaussian_mixture()
    states = joint_states(known.model, known.x)
    assert states.latents["y"].shape == (4, len(known.x))
    exact = (known.model.logits + known.model.log_density(known.x)).softmax(-1).T
    assert (states.posterior - exact).abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(states.log_prob.sum(), known.model.logits)
    # d log p / d logits is the mean responsibility less the weight, summed over data.
    assert (gradient - (exact.sum(1) - len(known.x) * known.model.logits.softmax(0))).abs().max() < 1e-12


def blob(scale, dim):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(dim), 0.8 * scale).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.6 * scale).to_event(1), obs=x)

    return model


def test_parzen_window_is_the_smoothed_density():
    """The mean of the kernels is the density of N(0, (s^2 + h^2) I): their mean over seeds meets it within 5 SE."""
    x = torch.tensor([[0.0, 0.0], [1.0, -0.5], [2.0, 2.0]], dtype=DOUBLE)
    expected = MultivariateNormal(torch.zeros(2, dtype=DOUBLE), (1.5**2 + 0.4**2) * torch.eye(2, dtype=DOUBLE))
    runs = [answer(blob(1.5, 2), x, ParzenWindow(2000, 0.4), seed=seed) for seed in range(20)]
    ratios = torch.stack([(run.values - expected.log_prob(x)).exp() for run in runs])
    assert ((ratios.mean(0) - 1).abs() < 5 * ratios.std(0) / math.sqrt(20)).all()
    told = torch.stack([run.mc_standard_errors for run in runs]).square().mean(0).sqrt()
    assert (told / ratios.std(0) - 1).abs().max() < 0.6  # 20 runs know a deviation to 16 %
    assert {run.num_samples for run in runs} == {2000}
    assert runs[0].bound == "none"


def test_parzen_window_draws_once_whatever_the_batches():
    x = torch.randn(7, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    whole = answer(blob(1.0, 2), x, ParzenWindow(1234, 0.3))
    parts = answer(blob(1.0, 2), x, ParzenWindow(1234, 0.3), batch_size=3)
    torch.testing.assert_close(whole.values, parts.values)
    assert (whole.ess < 1234).all()


def test_parzen_window_chooses_a_bandwidth_that_serves_new_data():
    x = pvae.sample(blob(1.0, 3), 400, like=torch.zeros(1, 3, dtype=DOUBLE), seed=5)["x"]
    chosen = answer(blob(1.0, 3), x, ParzenWindow(3000)).mean
    fixed = [answer(blob(1.0, 3), x, ParzenWindow(3000, h)).mean for h in (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0)]
    assert chosen > max(fixed) - 0.02
    assert chosen > fixed[0] + 1


def test_parzen_window_joins_several_parts_and_refuses_conditions():
    def two(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 2), 0.5).to_event(1), obs=x)
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    def given(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 2), 0.5).to_event(1), obs=x)

    x, y = torch.zeros(2, 2, dtype=DOUBLE), torch.tensor([0.1, 0.5], dtype=DOUBLE)
    covariance = torch.ones(3, 3, dtype=DOUBLE) + (0.5**2 + 0.1**2) * torch.eye(3, dtype=DOUBLE)
    expected = MultivariateNormal(torch.zeros(3, dtype=DOUBLE), covariance).log_prob(torch.cat([x, y[:, None]], 1))
    result = answer(two, (x, y), ParzenWindow(200_000, 0.1))
    assert ((result.values - expected).abs() < 5 * result.mc_standard_errors).all()
    with pytest.raises(ValueError, match="part 1 of the batch is not drawn by the model"):
        answer(given, (x, y), ParzenWindow(10, 0.1))


def test_parzen_window_refuses_whole_numbers():
    def die(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Categorical(logits=torch.stack([z, -z], -1)), obs=x)

    with pytest.raises(ValueError, match="no kernel density"):
        answer(die, torch.tensor([0, 1]), ParzenWindow(10, 0.1))


def test_exact_estimators_agree_with_importance_sampling():
    known = truth.ring()
    sampled = pvae.log_marginal(known.model, known.guide, known.x, ImportanceSampling(20_000))
    exact = answer(known.model, known.x, Quadrature(100))
    assert ((sampled.values - exact.values).abs() < 5 * sampled.mc_standard_errors).all()
