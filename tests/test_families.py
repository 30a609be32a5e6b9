"""Families by name: draws, densities and gradients against scipy, and each at work in a guide."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats as st
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.distributions import constraints

import pvae
from pvae import truth
from pvae.estimators import DefensiveMixture, ImportanceSampling
from pvae.guides import MeanField
from pvae.guides.parts import inverse_cdf
from pvae.guides.parts.families import FAMILIES, table
from pvae.guides.parts.matching import at_site, num_outputs
from pvae.objectives import ELBO, IWAE
from pvae.pair.sites import LatentSite, Plate

DOUBLE = torch.float64

# For each family numbers of it, and the scipy distribution that they mean.
ROWS = {
    "normal": ((0.3, 1.2), lambda loc, scale: st.norm(loc, scale)),
    "laplace": ((0.3, 1.2), lambda loc, scale: st.laplace(loc, scale)),
    "logistic": ((-0.4, 0.7), lambda loc, scale: st.logistic(loc, scale)),
    "gumbel": ((-0.4, 0.7), lambda loc, scale: st.gumbel_r(loc, scale)),
    "student_t": ((0.3, 1.2, 4.5), lambda loc, scale, df: st.t(df, loc, scale)),
    "cauchy": ((0.3, 0.8), lambda loc, scale: st.cauchy(loc, scale)),
    "uniform": ((0.3, 1.2), lambda loc, half: st.uniform(loc - half, 2 * half)),
    "triangular": (
        (0.3, 0.5, 1.7),
        lambda loc, left, right: st.triang(left / (left + right), loc - left, left + right),
    ),
    "exponential": ((1.7,), lambda scale: st.expon(scale=scale)),
    "erlang": ((1.7,), lambda scale: st.erlang(2, scale=scale)),
    "rayleigh": ((1.7,), lambda scale: st.rayleigh(scale=scale)),
    "weibull": ((1.7, 1.4), lambda scale, shape: st.weibull_min(shape, scale=scale)),
    "gompertz": ((0.6, 1.3), lambda shape, scale: st.gompertz(shape, scale=scale)),
    "log_normal": ((0.3, 0.6), lambda loc, scale: st.lognorm(scale, scale=np.exp(loc))),
    "gamma": ((2.3, 3.1), lambda shape, mean: st.gamma(shape, scale=mean / shape)),
    "chi_squared": ((3.5,), lambda df: st.chi2(df)),
    "f": ((3.5, 7.5), lambda df1, df2: st.f(df1, df2)),
    "pareto": ((0.8, 4.5), lambda scale, alpha: st.pareto(alpha, scale=scale)),
    "reciprocal": ((0.4, 2.1), lambda low, log_ratio: st.loguniform(low, low * np.exp(log_ratio))),
    "beta": ((1.6, 2.3), lambda a, b: st.beta(a, b)),
}
SCALAR = pytest.mark.parametrize("name", ROWS)
CORNERS = (0.7, 1.5, 2.3)


def built(name, size=None):
    """The distribution and scipy's; with numbers that are leaves of shape (size,)."""
    values, reference = ROWS[name]
    shape = () if size is None else (size,)
    numbers = [torch.full(shape, value, dtype=DOUBLE, requires_grad=size is not None) for value in values]
    return FAMILIES[name].build(*numbers), reference(*values), numbers


def test_every_family_has_a_row_of_its_numbers():
    assert set(ROWS) | {"dirichlet", "elliptical"} == set(FAMILIES)
    assert FAMILIES["elliptical"] is FAMILIES["student_t"]
    for name, (values, _) in ROWS.items():
        assert len(values) == len(FAMILIES[name].numbers)
    for name, family in FAMILIES.items():
        assert f"| `{name}` |" in table()
        assert set(family.lives) <= {"real", "positive", "interval", "simplex"}
        assert family.pathwise in {"inverse CDF", "location-scale", "composition", "implicit"}
    assert table().count("\n") == len(FAMILIES) + 1


@SCALAR
def test_draws_follow_the_distribution(name):
    q, reference, _ = built(name)
    torch.manual_seed(3)
    assert st.kstest(q.rsample((4000,)).numpy(), reference.cdf).pvalue > 1e-4


@SCALAR
def test_log_prob_is_that_of_scipy_into_the_tails(name):
    q, reference, _ = built(name)
    u = np.array([1e-12, 1e-6, 1e-3, 0.1, 0.3, 0.5, 0.7, 0.9])
    z = np.concatenate([reference.ppf(u), reference.isf(u)])
    found = q.log_prob(torch.from_numpy(z)).numpy()
    np.testing.assert_allclose(found, reference.logpdf(z), rtol=1e-9, atol=1e-6)


@SCALAR
def test_density_integrates_to_1(name):
    q, reference, _ = built(name)
    low, high = reference.support()
    x = torch.linspace(-34, 34, 100_001, dtype=DOUBLE, requires_grad=True)
    if np.isfinite(high):
        z = low + (high - low) * x.sigmoid()
    elif np.isfinite(low):
        z = low + x.exp()
    else:
        z = x.sinh()
    (slope,) = torch.autograd.grad(z.sum(), x)
    inside = (z > low) & (z < high)
    density = q.log_prob(z.detach()[inside]).exp() * slope[inside]
    assert density.sum().item() * (x[1] - x[0]).item() == pytest.approx(1, abs=1e-6)


def moment(reference, values, f):
    """E f(z) by Gauss-Legendre over the quantile function, or the closed form of the mean."""
    if f is None:
        return reference(*values).mean()
    nodes, weights = np.polynomial.legendre.leggauss(600)
    return 0.5 * weights @ f(torch.from_numpy(reference(*values).ppf(0.5 + 0.5 * nodes))).numpy()


def slope_of_moment(name, index, f):
    values, reference = ROWS[name]
    step = 1e-4
    ahead, behind = (
        moment(reference, [value + sign * step * (i == index) for i, value in enumerate(values)], f) for sign in (1, -1)
    )
    return (ahead - behind) / (2 * step)


BOUNDED = {"real": torch.atan, "positive": lambda z: z / (1 + z), "interval": torch.square}


# A Cauchy variable has no mean.
@pytest.mark.parametrize(
    ("name", "what"),
    [(name, what) for name in ROWS for what in ("mean", "bounded") if (name, what) != ("cauchy", "mean")],
)
def test_pathwise_gradient_is_the_slope_of_the_moment(name, what):
    f = None if what == "mean" else BOUNDED[FAMILIES[name].lives[0]]
    size = 20_000
    q, _, numbers = built(name, size)
    torch.manual_seed(4)
    z = q.rsample()
    (z if f is None else f(z)).sum().backward()
    for index, number in enumerate(numbers):
        expected = slope_of_moment(name, index, f)
        error = number.grad.std().item() / np.sqrt(size)
        # A location has a gradient without scatter.
        assert abs(number.grad.mean().item() - expected) < 5 * error + 1e-5, FAMILIES[name].numbers[index].name
    assert any(number.grad.abs().max() > 0 for number in numbers)


def test_dirichlet_against_scipy():
    size = 20_000
    concentration = torch.tensor(CORNERS, dtype=DOUBLE).repeat(size, 1).requires_grad_()
    torch.manual_seed(5)
    z = FAMILIES["dirichlet"].build(concentration).rsample()
    total = sum(CORNERS)
    for corner, a in enumerate(CORNERS):
        assert st.kstest(z[:4000, corner].detach().numpy(), st.beta(a, total - a).cdf).pvalue > 1e-4
    q, few = FAMILIES["dirichlet"].build(concentration[0].detach()), z[:100].detach()
    np.testing.assert_allclose(q.log_prob(few).numpy(), st.dirichlet(CORNERS).logpdf(few.numpy().T), atol=1e-6)
    # E z_0 = a_0 / A, and its derivatives by every a.
    (gradient,) = torch.autograd.grad(z[:, 0].sum(), concentration)
    for corner, a in enumerate(CORNERS):
        expected = ((total - a) if corner == 0 else -CORNERS[0]) / total**2
        error = gradient[:, corner].std().item() / np.sqrt(size)
        assert abs(gradient[:, corner].mean().item() - expected) < 5 * error


def test_dirichlet_integrates_to_1():
    # By stick-breaking of two sigmoids, whose Jacobian is that of the simplex.
    x = torch.linspace(-30, 30, 801, dtype=DOUBLE)
    bijection = torch.distributions.biject_to(constraints.simplex)
    free = torch.cartesian_prod(x, x)
    z = bijection(free)
    log_density = FAMILIES["dirichlet"].build(torch.tensor(CORNERS, dtype=DOUBLE)).log_prob(z)
    total = (log_density + bijection.log_abs_det_jacobian(free, z)).exp().sum().item() * (x[1] - x[0]).item() ** 2
    assert total == pytest.approx(1, abs=1e-6)


def number(value, dtype=DOUBLE):
    return torch.tensor(value, dtype=dtype)


QUANTILES = {
    "gompertz": (inverse_cdf.gompertz, (0.6, 1.3)),
    "logistic": (inverse_cdf.logistic, (-0.4, 0.7)),
    "pareto": (inverse_cdf.pareto, (0.8, 4.5)),
    "rayleigh": (inverse_cdf.rayleigh, (1.7,)),
    "reciprocal": (inverse_cdf.reciprocal, (0.4, 3.0)),
    "triangular": (inverse_cdf.triangular, (-0.2, 0.3, 2.0)),
    "uniform": (inverse_cdf.uniform, (-0.9, 1.5)),
}


@pytest.mark.parametrize("name", QUANTILES)
def test_quantile_is_a_bijection_with_its_jacobian(name):
    make, values = QUANTILES[name]
    (quantile,) = make(*map(number, values)).transforms
    u = torch.linspace(1e-6, 1 - 1e-6, 501, dtype=DOUBLE)
    z = quantile(u)
    assert (quantile.inv(z) - u).abs().max() < 1e-8
    assert (z.diff() > 0).all()
    log_slope = jacobian(quantile, u).diagonal().log()
    assert (quantile.log_abs_det_jacobian(u, z) - log_slope).abs().max() < 1e-8


@pytest.mark.parametrize("name", QUANTILES)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_quantile_is_safe_at_the_ends(name, dtype):
    make, values = QUANTILES[name]
    numbers = [number(value, dtype).requires_grad_() for value in values]
    q = make(*numbers)
    (quantile,) = q.transforms
    limits = torch.finfo(dtype)
    u = torch.tensor([0.0, limits.tiny, limits.eps, 0.5, 1 - limits.eps, 1 - limits.eps / 2, 1.0], dtype=dtype)
    z = quantile(u)
    log_prob = q.log_prob(z)
    (z.sum() + log_prob.sum()).backward()
    assert z.dtype == dtype
    assert z.isfinite().all()
    assert log_prob.isfinite().all()
    assert all(each.grad.isfinite() for each in numbers)
    if name != "logistic":
        low, high = quantile.low.item(), quantile.high.item()
        outside = torch.tensor([low - 0.5, high + 0.5 if np.isfinite(high) else low - 1], dtype=dtype)
        assert (q.log_prob(outside) == -torch.inf).all()


SUPPORTS = {
    "real": constraints.real,
    "positive": constraints.positive,
    "above 3": constraints.greater_than(3.0),
    "unit interval": constraints.unit_interval,
    "interval": constraints.interval(-3.0, 7.0),
    "simplex": constraints.simplex,
}
KINDS = {"above 3": "positive", "unit interval": "interval"}
PLACED = [
    (name, where)
    for name, family in FAMILIES.items()
    for where in SUPPORTS
    if family.carried or KINDS.get(where, where) in family.lives
]


def site_on(where, size=3):
    support = SUPPORTS[where]
    support = support if where == "simplex" else constraints.independent(support, 1)
    return LatentSite("z", torch.Size([size]), support, (), Plate("data", 500, -1))


# A Gaussian above 3 keeps the arithmetic it always had, by which its draws near that end lose their distance from it.
@pytest.mark.parametrize(("name", "where"), [cell for cell in PLACED if cell != ("normal", "above 3")])
def test_wild_numbers_give_draws_in_the_support_with_finite_densities(name, where):
    site, family = site_on(where), FAMILIES[name]
    torch.manual_seed(0)
    rows = (3 * torch.randn(500, num_outputs(site, family))).requires_grad_()
    q = at_site(site, family, rows, 1e-4)
    assert (q.batch_shape, q.event_shape) == ((500,), (3,))
    z = q.rsample()
    log_prob = q.log_prob(z)
    assert log_prob.isfinite().all()
    if where != "above 3":
        assert site.support.check(z).all()
    log_prob.sum().backward()
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize(("name", "where"), PLACED)
def test_density_of_a_placed_family_integrates_to_1(name, where):
    """By importance sampling from a heavy-tailed distribution carried to the support; 5 standard errors."""
    site, family = site_on(where, 2), FAMILIES[name]
    torch.manual_seed(1)
    q = at_site(site, family, 0.3 * torch.randn(1, num_outputs(site, family), dtype=DOUBLE), 1e-4)
    bijection = torch.distributions.biject_to(site.support)
    num_free = bijection.inverse_shape(site.event_shape).numel()
    proposal = dist.StudentT(number(1.5), 0.0, 2.0).expand([num_free]).to_event(1)
    free = proposal.sample((40_000,))
    z = bijection(free)
    # Where floats end, near corners and far out, the density is not asked for.
    safe = ((bijection.inv(z) - free).abs().amax(-1) < 1e-3) & (z.abs().amax(-1) < 1e13)
    log_det = bijection.log_abs_det_jacobian(free, z)
    log_weight = torch.where(safe, q.log_prob(torch.where(safe[:, None], z, z[safe][:1])) + log_det, -torch.inf)
    weights = (log_weight - proposal.log_prob(free)).exp()
    assert abs(weights.mean() - 1) < 5 * weights.std() / np.sqrt(len(weights))
    assert weights.std() < 20


class Decoder(nn.Module):
    """z from a prior, x | z Gaussian about an affine map of it."""

    def __init__(self, prior):
        super().__init__()
        self.prior, self.net = prior, nn.Linear(prior.event_shape.numel(), 4)

    def forward(self, x):
        pyro.module("decoder", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


PRIORS = {
    "real": dist.Normal(torch.zeros(2), 1.0).to_event(1),
    "positive": dist.Gamma(torch.tensor([2.0, 3.0]), 1.0).to_event(1),
    "interval": dist.Beta(torch.tensor([2.0, 1.5]), 2.0).to_event(1),
    "simplex": dist.Dirichlet(torch.tensor([2.0, 1.0, 1.5])),
}
# One of every way to draw at each run, the others at length.
EVERYDAY = {"beta", "cauchy", "dirichlet", "gamma", "laplace", "rayleigh", "student_t"}
AT_HOME = [
    pytest.param(name, kind, marks=() if name in EVERYDAY else pytest.mark.slow)
    for name, family in FAMILIES.items()
    if name != "elliptical"
    for kind in family.lives
]


@pytest.mark.parametrize(("name", "kind"), AT_HOME)
def test_a_small_pair_trains(name, kind):
    # The mean of a squared Cauchy draw is infinite, and so is the ELBO.
    objective = IWAE(3) if name == "cauchy" else ELBO(2)
    torch.manual_seed(0)
    model, x = Decoder(PRIORS[kind]), torch.randn(16, 4)
    guide = MeanField(model, x, hidden=(6,), family={"z": name})
    for step_mode in ("eager", "traced"):
        result = pvae.fit(
            model, guide, x, objective=objective, steps=25, batch_size=8, step_mode=step_mode, progress=False
        )
        assert result.step_mode == step_mode
        assert np.isfinite(np.asarray(result.losses)).all()
    assert not pvae.check(model, guide, x, objective)
    weights = pvae.log_weights(model, guide, x, 3).values
    assert weights.shape == (3, 16)
    assert weights.isfinite().all()
    (-objective.bound(model, guide, x).mean()).backward()
    for parameter in (*model.parameters(), *guide.parameters()):
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


class Several(nn.Module):
    """A rate, shares, an angle between -3 and 7, and a deviation per reading within the data plate; x is (B, 4)."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(5, 1)

    def forward(self, x):
        pyro.module("several", self)
        with pyro.plate("data", len(x), dim=-2):
            rate = pyro.sample("rate", dist.Gamma(torch.tensor(3.0), 1.0))
            mix = pyro.sample("mix", dist.Dirichlet(torch.ones(3)))
            angle = pyro.sample("angle", dist.Uniform(torch.tensor(-3.0), 7.0))
            features = torch.cat([rate[..., None], mix, angle[..., None]], -1)
            with pyro.plate("readings", 4, dim=-1):
                deviation = pyro.sample("deviation", dist.Normal(torch.tensor(0.0), 0.4))
                pyro.sample("x", dist.Normal(self.net(features)[..., 0] + deviation, 0.5), obs=x)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param("laplace", marks=pytest.mark.slow),
        {"rate": "gamma", "mix": "dirichlet", "angle": "beta", "deviation": "student_t"},
        pytest.param({"rate": "weibull", "mix": "logistic"}, marks=pytest.mark.slow),
    ],
    ids=["one for all", "one for each", "for some"],
)
def test_families_by_site_agree_on_log_p(family):
    torch.manual_seed(0)
    model, x = Several(), torch.randn(4, 4)
    guide = MeanField(model, x, hidden=(8,), family=family)
    pvae.fit(model, guide, x, objective=ELBO(4), steps=300, batch_size=4, lr=1e-2, train="guide", progress=False)
    found = pvae.log_marginal(model, guide, x, ImportanceSampling(8000))
    prior = pvae.log_marginal(model, None, x, pvae.estimators.PriorSampling(100_000), seed=1)
    error = (found.mc_standard_errors.square() + prior.mc_standard_errors.square()).sqrt()
    trusted = (found.khat < found.khat_threshold) & (prior.khat < prior.khat_threshold)
    assert trusted.any()
    assert ((found.values - prior.values).abs() < 5 * error)[trusted].all()


@pytest.mark.parametrize(
    ("build", "family"),
    [(truth.beta_bernoulli, "beta"), (truth.gamma_poisson, "gamma")],
    ids=["beta", "gamma"],
)
def test_the_conjugate_family_closes_the_gap(build, family):
    known = build()
    torch.manual_seed(0)
    guide = MeanField(known.model, known.x, hidden=(32,), family=family).double()
    options = {"steps": 500, "batch_size": 12, "lr": 2e-2, "schedule": "cosine", "progress": False}
    pvae.fit(known.model, guide, known.x, objective=ELBO(8), train="guide", **options)
    torch.manual_seed(1)
    with torch.no_grad():
        draws = ELBO(5000).bound(known.model, guide, known.x)
    gap = (known.log_prob - draws).mean()
    weights = pvae.log_weights(known.model, guide, known.x, 5000).values
    error = weights.std(0).mean() / np.sqrt(5000 * 12)
    assert -5 * error < gap < 0.02


def test_a_family_with_ends_is_a_bound_and_the_defensive_mixture_repairs_it():
    known = truth.linear_gaussian()
    torch.manual_seed(0)
    guide = MeanField(known.model, known.x, hidden=(32,), family="uniform").double()
    pvae.fit(known.model, guide, known.x, objective=ELBO(8), steps=400, batch_size=12, lr=1e-2, train="guide")
    short = pvae.log_marginal(known.model, guide, known.x, ImportanceSampling(20_000))
    # The mass that it leaves out is missing for good.
    assert (known.log_prob - short.values > 5 * short.mc_standard_errors).all()
    whole = pvae.log_marginal(known.model, guide, known.x, DefensiveMixture(20_000))
    trusted = whole.khat < whole.khat_threshold
    assert trusted.sum() >= 6
    assert ((whole.values - known.log_prob).abs() < 5 * whole.mc_standard_errors)[trusted].all()


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("gama", "unknown family 'gama'.*'gamma'"),
        ({"y": "gamma"}, "names site 'y', the model's latent sites are z; use"),
        ("dirichlet", "'dirichlet' lives on a simplex, site 'z' on the reals; use one of normal, laplace,"),
        ("gamma", "'gamma' lives on a half-line, site 'z' on the reals; use one of normal, laplace,"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(family, words):
    with pytest.raises(ValueError, match=words) as caught:
        MeanField(Decoder(PRIORS["real"]), torch.zeros(2, 4), family=family)
    assert "\n" not in str(caught.value)


def test_heavy_tails_stay_on_the_reals():
    with pytest.raises(ValueError, match=r"tails too heavy to be carried.*use one of.* exponential,.* gamma,"):
        MeanField(Decoder(PRIORS["positive"]), torch.zeros(2, 4), family="cauchy")


def test_the_default_is_the_gaussian():
    model, x = Decoder(PRIORS["positive"]), torch.randn(4, 4)
    weights = []
    for options in ({}, {"family": "normal"}, {"family": {}}):
        torch.manual_seed(1)
        guide = MeanField(model, x, hidden=(6,), **options)
        torch.manual_seed(2)
        weights.append(pvae.log_weights(model, guide, x, 3).values)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
