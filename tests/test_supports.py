"""Where distributions live: angles, tensors as bounds, supports that move, and values outside, which weigh zero."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

import pvae
from pvae.estimators import (
    AnnealedImportanceSampling,
    DefensiveMixture,
    GuideMixture,
    ImportanceSampling,
    Jackknife,
    PriorSampling,
    Quadrature,
)
from pvae.guides import Delta, FullCovariance, MeanField, Mixed
from pvae.objectives import IWAE
from pvae.pair.supports import bijection, support_of

SIGMAS = 5
T = partial(torch.tensor, dtype=torch.float64)
X = T([[1.5, -0.3], [-2.2, 0.6], [0.4, 0.8]])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def error_of():
    def of(call):
        with pytest.raises(ValueError, match=r".") as error:
            call()
        assert "\n" not in str(error.value)
        return str(error.value)

    return of


def within_errors(found, truth):
    return bool(((found.values - truth).abs() < SIGMAS * found.mc_standard_errors + 1e-6).all())


# --- A density integrates to 1 over the support that is taken for its own

LINE = {
    "AffineBeta": lambda: dist.AffineBeta(T(2.0), T(3.0), T(-1.0), T(4.0)),
    "AsymmetricLaplace": lambda: dist.AsymmetricLaplace(0.0, 1.0, 2.0),
    "Beta": lambda: dist.Beta(2.0, 3.0),
    "Chi2": lambda: dist.Chi2(3.0),
    "ContinuousBernoulli": lambda: dist.ContinuousBernoulli(0.3),
    "Exponential": lambda: dist.Exponential(2.0),
    "FisherSnedecor": lambda: dist.FisherSnedecor(3.0, 5.0),
    "FoldedDistribution": lambda: dist.FoldedDistribution(dist.Normal(1.0, 1.0)),
    "Gamma": lambda: dist.Gamma(2.0, 1.0),
    "GeneralizedPareto": lambda: torch.distributions.GeneralizedPareto(T(1.0), T(2.0), T(0.3)),
    "GeneralizedPareto, bounded": lambda: torch.distributions.GeneralizedPareto(T(1.0), T(2.0), T(-0.3)),
    "Gumbel": lambda: dist.Gumbel(0.0, 1.0),
    "HalfCauchy": lambda: dist.HalfCauchy(1.0),
    "HalfNormal": lambda: dist.HalfNormal(1.0),
    "InverseGamma": lambda: dist.InverseGamma(3.0, 1.0),
    "Kumaraswamy": lambda: dist.Kumaraswamy(2.0, 3.0),
    "Laplace": lambda: dist.Laplace(0.0, 1.0),
    "LogNormal": lambda: dist.LogNormal(0.0, 1.0),
    "Logistic": lambda: dist.Logistic(0.0, 1.0),
    "MaskedDistribution": lambda: dist.Beta(2.0, 3.0).mask(True),
    "MixtureSameFamily": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.VonMises(T([0.0, 2.0]), T([1.0, 3.0]))
    ),
    "Normal": lambda: dist.Normal(0.0, 1.0),
    "Pareto": lambda: dist.Pareto(T(2.0), T(3.0)),
    "RelaxedBernoulli": lambda: dist.RelaxedBernoulli(T(0.7), logits=T(0.3)),
    "RelaxedBernoulliStraightThrough": lambda: dist.RelaxedBernoulliStraightThrough(T(0.7), logits=T(0.3)),
    "SkewLogistic": lambda: dist.SkewLogistic(0.0, 1.0, 2.0),
    "SoftAsymmetricLaplace": lambda: dist.SoftAsymmetricLaplace(0.0, 1.0, 2.0),
    "SoftLaplace": lambda: dist.SoftLaplace(0.0, 1.0),
    "StudentT": lambda: dist.StudentT(5.0),
    "TransformedDistribution": lambda: dist.TransformedDistribution(
        dist.Exponential(1.0), [dist.transforms.AffineTransform(1.0, -2.0)]
    ),
    "TransformedDistribution, of an angle": lambda: dist.TransformedDistribution(
        dist.VonMises(T(0.0), T(2.0)), [dist.transforms.AffineTransform(1.0, 0.5), dist.transforms.ExpTransform()]
    ),
    "TruncatedPolyaGamma": lambda: dist.TruncatedPolyaGamma(prototype=torch.ones(())),
    "Uniform": lambda: dist.Uniform(T(1.0), T(3.0)),
    "VonMises": lambda: dist.VonMises(T(0.3), T(2.0)),
    "Weibull": lambda: dist.Weibull(2.0, 3.0),
}
SPACE = {
    "AVFMultivariateNormal": lambda: dist.AVFMultivariateNormal(torch.zeros(2), torch.eye(2), torch.zeros(2, 1, 2)),
    "Dirichlet": lambda: dist.Dirichlet(T([1.0, 2.0, 3.0])),
    "ExpandedDistribution": lambda: dist.Gamma(2.0, 1.0).expand([2]).to_event(1).expand([]),
    "Independent": lambda: dist.Uniform(T([1.0, -1.0]), T([3.0, 0.0])).to_event(1),
    "LKJCholesky": lambda: dist.LKJCholesky(2, 1.5),
    "LogisticNormal": lambda: dist.LogisticNormal(torch.zeros(2), torch.ones(2)),
    "LowRankMultivariateNormal": lambda: dist.LowRankMultivariateNormal(
        torch.zeros(2), torch.ones(2, 1), torch.ones(2)
    ),
    "MixtureOfDiagNormals": lambda: dist.MixtureOfDiagNormals(torch.zeros(2, 2), torch.ones(2, 2), torch.zeros(2)),
    "MultivariateNormal": lambda: dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
    "MultivariateStudentT": lambda: dist.MultivariateStudentT(T(5.0), torch.zeros(2), torch.eye(2)),
    "OMTMultivariateNormal": lambda: dist.OMTMultivariateNormal(torch.zeros(2), torch.eye(2)),
    "RelaxedOneHotCategorical": lambda: dist.RelaxedOneHotCategorical(T(0.7), logits=torch.zeros(3)),
    "SineBivariateVonMises": lambda: dist.SineBivariateVonMises(T(0.0), T(1.0), T(1.0), T(2.0), correlation=T(0.5)),
    "SineSkewed": lambda: dist.SineSkewed(dist.VonMises(torch.zeros(2), torch.ones(2)).to_event(1), T([0.3, 0.2])),
}
UNREACHABLE = {
    "Delta": lambda: dist.Delta(T(1.0)),
    "Empirical": lambda: dist.Empirical(torch.randn(5), torch.zeros(5)),
    "GaussianScaleMixture": lambda: dist.GaussianScaleMixture(torch.ones(2), torch.zeros(2), torch.ones(2)),
    "MaskedMixture": lambda: dist.MaskedMixture(torch.tensor(True), dist.Exponential(1.0), dist.Normal(0.0, 1.0)),
    "MixtureSameFamily, of two intervals": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Uniform(T([0.0, 1.0]), T([1.0, 2.0]))
    ),
    "ProjectedNormal": lambda: dist.ProjectedNormal(torch.ones(2)),
    "VonMises3D": lambda: dist.VonMises3D(torch.ones(3)),
    "Wishart": lambda: dist.Wishart(T(4.0), torch.eye(2)),
    "ZeroInflatedDistribution": lambda: dist.ZeroInflatedDistribution(dist.Normal(0.0, 1.0), gate=T(0.2)),
    "CoalescentTimes": lambda: dist.CoalescentTimes(torch.zeros(3)),
}
# Bases of others; no density; what is drawn in one piece for a whole series; and discrete ones.
OTHERS = "Distribution TorchDistribution ExponentialFamily Rejector Unit ImproperUniform NanMaskedNormal"
OTHERS += " NanMaskedMultivariateNormal Stable StableWithLogProb Cauchy GeneralizedPareto"
OTHERS += (
    " CoalescentTimesWithRate DiscreteHMM GammaGaussianHMM GaussianHMM GaussianMRF GroupedNormalNormal IndependentHMM"
)
OTHERS += " LinearHMM LKJ LKJCorrCholesky MixtureOfDiagNormalsSharedCovariance RelaxedOneHotCategoricalStraightThrough"
OTHERS += " Bernoulli BetaBinomial Binomial Categorical DirichletMultinomial ExtendedBetaBinomial ExtendedBinomial"
OTHERS += " GammaPoisson Geometric LogNormalNegativeBinomial Multinomial NegativeBinomial OneHotCategorical"
OTHERS += " OneHotCategoricalStraightThrough OneOneMatching OneTwoMatching OrderedLogistic Poisson SpanningTree"
OTHERS += " ZeroInflatedNegativeBinomial ZeroInflatedPoisson"


def test_every_distribution_of_pyro_is_spoken_for():
    classes = [getattr(dist, name) for name in dir(dist)]
    names = {each.__name__ for each in classes if isinstance(each, type) and issubclass(each, dist.Distribution)}
    told = {name.partition(",")[0] for table in (LINE, SPACE, UNREACHABLE) for name in table} | set(OTHERS.split())
    assert names - told == set()


@pytest.mark.parametrize("name", LINE)
def test_a_density_integrates_to_one_on_a_line(name):
    fn = LINE[name]()
    transform = bijection("z", fn)
    u = torch.linspace(-150, 150, 300_001)
    z = transform(u)
    with pyro.validation_enabled(False):
        log_f = fn.log_prob(z) + transform.log_abs_det_jacobian(u, z)
    # Far out a value rounds to the end of its support, where a density may be no number.
    total = log_f.nan_to_num(nan=-math.inf, posinf=-math.inf).exp().sum() * 1e-3
    assert total == pytest.approx(1, abs=2e-5)


@pytest.mark.filterwarnings("ignore:Total skewness")
@pytest.mark.parametrize("name", SPACE)
def test_a_density_integrates_to_one_in_space(name):
    fn = SPACE[name]()
    transform = bijection("z", fn)
    shape = transform.inverse_shape(fn.event_shape)
    base = dist.StudentT(4.0, torch.zeros(shape), 1.5).to_event(len(shape))
    u = base.sample((20_000,))
    z = transform(u)
    with pyro.validation_enabled(False):
        log_det = transform.log_abs_det_jacobian(u, z).reshape(len(u), -1).sum(-1)
        weights = (fn.log_prob(z) + log_det - base.log_prob(u)).exp()
    assert weights.mean() == pytest.approx(1, abs=SIGMAS * weights.std().item() / len(u) ** 0.5)


@pytest.mark.parametrize("name", UNREACHABLE)
def test_a_support_out_of_reach_is_refused_in_a_line(name):
    fn = UNREACHABLE[name]()
    with pytest.raises(ValueError, match=rf"'z' \({type(fn).__name__}\) has the support .* guide of your own") as error:
        bijection("z", fn)
    assert "\n" not in str(error.value)
    assert "guide=None" in str(error.value)


def latent(prior, likelihood=None):
    """A model with one latent site, seen through a Gaussian of each of its two entries, or of it twice."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior if isinstance(prior, dist.Distribution) else prior(x))
            mean = z if z.shape[-1:] == (2,) and z.dim() > 1 else z[..., None].expand(*z.shape, 2)
            pyro.sample("x", (likelihood or (lambda mean: dist.Normal(mean, 0.7).to_event(1)))(mean), obs=x)

    return model


def wide(x):
    """A guide that draws on the whole line."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.full((len(x),), 0.8), 1.5))


@pytest.mark.filterwarnings("ignore:Singular sample")
@pytest.mark.parametrize("name", ["ProjectedNormal", "Wishart", "Delta"])
def test_who_needs_a_bijection_refuses_a_site_without_one(name, error_of):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", UNREACHABLE[name]())
            mean = z.reshape(*z.shape[: z.dim() - len(UNREACHABLE[name]().event_shape)], -1).mean(-1, keepdim=True)
            pyro.sample("x", dist.Normal(mean.expand(*mean.shape[:-1], 2), 1.0).to_event(1), obs=x)

    for call in (
        lambda: pvae.log_marginal(model, None, X, Quadrature()),
        lambda: pvae.log_marginal(model, None, X, AnnealedImportanceSampling(2, num_temperatures=2)),
        *(partial(guide, model, X) for guide in (MeanField, FullCovariance, Mixed, Delta)),
    ):
        assert f"'z' ({name}) has the support" in error_of(call)
    assert pvae.log_marginal(model, None, X, PriorSampling(50)).values.isfinite().all()


# --- Angles

ANGLE = dist.VonMises(T(0.0), T(0.5))
TURN = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)[:-1]


def on_circle(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", ANGLE)
        pyro.sample("x", dist.Normal(torch.stack([z.cos(), z.sin()], -1), 0.5).to_event(1), obs=x)


def on_torus(x):
    with pyro.plate("data", len(x)):
        fn = dist.SineBivariateVonMises(T(0.3), T(-1.0), T(1.5), T(2.0), correlation=T(0.5))
        z = pyro.sample("z", fn)
        pyro.sample("x", dist.Normal(torch.stack([z[..., 0].cos(), z[..., 1].sin()], -1), 0.5).to_event(1), obs=x)


def circle_truth():
    points = torch.stack([TURN.cos(), TURN.sin()], -1)[:, None]
    log_joint = ANGLE.log_prob(TURN)[:, None] + dist.Normal(points, 0.5).log_prob(X).sum(-1)
    return log_joint.logsumexp(0) + math.log(2 * math.pi / len(TURN))


def torus_truth():
    line = TURN[::50]
    z = torch.cartesian_prod(line, line)
    fn = dist.SineBivariateVonMises(T(0.3), T(-1.0), T(1.5), T(2.0), correlation=T(0.5))
    points = torch.stack([z[:, 0].cos(), z[:, 1].sin()], -1)[:, None]
    log_joint = fn.log_prob(z)[:, None] + dist.Normal(points, 0.5).log_prob(X).sum(-1)
    return log_joint.logsumexp(0) + 2 * math.log(2 * math.pi / len(line))


@pytest.mark.parametrize(("model", "truth", "points"), [(on_circle, circle_truth, 400), (on_torus, torus_truth, 60)])
def test_an_angle_is_integrated_over_one_turn(model, truth, points):
    exact = truth()
    quadrature = pvae.log_marginal(model, None, X, Quadrature(points)).values
    torch.testing.assert_close(quadrature, exact, rtol=0, atol=1e-8)
    for guide in (MeanField(model, X, hidden=(4,)), FullCovariance(model, X, hidden=(4,))):
        assert within_errors(pvae.log_marginal(model, guide, X, DefensiveMixture(4000)), exact)
    annealed = AnnealedImportanceSampling(100, num_temperatures=8, num_leapfrog=2, step_mode="eager")
    assert within_errors(pvae.log_marginal(model, None, X, annealed), exact)


def test_a_guide_of_an_angle_draws_within_one_turn():
    draws = pvae.log_weights(on_circle, MeanField(on_circle, X, hidden=(4,)), X, 500)
    assert draws.log_prior.isfinite().all()
    found = pvae.log_marginal(on_circle, wide, X, ImportanceSampling(20_000))
    assert within_errors(found, circle_truth())


def test_an_observed_angle_may_be_given_in_any_turn():
    model = latent(dist.Normal(0.0, 1.0), lambda mean: dist.VonMises(mean, 2.0).to_event(1))
    values = [pvae.log_marginal(model, None, X + turn, Quadrature()).values for turn in (0, 2 * math.pi, -20 * math.pi)]
    torch.testing.assert_close(values[1:], [values[0]] * 2, rtol=0, atol=1e-8)


# --- Bounds that are tensors

ONE_FOR_ALL = {
    "pareto": (lambda x: dist.Pareto(torch.ones(len(x)), T(3.0)), lambda x: dist.Pareto(1.0, 3.0)),
    "uniform": (
        lambda x: dist.Uniform(torch.full((len(x),), -1.0), torch.full((len(x),), 2.0)),
        lambda x: dist.Uniform(-1.0, 2.0),
    ),
    "shifted": (
        lambda x: dist.TransformedDistribution(
            dist.Exponential(torch.ones(len(x))), [dist.transforms.AffineTransform(torch.ones(len(x)), -2.0)]
        ),
        lambda x: dist.TransformedDistribution(dist.Exponential(1.0), [dist.transforms.AffineTransform(1.0, -2.0)]),
    ),
}


@pytest.mark.parametrize("name", ONE_FOR_ALL)
def test_an_expanded_bound_is_one_number(name):
    tensors, number = (latent(prior) for prior in ONE_FOR_ALL[name])
    exact = pvae.log_marginal(number, None, X, Quadrature()).values
    torch.testing.assert_close(pvae.log_marginal(tensors, None, X, Quadrature()).values, exact, rtol=0, atol=1e-12)
    guides = [MeanField(model, X, hidden=(4,)) for model in (tensors, number)]
    guides[0].load_state_dict(guides[1].state_dict())
    weights = []
    for model, guide in zip((tensors, number), guides, strict=True):
        torch.manual_seed(1)
        weights.append(pvae.log_weights(model, guide, X, 5).values)
    torch.testing.assert_close(*weights, rtol=1e-12, atol=1e-12)
    annealed = AnnealedImportanceSampling(100, num_temperatures=8, num_leapfrog=2, step_mode="eager")
    assert within_errors(pvae.log_marginal(tensors, None, X, annealed), exact)


def test_bounds_may_differ_by_entry_of_an_event():
    low, high = T([-1.0, 0.0]), T([1.0, 3.0])
    model = latent(lambda x: dist.Uniform(low, high).expand([len(x), 2]).to_event(1))
    ends = (dist.Normal(X, 0.7).cdf(high) - dist.Normal(X, 0.7).cdf(low)) / (high - low)
    exact = ends.log().sum(-1)
    torch.testing.assert_close(pvae.log_marginal(model, None, X, Quadrature(60)).values, exact, rtol=0, atol=1e-8)
    for guide in (MeanField, FullCovariance, partial(MeanField, family="beta")):
        assert within_errors(pvae.log_marginal(model, guide(model, X, hidden=(4,)), X, DefensiveMixture(4000)), exact)


def of_parents(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(T(1.0), 2.0))
        pyro.sample("w", dist.Uniform(0.0, z))
        pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 2), 1.0).to_event(1), obs=x)


def along_a_plate(x):
    with pyro.plate("data", len(x), dim=-2), pyro.plate("entries", 2, dim=-1):
        z = pyro.sample("z", dist.Uniform(T([-1.0, 0.0]), 3.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def by_datum(x):
    return dist.Uniform(-x[:, 0].abs() - 1, x[:, 0].abs() + 1)


@pytest.mark.parametrize(
    ("model", "site", "data"),
    [(of_parents, "w", X), (of_parents, "w", X[:1]), (along_a_plate, "z", X), (latent(by_datum), "z", X)],
)
def test_a_support_that_moves_is_refused_in_a_line(model, site, data, error_of):
    calls = [partial(guide, model, data) for guide in (MeanField, FullCovariance, Mixed)]
    for call in (*calls, lambda: pvae.log_marginal(model, None, data, Quadrature())):
        message = error_of(call)
        assert f"site '{site}' (Uniform) has a support that is not the same for all" in message
        assert "draw it on a fixed support and transform it" in message


@pytest.mark.parametrize("step_mode", ["eager", "traced"])
def test_annealed_chains_follow_a_support_that_moves(step_mode):
    def on_unit(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Uniform(-1.0, 1.0))
            z = u * (x[:, 0].abs() + 1)
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 2), 0.7).to_event(1), obs=x)

    exact = pvae.log_marginal(on_unit, None, X, Quadrature()).values
    annealed = AnnealedImportanceSampling(100, num_temperatures=8, num_leapfrog=2, step_mode=step_mode)
    assert within_errors(pvae.log_marginal(latent(by_datum), None, X, annealed), exact)


def test_quadrature_of_two_half_lines():
    """Mills: the integral of exp(-z) N(x; z, s^2) over z > 0 is exp(s^2 / 2 - x) Phi((x - s^2) / s)."""
    model = latent(dist.Exponential(torch.ones(2)).to_event(1))
    exact = (0.7**2 / 2 - X + dist.Normal(0.0, 1.0).cdf((X - 0.7**2) / 0.7).log()).sum(-1)
    torch.testing.assert_close(pvae.log_marginal(model, None, X, Quadrature(60)).values, exact, rtol=0, atol=1e-8)


# --- Values outside a support

A, B = 3.0, 1.0


def pareto_uniform(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Pareto(T(B), T(A)))
        pyro.sample("x", dist.Uniform(0.0, z[..., None].expand(*z.shape, 3)).to_event(1), obs=x)


SPANS = T([[0.5, 1.0, 2.0], [0.2, 0.1, 0.3], [4.0, 5.0, 0.1]])
LARGEST = SPANS.amax(1).clamp(min=B)
# p(x) = a b^a / ((n + a) m^(n + a)) with m the largest of the n data and b: DeGroot (1970), section 9.7.
SPANS_TRUTH = math.log(A / (3 + A)) - (3 + A) * LARGEST.log()


def pareto_posterior(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Pareto(LARGEST, T(3 + A)))


def thinned(x):
    with pyro.plate("data", len(x)):
        n = pyro.sample("z", dist.Poisson(4.0))
        pyro.sample("x", dist.Binomial(n, 0.4), obs=x)


def counts(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Poisson(torch.full((len(x),), 5.0)))


COUNTS = T([0.0, 1.0, 3.0, 6.0])


def as_scale(x):
    """The latent is a scale, which cannot be built from a draw below 0."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Exponential(1.0))
        pyro.sample("x", dist.Normal(0.0, z), obs=x)


def test_the_exact_guide_of_a_uniform_likelihood_has_no_variance():
    found = pvae.log_marginal(pareto_uniform, pareto_posterior, SPANS, ImportanceSampling(5))
    torch.testing.assert_close(found.values, SPANS_TRUTH, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        pvae.log_marginal(pareto_uniform, None, SPANS, Quadrature()).values, SPANS_TRUTH, rtol=0, atol=1e-6
    )
    assert pvae.check(pareto_uniform, pareto_posterior, SPANS) == []


def exp_of_gamma(x):
    """The same, the exponential taken in the model."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(2.0, 3.0)).exp()
        pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 2), 0.7).to_event(1), obs=x)


OUTSIDE = {
    "carried, where no value of the base leads": (
        latent(lambda x: dist.TransformedDistribution(dist.Gamma(2.0, 3.0), [dist.transforms.ExpTransform()])),
        wide,
        X,
        lambda: pvae.log_marginal(exp_of_gamma, None, X, Quadrature()).values,
    ),
    "uniform": (pareto_uniform, wide, SPANS, lambda: SPANS_TRUTH),
    "uniform, by the prior": (pareto_uniform, None, SPANS, lambda: SPANS_TRUTH),
    "thinning": (thinned, counts, COUNTS, lambda: dist.Poisson(1.6).log_prob(COUNTS)),
    "thinning, by the prior": (thinned, None, COUNTS, lambda: dist.Poisson(1.6).log_prob(COUNTS)),
    "scale": (as_scale, wide, X[:, 0], lambda: pvae.log_marginal(as_scale, None, X[:, 0], Quadrature()).values),
    "beta": (
        latent(lambda x: dist.Beta(2.0, 3.0)),
        wide,
        X,
        lambda: pvae.log_marginal(latent(lambda x: dist.Beta(2.0, 3.0)), None, X, Quadrature()).values,
    ),
}


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("step_mode", ["eager", "traced"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_an_impossible_latent_weighs_zero(name, step_mode, validates):
    model, guide, x, truth = OUTSIDE[name]
    with pyro.validation_enabled(validates):
        found = pvae.log_marginal(model, guide, x, ImportanceSampling(20_000, step_mode=step_mode))
    assert within_errors(found, truth())


@pytest.mark.parametrize("validates", [True, False])
def test_the_weight_of_each_draw_outside_is_zero(validates):
    with pyro.validation_enabled(validates):
        torch.manual_seed(3)
        weights = pvae.log_weights(as_scale, wide, X[:, 0], 200)
    torch.manual_seed(3)
    draws = 0.8 + 1.5 * torch.randn(200, len(X))
    assert ((draws < 0) == weights.values.isneginf()).all()
    inside = draws > 0
    torch.testing.assert_close(weights.log_prior[inside], -draws[inside])
    assert weights.log_likelihood.isfinite().all()
    assert weights.log_guide.isfinite().all()


@pytest.mark.parametrize("step_mode", ["eager", "traced"])
def test_the_gradient_is_that_of_the_draws_inside(step_mode):
    """With common noise, d/d loc of log mean w is its difference quotient: draws outside stay so under a small step."""
    loc = torch.nn.Parameter(T(0.8))

    def guide(x):
        pyro.module("guide", holder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(holder.loc.expand(len(x)), 1.5))

    holder = torch.nn.Module()
    holder.loc = loc

    def bound():
        torch.manual_seed(5)
        return IWAE(50).bound(as_scale, guide, (X[:, 0],)).mean()

    (slope,) = torch.autograd.grad(bound(), [loc])
    with torch.no_grad():
        loc += 1e-6
        above = bound()
        loc -= 2e-6
        below = bound()
    assert slope.item() == pytest.approx(((above - below) / 2e-6).item(), rel=1e-5)
    pvae.fit(as_scale, guide, X[:, 0], epochs=2, objective=IWAE(50), step_mode=step_mode, progress=False)
    assert loc.isfinite()


def exponential(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Exponential(torch.ones(len(x))))


def test_guides_of_several_supports_mix():
    exact = pvae.log_marginal(as_scale, None, X[:, 0], Quadrature()).values
    mixture = pvae.log_marginal(as_scale, wide, X[:, 0], GuideMixture([exponential], 20_000))
    assert within_errors(mixture, exact)
    assert within_errors(pvae.log_marginal(as_scale, wide, X[:, 0], DefensiveMixture(20_000)), exact)


# --- Data that no latent makes possible


def bounded_uniform(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(0.0, 5.0))
        pyro.sample("x", dist.Uniform(0.0, z), obs=x)


IMPOSSIBLE = T([1.0, 10.0])
# p(x) = log(5 / x) / 5 below 5.
POSSIBLE = math.log(math.log(5.0) / 5)


@pytest.mark.parametrize(
    "estimator",
    [
        ImportanceSampling(2000),
        ImportanceSampling(2000, smooth=True),
        PriorSampling(2000),
        DefensiveMixture(2000),
        Jackknife(2000, order=1),
        Jackknife(2000, order=2),
        AnnealedImportanceSampling(50, num_temperatures=6, num_leapfrog=1, step_mode="eager"),
    ],
)
def test_an_impossible_datum_has_a_log_p_of_minus_infinity(estimator):
    guide = MeanField(bounded_uniform, IMPOSSIBLE, hidden=(4,))
    found = pvae.log_marginal(bounded_uniform, guide, IMPOSSIBLE, estimator)
    assert found.values[1] == found.mean == -math.inf
    assert found.mc_standard_errors[1] == found.standard_error == math.inf
    assert found.ess[1] == 0
    assert abs(found.values[0] - POSSIBLE) < SIGMAS * found.mc_standard_errors[0]


def test_more_draws_for_an_impossible_datum_stay_at_minus_infinity():
    guide = MeanField(bounded_uniform, IMPOSSIBLE, hidden=(4,))
    found = pvae.log_marginal(
        bounded_uniform, guide, IMPOSSIBLE, ImportanceSampling(100), target_se=0.05, max_samples=4000
    )
    assert found.values[1] == -math.inf
    assert found.mc_standard_errors[1] == math.inf
    assert found.ess[1] == 0
    assert found.unfinished.tolist() == [1]
    assert abs(found.values[0] - POSSIBLE) < SIGMAS * found.mc_standard_errors[0]


def test_training_names_the_site_that_is_outside():
    guide = MeanField(bounded_uniform, IMPOSSIBLE, hidden=(4,))
    with pytest.raises(FloatingPointError, match="site 'x' has values outside the support of its Uniform"):
        pvae.fit(bounded_uniform, guide, IMPOSSIBLE, epochs=2, progress=False)

    def draws_anywhere(x):
        scale = pyro.param("scale", T(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), scale))

    with pytest.raises(FloatingPointError, match=r"site 'z' has values outside the support of its Exponential.*guide"):
        pvae.fit(as_scale, draws_anywhere, X[:, 0], epochs=2, progress=False)


# --- What `check` and `log_marginal` refuse


def by_totals(x, totals):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Beta(2.0, 2.0))
        pyro.sample("x", dist.Binomial(totals, z), obs=x)


def test_data_outside_a_support_are_named_by_number(error_of):
    model = latent(dist.Gamma(1.0, 1.0), lambda mean: dist.Exponential(mean).to_event(1))
    x = X.abs().clone()
    x[1, 1] = x[2, 0] = -1.0
    message = error_of(lambda: pvae.log_marginal(model, None, x, PriorSampling(10)))
    assert "site 'x': holds values outside the support of Exponential" in message
    assert "at datum 1 and 1 more" in message
    (finding,) = pvae.check(model, MeanField(model, X, hidden=(4,)), x)
    assert "at datum 1 and 1 more" in finding.found


def test_bounds_that_the_data_give_are_judged_and_those_that_latents_give_are_not(error_of):
    x, totals = T([1.0, 4.0, 2.0]), T([3.0, 3.0, 3.0])
    message = error_of(lambda: pvae.log_marginal(by_totals, None, (x, totals), PriorSampling(10)))
    assert "outside the support of Binomial" in message
    assert "at datum 1;" in message
    assert pvae.log_marginal(by_totals, None, (x.clamp(max=3), totals), PriorSampling(10)).values.isfinite().all()
    assert pvae.check(thinned, counts, COUNTS + 20, pvae.objectives.IWAE(2, gradient="score")) == []


def test_a_support_is_that_of_one_entry_of_the_mixture():
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Pareto(T([1.0, 1.0]), T([1.0, 3.0])))
    assert support_of(mixture).lower_bound == 1.0


def test_what_dist_mask_leaves_out_weighs_nothing_outside_of_its_support_either():
    far, x = torch.tensor(9.0, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    left_out = torch.tensor(False)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(far, 1.0))

    def observed(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(far, 1.0))
            pyro.sample("x", dist.Uniform(z, z + 1).mask(left_out), obs=x)

    def latent(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(-torch.ones_like(far), 1.0).mask(left_out))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    assert pvae.log_weights(observed, guide, x, 3).values.abs().max() == 0
    torch.manual_seed(0)
    found = pvae.log_weights(latent, guide, x, 1).values
    torch.manual_seed(0)
    z = dist.Normal(far, 1.0).expand([2]).sample()
    expected = dist.Normal(z, 1.0).log_prob(x) - dist.Normal(far, 1.0).log_prob(z)
    torch.testing.assert_close(found[0], expected)
