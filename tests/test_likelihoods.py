"""The likelihoods against scipy, sums and integrals, at every corner of their parameters."""

import math

import numpy as np
import pytest
import torch
from pyro.distributions import constraints
from scipy import integrate, special, stats

import pvae
from pvae.estimators import PriorSampling, bits_per_dim
from pvae.models import VAE, likelihoods
from pvae.models.likelihoods import (
    Beta,
    Columns,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Gaussian,
    Multinomial,
    NegativeBinomial,
    Poisson,
    StudentT,
    ZeroInflatedNegativeBinomial,
)
from pvae.runs.recipes import build, exported, recipe_for

KINDS = ("real", "binary", "count", ("categorical", 3), "real")

# Every likelihood, with the shape of a datum that it takes.
ALL = {
    "Bernoulli": (likelihoods.Bernoulli(), (2, 3)),
    "Beta": (Beta("learned"), (2, 3)),
    "Categorical": (likelihoods.Categorical(3), (2, 3)),
    "Columns": (Columns(KINDS), (5,)),
    "ContinuousBernoulli": (ContinuousBernoulli(), (2, 3)),
    "DiscretizedLogistic": (DiscretizedLogistic(), (2, 3)),
    "DiscretizedLogisticMixture": (DiscretizedLogisticMixture(3), (2, 3)),
    "Gaussian": (Gaussian("learned"), (2, 3)),
    "Multinomial": (Multinomial(20), (3,)),
    "NegativeBinomial": (NegativeBinomial(), (2, 3)),
    "Poisson": (Poisson(), (2, 3)),
    "StudentT": (StudentT("learned", "learned"), (2, 3)),
    "ZeroInflatedNegativeBinomial": (ZeroInflatedNegativeBinomial(), (2, 3)),
}


def softplus(raw):
    return np.logaddexp(0, raw)


def numbers(likelihood, shape, *lead, seed=0, dtype=torch.float64):
    """Parameters (*lead, *parameter_shape), standard normal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*lead, *likelihood.parameter_shape(shape), generator=generator, dtype=dtype)


def entries(likelihood, parameters, values):
    """Log probabilities (..., V) of V values of a datum of one entry, for parameters (..., num_parameters)."""
    raw = torch.as_tensor(parameters, dtype=torch.float64)
    shaped = raw if likelihood.num_parameters > 1 else raw.squeeze(-1)
    law = likelihood.double()(shaped.reshape(*raw.shape[:-1], 1, *likelihood.parameter_shape((1,))), (1,))
    return law.log_prob(torch.as_tensor(values, dtype=torch.float64).unsqueeze(-1)).detach()


GRID = [-6.0, -0.7, 0.0, 0.03, 2.0, 5.0]


def grid_of(num):
    """All combinations of GRID, (6^num, num)."""
    return np.stack(np.meshgrid(*[GRID] * num, indexing="ij"), -1).reshape(-1, num)


def negative_binomial(mean, r, x):
    return stats.nbinom.logpmf(x, r, r / (r + mean))


def truncated_exponential(rate, x):
    """Log density exp(rate x) on [0, 1], normalised."""
    size = np.where(rate == 0, 1.0, np.abs(rate))
    return np.where(rate == 0, 0.0, stats.truncexpon.logpdf(np.where(rate < 0, x, 1 - x), size, scale=1 / size))


def logistic_mass(loc, scale, values, num_values):
    """Log masses by high-precision differences of distribution functions, taken on the side where they are small."""
    half = 0.5 / (num_values - 1)
    above = np.where(values == 1, np.inf, (values + half - loc) / scale)
    below = np.where(values == 0, -np.inf, (values - half - loc) / scale)
    flip = below > 0
    above, below = np.where(flip, -below, above), np.where(flip, -above, below)
    return np.log(special.expit(above) - special.expit(below))


EXPECTED = {
    "Gaussian": (
        Gaussian("learned"),
        np.array([-30.0, -1.0, 0.2, 4.0]),
        lambda p, x: stats.norm.logpdf(x, p[:, :1], 1e-3 + softplus(p[:, 1:])),
    ),
    "Gaussian, fixed": (
        Gaussian(0.3),
        np.array([-30.0, -1.0, 0.2, 4.0]),
        lambda p, x: stats.norm.logpdf(x, p, 0.3),
    ),
    "Gaussian, shared": (
        Gaussian("shared", 0.5),
        np.array([-30.0, -1.0, 0.2, 4.0]),
        lambda p, x: stats.norm.logpdf(x, p, 1.5),
    ),
    "StudentT": (
        StudentT("learned", "learned"),
        np.array([-30.0, -1.0, 0.2, 4.0]),
        lambda p, x: stats.t.logpdf(x, 2 + softplus(p[:, 2:]), p[:, :1], 1e-3 + softplus(p[:, 1:2])),
    ),
    "StudentT, fixed df": (
        StudentT("shared", 1.0, x_shape=(1,)),
        np.array([-30.0, -1.0, 0.2, 4.0]),
        lambda p, x: stats.cauchy.logpdf(x, p, 1.001),
    ),
    "Beta": (
        Beta("learned"),
        np.array([1e-6, 0.1, 0.5, 0.97]),
        lambda p, x: stats.beta.logpdf(
            x,
            special.expit(p[:, :1]) / (1e-3 + softplus(p[:, 1:])),
            special.expit(-p[:, :1]) / (1e-3 + softplus(p[:, 1:])),
        ),
    ),
    "ContinuousBernoulli": (
        ContinuousBernoulli(),
        np.array([0.0, 0.1, 0.5, 1.0]),
        lambda p, x: truncated_exponential(p, x),
    ),
    "Poisson": (Poisson(), np.array([0, 1, 7, 300]), lambda p, x: stats.poisson.logpmf(x, np.exp(p))),
    "NegativeBinomial": (
        NegativeBinomial(),
        np.array([0, 1, 7, 300]),
        lambda p, x: negative_binomial(np.exp(p[:, :1]), 1e-3 + softplus(p[:, 1:]), x),
    ),
    "ZeroInflatedNegativeBinomial": (
        ZeroInflatedNegativeBinomial(),
        np.array([0, 1, 7, 300]),
        lambda p, x: np.logaddexp(
            np.where(x == 0, -softplus(-p[:, :1]), -np.inf),
            -softplus(p[:, :1]) + negative_binomial(np.exp(p[:, 1:2]), 1e-3 + softplus(p[:, 2:]), x),
        ),
    ),
    "DiscretizedLogistic": (
        DiscretizedLogistic(),
        np.arange(256) / 255,
        lambda p, x: logistic_mass(p[:, :1], 1e-4 + softplus(p[:, 1:]), x, 256),
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_log_probabilities_are_those_of_scipy(name):
    likelihood, values, expected = EXPECTED[name]
    parameters = grid_of(likelihood.num_parameters)
    with np.errstate(divide="ignore"):
        wanted = expected(parameters, values)
    found = entries(likelihood, parameters, values).numpy()
    # Differences of distribution functions have no digits left where the mass is least.
    told = wanted > -25 if name == "DiscretizedLogistic" else np.isfinite(wanted)
    assert told.mean() > 0.3
    np.testing.assert_allclose(found[told], wanted[told], rtol=1e-7, atol=1e-7)


def test_a_multinomial_scores_a_bag_given_its_own_size():
    logits = torch.tensor([[0.3, -1.0, 2.0], [5.0, 0.0, -5.0]], dtype=torch.float64)
    bags = [[0, 0, 0], [3, 0, 1], [40, 7, 300]]
    law = Multinomial(20)(logits.unsqueeze(1), (3,))
    found = law.log_prob(torch.tensor(bags, dtype=torch.float64))
    wanted = [[stats.multinomial.logpmf(x, sum(x), p) for x in bags] for p in special.softmax(logits.numpy(), -1)]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9, atol=1e-9)
    pairs = torch.cartesian_prod(*[torch.arange(5.0, dtype=torch.float64)] * 3)
    fours = pairs[pairs.sum(-1) == 4]
    total = law.log_prob(fours).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_values", [2, 17, 256])
def test_masses_on_a_grid_sum_to_one(num_values, dtype):
    values = torch.arange(num_values, dtype=dtype).div(num_values - 1).unsqueeze(-1)
    for likelihood in (DiscretizedLogistic(num_values), DiscretizedLogisticMixture(3, num_values)):
        likelihood.to(dtype)
        for size in (0.1, 1.0, 10.0):
            raw = size * numbers(likelihood, (1,), 50, 1, dtype=dtype)
            total = likelihood(raw, (1,)).log_prob(values).exp().sum(-1)
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


def test_a_mixture_on_a_grid_is_the_weighed_sum_of_its_parts():
    mixture = DiscretizedLogisticMixture(2, 9).double()
    raw = numbers(mixture, (1,), 4, 1)
    values = torch.arange(9, dtype=torch.float64).div(8).unsqueeze(-1)
    weights = raw[..., 0, :, :].softmax(-2)
    single = DiscretizedLogistic(9).double()
    parts = [
        single(torch.stack([raw[..., 1, c, :] + (c + 0.5) / 2, raw[..., 2, c, :]], -2), (1,)).log_prob(values).exp()
        for c in range(2)
    ]
    wanted = weights[..., 0, 0] * parts[0] + weights[..., 1, 0] * parts[1]
    torch.testing.assert_close(mixture(raw, (1,)).log_prob(values).exp(), wanted)


@pytest.mark.parametrize(
    ("likelihood", "low", "high"),
    [
        (ContinuousBernoulli(), 0, 1),
        (Beta(0.3), 0, 1),
        (StudentT(0.5, 2.0), -np.inf, np.inf),
        (Gaussian(0.5), -np.inf, np.inf),
    ],
    ids=lambda value: type(value).__name__,
)
def test_densities_integrate_to_one(likelihood, low, high):
    for loc in (-1.5, 0.0, 0.05, 1.0, 30.0 if isinstance(likelihood, ContinuousBernoulli) else 1.5):
        total, _ = integrate.quad(
            lambda x, loc=loc: entries(likelihood, [[loc]], [x]).exp().item(), low, high, limit=200
        )
        assert total == pytest.approx(1, abs=1e-5)


def test_the_normaliser_of_strong_logits_holds_in_single_precision():
    """torch's own is off by log(50 / 15.9) there."""
    logits = torch.tensor([-50.0, -20.0, 20.0, 50.0])
    found = ContinuousBernoulli()(logits.unsqueeze(-1), (1,)).log_prob((logits > 0).float().unsqueeze(-1))
    torch.testing.assert_close(found, logits.abs().log())


@pytest.mark.parametrize("mean", [0.5, 3.0])
@pytest.mark.parametrize(
    "likelihood",
    [Poisson(), NegativeBinomial(2.0), ZeroInflatedNegativeBinomial(2.0)],
    ids=lambda value: type(value).__name__,
)
def test_masses_of_counts_sum_to_one(likelihood, mean):
    raw = [[math.log(mean)]] if likelihood.num_parameters == 1 else [[-0.4, math.log(mean)]]
    assert entries(likelihood, raw, np.arange(400)).exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_the_mass_at_zero_of_a_zero_inflated_count():
    gate, mean, r = 0.3, 4.0, 1.7
    found = entries(ZeroInflatedNegativeBinomial(r), [[math.log(gate / (1 - gate)), math.log(mean)]], [0])
    assert found.exp().item() == pytest.approx(gate + (1 - gate) * (r / (r + mean)) ** r, rel=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_draws_are_in_the_support_and_average_to_the_mean(name):
    likelihood, shape = ALL[name]
    law = likelihood.double()(numbers(likelihood, shape, 3), shape)
    assert (law.batch_shape, law.event_shape) == ((3,), shape)
    torch.manual_seed(1)
    draws = law.sample((4000,)).double()
    assert draws.shape == (4000, 3, *shape)
    assert law.support.check(draws).all()
    assert torch.isfinite(law.log_prob(draws)).all()
    if name == "Categorical":
        return
    told = slice(None) if name != "Columns" else [0, 1, 2, 4]
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - law.mean).abs() < 5 * error + 1e-12)[..., told].all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_types_and_expansion(name, dtype):
    likelihood, shape = ALL[name]
    likelihood.to(dtype)
    law = likelihood(numbers(likelihood, shape, 4, 1, 3, dtype=dtype), shape)
    assert (law.batch_shape, law.event_shape) == ((4, 1, 3), shape)
    x = law.sample()
    wide = law.expand((2, 4, 5, 3))
    assert (wide.batch_shape, wide.event_shape) == ((2, 4, 5, 3), shape)
    found = wide.log_prob(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, law.log_prob(x).expand(2, 4, 5, 3))
    assert wide.sample().shape == (2, 4, 5, 3, *shape)
    assert law.expand_by((6,)).log_prob(x).shape == (6, 4, 1, 3)
    assert law.mask(torch.zeros(4, 1, 3, dtype=torch.bool)).log_prob(x).eq(0).all()


@pytest.mark.parametrize("name", [name for name in ALL if name != "Multinomial"])
def test_all_but_bags_score_each_entry_on_its_own(name):
    likelihood, shape = ALL[name]
    law = likelihood.double()(numbers(likelihood, shape, 3), shape)
    x = law.sample()
    each = law.base_dist.log_prob(x)
    assert each.shape == (3, *shape)
    torch.testing.assert_close(each.flatten(1).sum(1), law.log_prob(x))
    changed = x.flatten(1).clone()
    changed[:, 0] = law.sample().flatten(1)[:, 0]
    others = law.base_dist.log_prob(changed.reshape(x.shape)).flatten(1)[:, 1:]
    assert torch.equal(others, each.flatten(1)[:, 1:])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [-50.0, 0.0, 50.0])
def test_gradients_are_finite_at_extreme_parameters(name, size):
    likelihood, shape = ALL[name]
    likelihood.float()
    raw = torch.full((1, *likelihood.parameter_shape(shape)), size, requires_grad=True)
    values = (0.2, 0.4, 0.6, 1.0) if name.startswith("Disc") else (0.0, 1.0)
    values = (0.01, 0.99) if name == "Beta" else (-100.0, 100.0) if name in ("Gaussian", "StudentT") else values
    x = torch.stack([torch.full(shape, value) for value in values])
    value = likelihood(raw, shape).log_prob(x).sum()
    (gradient,) = torch.autograd.grad(value, raw)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["NegativeBinomial", "Poisson", "Columns", "ZeroInflatedNegativeBinomial"])
def test_a_decoder_that_ignores_z_gives_the_sum_of_log_masses(name):
    """log p(x) is then log p(x | z) for any z, entry by entry from scipy."""
    likelihood, _ = ALL[name]
    likelihood = Columns(KINDS) if name == "Columns" else likelihood
    model = VAE((5,), 2, likelihood=likelihood).double()
    raw = numbers(likelihood, (5,))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
        model.decoder.layers[-1].bias.copy_(raw.flatten())
    p = raw.numpy()
    x = np.array([[0.5, 1, 3, 2, -1], [-2, 0, 0, 0, 4]]) if name == "Columns" else np.array([[0, 1, 2, 3, 9]])
    if name == "Poisson":
        wanted = stats.poisson.logpmf(x, np.exp(p))
    elif name == "NegativeBinomial":
        wanted = negative_binomial(np.exp(p[0]), 1e-3 + softplus(p[1]), x)
    elif name == "ZeroInflatedNegativeBinomial":
        inflated = special.expit(p[0]) * (x == 0)
        wanted = np.log(
            inflated + special.expit(-p[0]) * np.exp(negative_binomial(np.exp(p[1]), 1e-3 + softplus(p[2]), x))
        )
    else:
        # Kind by kind: two real columns, the binary one, the count, the categories; learned numbers start at 1.
        wanted = np.stack(
            [
                stats.norm.logpdf(x[:, 0], p[0], 1.001),
                stats.bernoulli.logpmf(x[:, 1], special.expit(p[2])),
                negative_binomial(np.exp(p[3]), 1.001, x[:, 2]),
                special.log_softmax(p[4:])[[2, 0]],
                stats.norm.logpdf(x[:, 4], p[1], 1.001),
            ],
            -1,
        )
    guide = pvae.guides.MeanField(model, torch.as_tensor(x, dtype=torch.float64)).double()
    answer = pvae.log_marginal(model, guide, torch.as_tensor(x, dtype=torch.float64), PriorSampling(3))
    np.testing.assert_allclose(answer.values.numpy(), wanted.sum(-1), rtol=1e-7)


def test_a_shared_number_can_be_one_per_entry():
    per_entry = NegativeBinomial("shared", x_shape=(2, 3))
    assert [tuple(each.shape) for each in per_entry.parameters()] == [(2, 3)]
    assert per_entry.parameter_shape((2, 3)) == (2, 3)
    assert NegativeBinomial().parameter_shape((2, 3)) == (2, 2, 3)
    with torch.no_grad():
        per_entry.inverse_dispersion.unconstrained.copy_(torch.arange(6.0).reshape(2, 3))
    found = per_entry(torch.zeros(4, 2, 3), (2, 3)).base_dist.variance[0]
    torch.testing.assert_close(found, 1 + 1 / (1e-3 + torch.arange(6.0).exp().log1p()).reshape(2, 3))


def test_means_of_columns_hold_the_likeliest_category():
    law = Columns(KINDS)(torch.tensor([1.0, -2.0, 0.0, math.log(3), 0.0, 4.0, 0.0]), (5,))
    torch.testing.assert_close(law.mean, torch.tensor([1.0, 0.5, 3.0, 1.0, -2.0]))


def test_models_of_counts_give_counts_and_their_means():
    model = VAE((5,), 2, likelihood=Columns(KINDS))
    drawn = pvae.sample(model, 50, seed=3)["x"]
    assert set(drawn[:, 1].tolist()) <= {0.0, 1.0}
    assert set(drawn[:, 3].tolist()) <= {0.0, 1.0, 2.0}
    assert (drawn[:, 2] == drawn[:, 2].round()).all()
    assert (pvae.sample(model, 3, mean=True)["x"][:, 1] - 0.5).abs().max() < 0.5
    assert pvae.sample(VAE((7,), 2, likelihood=Multinomial(12)), 5)["x"].sum(-1).eq(12).all()


OUTSIDE = {
    "Beta": (Beta(), (1,), [0.0]),
    "DiscretizedLogistic": (DiscretizedLogistic(), (1,), [0.5]),
    "DiscretizedLogisticMixture": (DiscretizedLogisticMixture(), (1,), [1.1]),
    "Poisson": (Poisson(), (1,), [0.5]),
    "ZeroInflatedNegativeBinomial": (ZeroInflatedNegativeBinomial(), (1,), [-1.0]),
    "Multinomial": (Multinomial(), (2,), [0.5, 3.0]),
    "ContinuousBernoulli": (ContinuousBernoulli(), (1,), [1.5]),
    "binary column": (Columns(("binary", "real")), (2,), [0.5, 3.0]),
    "categorical column": (Columns((("categorical", 3), "real")), (2,), [3.0, 0.1]),
    "count column": (Columns(("real", "count")), (2,), [0.1, 0.1]),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_data_outside_the_support_are_refused(name):
    likelihood, shape, x = OUTSIDE[name]
    assert (
        likelihood(numbers(likelihood, shape, dtype=torch.float32), shape).support.check(torch.tensor([x])).sum() == 0
    )
    model = VAE(shape, 1, likelihood=likelihood.float())
    data = torch.tensor([x])
    with pytest.raises(ValueError, match="outside the support of"):
        pvae.log_marginal(model, pvae.guides.MeanField(model, data), data, PriorSampling(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian("learnt"), "unknown scale 'learnt': did you mean 'learned'?"),
        (lambda: Gaussian(-1.0), "scale must be a finite number above 0, got -1.0; try 1.0"),
        (lambda: Gaussian(floor=0.0), "floor must be a finite number above 0, got 0.0"),
        (lambda: StudentT(df="few"), "unknown df 'few': the choices are shared, learned"),
        (lambda: NegativeBinomial(0.0), "inverse_dispersion must be a finite number above 0, got 0.0"),
        (lambda: DiscretizedLogistic(1), "num_values must be a whole number of at least 2, got 1; try 256"),
        (lambda: DiscretizedLogisticMixture(0), "num_components must be a whole number of at least 1, got 0"),
        (lambda: DiscretizedLogisticMixture(floor=-1.0), "floor must be a finite number above 0, got -1.0"),
        (lambda: Multinomial(0), "total_count must be a whole number of at least 1, got 0"),
        (lambda: VAE((2, 3), 2, likelihood=Multinomial()), r"a vector of counts, got data of shape \(2, 3\); flatten"),
        (lambda: Columns(()), "columns must name the kind of each column, got \\(\\)"),
        (lambda: Columns(("integer",)), "each of columns must be 'real', 'binary', 'count' or .*got 'integer'"),
        (lambda: Columns((("categorical", 1),)), "must be a whole number of at least 2, got 1"),
        (lambda: VAE((3,), 2, likelihood=Columns(("real",))), r"names 1 columns, got data of shape \(3,\)"),
        (lambda: bits_per_dim(1.0, 0), "num_dims must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_options_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_bits_per_dim_of_a_uniform_law_are_its_bits():
    assert bits_per_dim(-12 * math.log(256), 12) == pytest.approx(8)
    torch.testing.assert_close(bits_per_dim(torch.tensor([-1.0, -2.0]), 2), torch.tensor([0.5, 1.0]) / math.log(2))


KIND_OF = {
    "bernoulli": "binary",
    "beta": "unit",
    "categorical": "categorical",
    "continuous_bernoulli": "unit",
    "discretized_logistic": "unit",
    "discretized_logistic_mixture": "unit",
    "gaussian": "real",
    "multinomial": "counts",
    "negative_binomial": "counts",
    "poisson": "counts",
    "student_t": "real",
    "zero_inflated_negative_binomial": "counts",
}


@pytest.mark.parametrize("name", exported("pvae.models.likelihoods"))
def test_each_can_be_built_from_its_name_and_the_data(name):
    kind = KIND_OF.get(name, "real")
    levels = torch.randint(1, 5, (40, 6), generator=torch.Generator().manual_seed(0))
    values = {"binary": levels % 2, "unit": levels / 8, "categorical": levels}.get(kind, levels.float())
    dataset = pvae.data.DataSet("rows", values, kind=kind)
    recipe = recipe_for(dataset, "vae", "mean_field", 2, (8,), name)
    if name == "columns":
        with pytest.raises(ValueError, match="Columns needs columns, which a name alone does not give"):
            build(recipe)
        return
    model, guide = build(recipe)
    found = pvae.log_weights(model, guide, dataset.train, 2).values
    assert found.shape == (2, 40)
    assert torch.isfinite(found).all()
    if "discretized" in name:
        assert model.likelihood.num_values == 9
    if name == "multinomial":
        assert model.likelihood.total_count == round(levels.sum(1).float().mean().item())


def test_counts_are_negative_binomial_by_default():
    dataset = pvae.data.DataSet("rows", torch.arange(12.0).reshape(4, 3), kind="counts")
    model, _ = build(recipe_for(dataset, "vae", "mean_field", 2, (8,)))
    assert isinstance(model.likelihood, NegativeBinomial)
    assert model.likelihood(torch.zeros(2, 3), (3,)).support.base_constraint is constraints.nonnegative_integer
