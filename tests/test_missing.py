"""Missing entries: densities of what is observed and imputations, against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.distributions import MultivariateNormal

import pvae
from pvae.data import missing
from pvae.estimators import ImportanceSampling
from pvae.estimators.weights.weighted import Picks, WeightedMean
from pvae.guides import Delta, Exact, FullCovariance, MeanField
from pvae.models import VAE, LinearGaussian
from pvae.models.likelihoods import Bernoulli, Categorical, Gaussian, observed_only
from pvae.nets import MLP
from pvae.objectives import IWAE
from tests.tables import GUIDES, OneHotPrior
from tests.test_clean_world import assert_unchanged, world

X_DIM, LATENT_DIM, NUM_DATA = 8, 3, 300


def mask(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6


@pytest.fixture
def truth():
    """A model, data drawn from it with entries missing, the data whole, and p(x_mis | x_obs) of each datum."""
    torch.manual_seed(0)
    model = LinearGaussian(X_DIM, LATENT_DIM).double()
    model.log_scale.data.fill_(math.log(0.7))
    model.loc.data.normal_()
    model.requires_grad_(False).eval()
    x = pvae.sample(model, NUM_DATA, like=torch.zeros(1, X_DIM, dtype=torch.float64))["x"]
    observed = mask(NUM_DATA, X_DIM)
    observed[0] = True
    observed[1] = False
    return model, missing(x, observed), x


def conditional(model, x, observed):
    """log p(x_obs), and the mean and covariance of all entries given x_obs, of one datum."""
    covariance = model.weight @ model.weight.T + math.exp(2 * model.log_scale) * torch.eye(X_DIM, dtype=torch.float64)
    if not observed.any():
        return torch.zeros((), dtype=torch.float64), model.loc, covariance
    block, residual = covariance[observed][:, observed], (x - model.loc)[observed]
    gain = torch.linalg.solve(block, covariance[observed]).T
    log_prob = MultivariateNormal(model.loc[observed], block).log_prob(x[observed])
    return log_prob, model.loc + gain @ residual, covariance - gain @ covariance[observed]


def conditionals(model, x, observed):
    return (torch.stack(part) for part in zip(*map(lambda *row: conditional(model, *row), x, observed), strict=True))


def trained(model, data):
    """A guide that is good and not perfect."""
    torch.manual_seed(1)
    guide = FullCovariance(model, tuple(part[:2] for part in data), hidden=(32,)).double()
    pvae.fit(model, guide, data, objective=IWAE(3), steps=400, lr=1e-2, train="guide", step_mode="traced")
    return guide


def test_the_marginal_and_the_posterior_of_what_is_observed(truth):
    model, data, x = truth
    log_prob, _, _ = conditionals(model, *data)
    torch.testing.assert_close(model.log_prob(*data), log_prob)
    torch.testing.assert_close(model.log_prob(x, torch.ones_like(data[1])), model.log_prob(x))
    z = torch.randn(NUM_DATA, LATENT_DIM, dtype=torch.float64)
    log_joint = dist.Normal(0, 1).log_prob(z).sum(-1)
    entries = dist.Normal(z @ model.weight.T + model.loc, model.log_scale.exp()).log_prob(x)
    log_joint = log_joint + (entries * data[1]).sum(-1)
    torch.testing.assert_close(log_joint - model.posterior(*data).log_prob(z), model.log_prob(*data))


@pytest.mark.parametrize("num_samples", [1, 7])
def test_every_weight_of_the_exact_guide_is_log_p_of_what_is_observed(truth, num_samples):
    model, data, _ = truth
    weights = pvae.log_weights(model, Exact(model), data, num_samples).values
    log_prob, _, _ = conditionals(model, *data)
    assert weights.shape == (num_samples, NUM_DATA)
    assert (weights - log_prob).abs().max() < 1e-10


def test_log_marginal_and_imputations_by_a_trained_guide_are_the_closed_forms(truth):
    model, data, _ = truth
    guide = trained(model, data)
    log_prob, mean, _ = conditionals(model, *data)
    answer = pvae.log_marginal(model, guide, data, ImportanceSampling(2000))
    assert answer.standard_error > 0
    assert 0 < answer.mc_standard_error < 0.01
    assert abs((answer.values - log_prob).mean()) < 5 * answer.mc_standard_error
    result = pvae.impute(model, guide, data, 2000, 20, seed=1)
    trusted = (result.khat < result.khat_threshold)[:, None] & ~data[1]
    assert trusted.double().mean() > 0.9 * (~data[1]).double().mean()
    assert ((result.mean - mean).abs() < 5 * result.standard_error)[trusted].all()
    assert result.ess.median() < 1990


def test_imputations_by_the_exact_guide(truth):
    model, data, x = truth
    hidden, num_samples = ~data[1], 500
    _, mean, covariance = conditionals(model, *data)
    result = pvae.impute(model, Exact(model), data, num_samples, 400, batch_size=64)
    assert result.draws.shape == (400, NUM_DATA, X_DIM)
    assert {part.dtype for part in (result.mean, result.draws, result.lower, result.upper)} == {torch.float64}
    scores = ((result.mean - mean) / result.standard_error)[hidden]
    assert scores.abs().max() < 5
    assert scores.square().mean() == pytest.approx(1, abs=5 * math.sqrt(2 / NUM_DATA))
    # All draws of all data, each measured in units of its own conditional distribution.
    covered = ((x >= result.lower) & (x <= result.upper))[hidden].double()
    share = torch.stack([part.mean() for part in covered.split(hidden.sum(1).tolist()) if len(part)])
    assert share.mean() == pytest.approx(0.9, abs=5 * share.std().item() / math.sqrt(len(share)))
    half_width = 1.6449 * covariance.diagonal(dim1=1, dim2=2).sqrt()
    ratio = ((result.upper - result.lower) / 2 / half_width)[hidden]
    assert ratio.mean() == pytest.approx(1, abs=0.02)


def test_draws_have_the_conditional_covariance(truth):
    model, data, _ = truth
    num = 20_000
    one = tuple(part[7:8] for part in data)
    hidden = ~one[1][0]
    assert 2 <= hidden.sum() < X_DIM
    _, mean, covariance = conditional(model, one[0][0], one[1][0])
    draws = pvae.impute(model, Exact(model), one, num, num).draws[:, 0, hidden]
    expected = covariance[hidden][:, hidden]
    variances = expected.diagonal()
    # z is picked with replacement from K draws, which doubles the variance of what z tells.
    error = (2 * (variances[:, None] * variances + expected.square()) / num).sqrt()
    assert ((draws.T.cov() - expected).abs() < 5 * error).all()
    assert ((draws.mean(0) - mean[hidden]).abs() < 5 * (2 * variances / num).sqrt()).all()


def test_what_is_observed_stays_and_what_is_hidden_is_not_read(truth):
    model, (x, observed), _ = truth
    result = pvae.impute(model, Exact(model), (x, observed), 50, 30)
    for values in (result.mean, result.lower, result.upper, *result.draws):
        assert torch.equal(values[observed], x[observed])
    assert (result.standard_error[observed] == 0).all()
    assert (result.lower < result.upper)[~observed].all()
    before = world()
    other = pvae.impute(model, Exact(model), (torch.where(observed, x, math.nan), observed), 50, 30)
    assert_unchanged(before)
    for name in ("mean", "draws", "lower", "upper", "standard_error", "ess"):
        assert torch.equal(getattr(result, name), getattr(other, name)), name
    assert not torch.equal(result.draws, pvae.impute(model, Exact(model), (x, observed), 50, 30, seed=1).draws)


class Family(nn.Module):
    """Independent entries of any distribution with two positive parameters."""

    num_parameters = 2

    def __init__(self, family):
        super().__init__()
        self.family = family

    def parameter_shape(self, x_shape):
        return (2, *x_shape)

    def forward(self, parameters, x_shape):
        first, second = nn.functional.softplus(parameters).unbind(-1 - len(x_shape))
        return self.family(first, second).to_event(len(x_shape))


LIKELIHOODS = {
    "Bernoulli": (Bernoulli, lambda u: u.round()),
    "Gaussian": (lambda: Gaussian("learned"), lambda u: u),
    "Categorical": (lambda: Categorical(3), lambda u: (3 * u).long()),
    "LogNormal": (lambda: Family(dist.LogNormal), lambda u: u + 0.1),
    "Gamma": (lambda: Family(dist.Gamma), lambda u: u + 0.1),
    "Beta": (lambda: Family(dist.Beta), lambda u: 0.1 + 0.8 * u),
    "NegativeBinomial": (
        lambda: Family(lambda n, logits: dist.NegativeBinomial(n, logits=logits)),
        lambda u: 3 * u // 1,
    ),
}


def vae(name):
    """A VAE with that likelihood, a guide that reads nothing, and data."""
    torch.manual_seed(0)
    likelihood = LIKELIHOODS[name][0]()
    model = VAE((2, 3), 2, likelihood=likelihood, decoder=MLP(2, (5,), likelihood.parameter_shape((2, 3))))
    u = torch.rand(6, 2, 3, generator=torch.Generator().manual_seed(0))
    return model, LIKELIHOODS[name][1](u)


def blind(x, observed=None):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def weigh(model, *batch):
    with pvae.pair.contexts.seeded(0):
        return pvae.log_weights(model, blind, batch, 3).log_likelihood


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_density_is_a_sum_over_observed_entries(name):
    model, x = vae(name)
    observed = mask(*x.shape)
    whole = weigh(model, x)
    torch.testing.assert_close(weigh(model, x, observed) + weigh(model, x, ~observed), whole)
    torch.testing.assert_close(weigh(model, x, torch.ones_like(x)), whole)
    assert (weigh(model, x, torch.zeros_like(x)) == 0).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_no_gradient_of_a_missing_entry(name):
    model, x = vae(name)
    observed = mask(*x.shape)
    gradients = []
    for junk in (x, torch.full_like(x, -7), torch.full_like(x, math.nan) if x.is_floating_point() else -x):
        log_likelihood = weigh(model, torch.where(observed, x, junk), observed)
        gradients.append(torch.autograd.grad(log_likelihood.sum(), [*model.parameters()]))
    for first, *others in zip(*gradients, strict=True):
        assert torch.isfinite(first).all()
        assert first.abs().max() > 0
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("name", ["Gaussian", "Categorical", "NegativeBinomial"])
def test_a_vae_learns_from_what_is_observed(name):
    model, x = vae(name)
    data = missing(x, mask(*x.shape))
    guide = MeanField(model, data, hidden=(5,))
    assert pvae.check(model, guide, data) == []
    result = pvae.fit(model, guide, data, objective=IWAE(4), steps=150, batch_size=6, lr=1e-2, step_mode="traced")
    assert result.step_mode == "traced"
    assert result.losses[-20:].mean() < result.losses[:20].mean()
    assert pvae.sample(model, 4)["x"].shape == pvae.sample(model, 4, like=data)["x"].shape == (4, 2, 3)
    assert pvae.encode(guide, data)["z"].shape == (6, 2)
    assert pvae.reconstruct(model, guide, data)["x"].shape == (6, 2, 3)


def test_a_reconstruction_of_categories_is_their_mode():
    model, x = vae("Categorical")
    model.decoder.layers[-1].bias.data.unflatten(0, (6, 3))[:, 2] = 50.0
    data = missing(x, mask(*x.shape))
    assert (pvae.reconstruct(model, blind, data)["x"] == 2).all()


def test_categories_have_imputations_and_no_mean():
    model, x = vae("Categorical")
    data = missing(x, mask(*x.shape))
    result = pvae.impute(model, MeanField(model, data, hidden=(5,)), data, 100, 300)
    assert result.mean[~data[1]].isnan().all()
    assert torch.equal(result.mean[data[1]], data[0][data[1]].float())
    assert result.draws.dtype == torch.int64
    assert set(result.draws.unique().tolist()) == {0, 1, 2}
    assert not math.isnan(result.lower.sum())


def test_a_distribution_without_a_mean_of_its_own_is_averaged_by_draws():
    class Shy(dist.Normal):
        @property
        def mean(self):
            raise NotImplementedError

    def model(x, observed):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            likelihood, x = observed_only(Shy(z[..., None].expand(*z.shape, 2), 0.5).to_event(1), x, observed)
            pyro.sample("x", likelihood, obs=x)

    x, observed = torch.tensor([[1.0, 0.0]]), torch.tensor([[True, False]])
    result = pvae.impute(model, None, (x, observed), 20_000, 20)
    assert result.mean[0, 1] == pytest.approx(1 / 1.25, abs=5 * result.standard_error[0, 1].item())
    assert 0.003 < result.standard_error[0, 1] < 0.03


def mixture(x, observed):
    """Two clusters, summed out; entries in a plate of their own, masked by Pyro's own handler."""
    with pyro.plate("data", len(x), dim=-1):
        y = pyro.sample("y", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        with pyro.plate("entries", 2, dim=-2), poutine.mask(mask=observed.T):
            loc = torch.where(y == 0, torch.tensor([[-1.0], [1.0]]), torch.tensor([[2.0], [-2.0]]))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x.T)


def test_latents_that_are_summed_out_and_entries_in_a_plate():
    x = torch.tensor([[0.3, 0.0], [0.0, -1.0], [2.0, 0.0]])
    observed = torch.tensor([[True, False], [False, True], [True, False]])
    means = torch.tensor([[-1.0, 1.0], [2.0, -2.0]])  # cluster, entry
    result = pvae.impute(mixture, None, (x, observed), 4000, 100)
    for row, (seen, hidden) in enumerate([(0, 1), (1, 0), (0, 1)]):
        responsibility = (torch.tensor([0.3, 0.7]).log() - 0.5 * (x[row, seen] - means[:, seen]).square()).softmax(0)
        expected = (responsibility * means[:, hidden]).sum().item()
        assert result.mean[row, hidden] == pytest.approx(expected, abs=5 * result.standard_error[row, hidden].item())
        error = (means[0] - means[1])[hidden].abs() * (responsibility.prod() / 4000).sqrt()
        assert result.standard_error[row, hidden].item() == pytest.approx(error.item(), rel=0.2)


@pytest.mark.parametrize("name", ["Auxiliary", "IAF"])
def test_any_guide_imputes_the_same_means(truth, name):
    model, data, _ = truth
    model.log_scale.data.fill_(math.log(5))  # so vague that a little training will do
    few = tuple(part[:20] for part in data)
    _, mean, _ = conditionals(model, *few)
    torch.manual_seed(2)
    guide = GUIDES[name](model, few).double()
    pvae.fit(model, guide, few, objective=IWAE(5), steps=150, lr=2e-2, train="guide", step_mode="traced")
    result = pvae.impute(model, guide, few, 4000, 20)
    trusted = (result.khat < result.khat_threshold)[:, None] & ~few[1]
    assert trusted.sum() > 0.8 * (~few[1]).sum()
    assert ((result.mean - mean).abs() < 5 * result.standard_error)[trusted].all()


def test_discrete_latents_against_their_sum():
    torch.manual_seed(0)
    model = VAE((4,), 3, prior=OneHotPrior(), decoder=MLP(3, (5,), 4))
    model.decoder.layers[-1].weight.data.mul_(4)
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).round()
    data = missing(x, mask(6, 4))
    result = pvae.impute(model, GUIDES["Categorical"](model, data), data, 4000, 20)
    means = model.decoder(torch.eye(3)).sigmoid()
    entries = dist.Bernoulli(means[:, None]).log_prob(data[0]) * data[1]
    posterior = (model.prior.logits[:, None] + entries.sum(-1)).softmax(0)
    error = 5 * result.standard_error + 1e-6
    assert ((result.mean - posterior.T @ means).abs() < error)[~data[1]].all()
    assert 1e-3 < result.standard_error.max() < 0.05


def test_one_of_several_observed_sites():
    def model(x, observed, other):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            likelihood, x = observed_only(dist.Normal(z, 1.0).to_event(1), x, observed)
            pyro.sample("x", likelihood, obs=x)
            pyro.sample("other", dist.Normal(z, 0.5).to_event(1), obs=other)

    data = torch.tensor([[1.0, 9.0]]), torch.tensor([[True, False]]), torch.tensor([[0.0, 2.0]])
    with pytest.raises(ValueError, match=r"got 2 of its size; set site= to one of \['other', 'x'\]"):
        pvae.impute(model, None, data)
    result = pvae.impute(model, None, data, 20_000, 20, site="x")
    assert result.mean[0, 1] == pytest.approx(2 * 4 / 5, abs=5 * result.standard_error[0, 1].item())
    assert 0.001 < result.standard_error[0, 1] < 0.02


def test_one_draw_has_no_error():
    model, data = linear()
    result = pvae.impute(model, Exact(model), data, 1, 1)
    assert torch.equal(result.standard_error.isnan(), ~data[1])
    assert torch.equal(result.lower, result.upper)
    assert torch.equal(result.lower, result.draws[0])


def test_chunks_of_weights_add_up():
    torch.manual_seed(0)
    log_weights = 1000 + 3 * torch.randn(1000, 4, dtype=torch.float64)
    values = 50 + torch.randn(1000, 4, 2, dtype=torch.float64)
    stream = WeightedMean()
    for chunk in zip(log_weights.split(170), values.split(170), strict=True):
        stream.update(*chunk)
    mean, error = stream.estimate()
    shares = log_weights.softmax(0)[..., None]
    expected = (shares * values).sum(0)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(error, (shares * (values - expected)).square().sum(0).sqrt())


def test_picks_are_in_proportion_to_the_weights():
    torch.manual_seed(0)
    num, weights = 40_000, torch.tensor([0.0, 0.0, 1.0, 5.0, 0.0, 2.0, 8.0, 0.5, 0.0, 0.0])
    picks = Picks(num)
    log_weights = torch.stack([weights.log(), 700 + weights.flip(0).log()], 1)
    for chunk, draws in zip(log_weights.split(2), torch.arange(10).expand(2, 10).T.split(2), strict=True):
        picks.update(chunk, {"k": draws})
    for column, expected in enumerate((weights, weights.flip(0))):
        expected = expected / expected.sum()
        found = picks.values["k"][:, column].bincount(minlength=10) / num
        assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / num).sqrt()).all()


def linear():
    return LinearGaussian(4, 2).eval().requires_grad_(False), missing(torch.tensor([[1.0, math.nan, 0.0, 2.0]]))


def unmasked(x, observed):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 4), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": torch.zeros(3, 4)}, ["tuple", "pvae.data.missing"]),
        ({"data": (torch.zeros(3, 4), torch.ones(3))}, ["shape of x", "(3, 4)", "(3,)"]),
        ({"num_samples": 0}, ["num_samples", "0"]),
        ({"num_imputations": 0}, ["num_imputations", "0"]),
        ({"level": 90}, ["level", "90", "0.9"]),
        ({"site": "y"}, ["'y'", "['x']"]),
        ({"model": unmasked, "guide": None}, ["'x'", "not observed", "observed_only"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_request_is_refused_in_one_line(change, words):
    model, data = linear()
    arguments = {"model": model, "guide": Exact(model), "data": data, **change}
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        pvae.impute(**arguments)
    assert all(word in str(error.value) for word in words)


def test_a_guide_of_points_is_refused():
    model, data = linear()
    with pytest.raises(ValueError, match="from a point"):
        pvae.impute(model, Delta(model, data), data)


def test_data_with_nan():
    x = torch.tensor([[1.0, math.nan], [math.nan, 2.0]])
    filled, observed = missing(x, torch.tensor([[1, 1], [1, 0]]))
    assert torch.equal(filled, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(observed, torch.tensor([[True, False], [False, False]]))
    with pytest.raises(ValueError, match=r"nan or inf.*pvae.data.missing"):
        pvae.fit(LinearGaussian(2, 1), None, x, epochs=1)
    with pytest.raises(ValueError, match=r"shape of x, \(2, 2\), got \(2,\)"):
        missing(x, torch.ones(2))


def test_entries_that_depend_on_each_other_cannot_be_masked():
    joint = dist.MultivariateNormal(torch.zeros(4), torch.eye(4))
    with pytest.raises(ValueError, match=r"MultivariateNormal are not; choose"):
        observed_only(joint, torch.zeros(3, 4), torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"shape of x, \(3, 4\), got \(4,\)"):
        observed_only(dist.Normal(torch.zeros(4), 1.0).to_event(1), torch.zeros(3, 4), torch.ones(4))
