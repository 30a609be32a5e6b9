"""Diagnostics against closed forms: what they say of pairs whose every answer is known."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pvae
from pvae import diagnostics
from pvae.diagnostics import log_aggregate_posterior, pairwise_log_guide
from pvae.estimators import ImportanceSampling, PriorSampling
from pvae.guides import Delta, Exact, FullCovariance, MeanField
from pvae.models import LinearGaussian
from pvae.objectives import ELBO, IWAE
from tests.own_pairs import PAIRS

X_DIM, LATENT_DIM, NUM_DATA = 6, 3, 300


@pytest.fixture
def truth():
    """A model with a correlated posterior, and data drawn from it, by another seed than any estimate."""
    torch.manual_seed(0)
    model = LinearGaussian(X_DIM, LATENT_DIM).double()
    model.log_scale.data.fill_(math.log(0.7))
    model.loc.data.normal_()
    return model, pvae.sample(model, 2000, like=torch.zeros(1, X_DIM, dtype=torch.float64), seed=10)["x"]


def precision(model):
    noise = (2 * model.log_scale).exp()
    return (model.weight.T @ model.weight / noise + torch.eye(LATENT_DIM, dtype=torch.float64)).detach()


def best_mean_field(model, x, shift=0.0):
    """The best independent Gaussians, their means moved by `shift`."""
    guide = MeanField(model, x, encoder=nn.Identity()).double()
    exact = precision(model)
    matrix = torch.linalg.solve(exact, model.weight.T) / (2 * model.log_scale).exp()
    scale = exact.diagonal().rsqrt() - guide.min_scale
    with torch.no_grad():
        guide.encoder.head.weight[:LATENT_DIM] = matrix
        guide.encoder.head.bias[:LATENT_DIM] = -matrix @ model.loc + shift
        guide.encoder.head.weight[LATENT_DIM:] = 0
        guide.encoder.head.bias[LATENT_DIM:] = scale.expm1().log()
    return guide


def normal_pair(loc, scale):
    """p(z) = N(0, I), x | z ~ N(z, 1), q(z | x) = N(loc(x), scale), for z and x of one width."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x[0]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc(x), scale).expand(x.shape).to_event(1))

    return model, guide


# --- collapse


def test_a_guide_that_ignores_x_has_no_information_and_no_active_unit():
    x = torch.randn(400, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = diagnostics.collapse(*normal_pair(lambda x: 0.3 * torch.ones_like(x), 0.5), x)
    assert abs(found.mutual_information) < 1e-12
    assert found.num_active == 0
    torch.testing.assert_close(found.variances["z"], torch.zeros(4, dtype=torch.float64))
    kl = math.log(2) + 0.5 * (0.25 + 0.09) - 0.5
    torch.testing.assert_close(found.kl["z"], torch.full((4,), kl, dtype=torch.float64))
    assert found.marginal_kl == pytest.approx(4 * kl)
    assert found.verdict == "collapsed: 0 of 4 units active"


def test_separated_points_carry_log_n():
    x = 100.0 * torch.arange(64, dtype=torch.float64)[:, None]
    found = diagnostics.collapse(*normal_pair(lambda x: x, 1e-3), x, batch_size=10)
    assert found.mutual_information == pytest.approx(math.log(64), abs=1e-6)
    assert found.ceiling == math.log(64)
    assert found.num_active == 1
    assert found.verdict.startswith("1 of 1 units active; the mutual information is at its ceiling log 64 = 4.16")
    assert "raise num_data" in found.verdict


def test_information_of_the_exact_guide_is_its_closed_form(truth):
    model, x = truth
    found = diagnostics.collapse(model, Exact(model), x, num_data=2000, batch_size=500)
    expected = 0.5 * precision(model).logdet().item()
    assert expected > 1
    assert abs(found.mutual_information - expected) < 5 * found.mutual_information_error
    assert found.mutual_information_error < 0.05
    # The aggregate of exact posteriors is the prior.
    assert not found.per_dim["z"]
    error = math.hypot(found.mutual_information_error, found.kl_standard_errors["z"].item())
    assert abs(found.marginal_kl) < 5 * error
    # Var_x(E[z | x]) = I - the posterior covariance.
    variances = 1 - precision(model).inverse().diagonal()
    assert ((found.variances["z"] - variances).abs() < 5 * variances * math.sqrt(2 / 2000)).all()


def test_kl_is_told_apart_by_dimension_and_a_dead_unit_is_found(truth):
    model, x = truth
    guide = best_mean_field(model, x)
    with torch.no_grad():  # the prior itself in the last dimension
        guide.encoder.head.weight[LATENT_DIM - 1] = 0
        guide.encoder.head.bias[LATENT_DIM - 1] = 0
        guide.encoder.head.bias[-1] = math.log(math.expm1(1 - guide.min_scale))
    found = diagnostics.collapse(model, guide, x, num_data=1000)
    assert found.per_dim["z"]
    assert found.kl["z"][-1].item() == pytest.approx(0, abs=1e-12)
    assert found.active["z"].tolist() == [True, True, False]
    assert found.verdict == "2 of 3 units active"
    scale = precision(model).diagonal().rsqrt()[0]
    mean = found.variances["z"][0] * 0.999  # over N, not N - 1
    expected = 0.5 * (scale.square() + mean - 1) - scale.log()
    # The data are not centred exactly, so the means are not either.
    assert abs(found.kl["z"][0] - expected) < 5 * found.kl_standard_errors["z"][0]
    assert "KL of 'z' per dimension" in str(found)


def test_noise_of_estimated_means_is_no_activity():
    """LogNormal draws have a mean, but no closed form through a transform: K draws estimate it."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        base = dist.Normal(x.new_zeros(len(x), 2), 0.5).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(base, [dist.transforms.ExpTransform()]))

    x = torch.ones(500, 2)
    found = diagnostics.collapse(model, guide, x, num_samples=20)
    assert found.num_active == 0
    assert found.per_dim["z"]
    kl = math.log(2) + 0.5 * 0.25 - 0.5
    assert ((found.kl["z"] - kl).abs() < 5 * found.kl_standard_errors["z"] + 1e-6).all()


def test_pairwise_densities_are_those_of_each_datum_and_each_draw(truth):
    model, x = truth
    guide, z = FullCovariance(model, x).double(), torch.randn(7, LATENT_DIM, dtype=torch.float64)
    found = pairwise_log_guide(guide, {"z": z}, (x[:5],))
    assert found.shape == (7, 5)
    loc, triangle = guide.encoder(x[:5]).split([3, 6], -1)
    expected = dist.MultivariateNormal(loc, scale_tril=guide._factor(triangle)).log_prob(z[:, None])
    torch.testing.assert_close(found, expected)
    aggregate = log_aggregate_posterior(guide, {"z": z}, [(x[:3],), (x[3:5],)])
    torch.testing.assert_close(aggregate, expected.logsumexp(1) - math.log(5))
    assert torch.autograd.grad(aggregate.sum(), guide.encoder.head.weight)[0].abs().sum() > 0


@pytest.mark.parametrize("name", ["tutorial", "convolutional", "hierarchical", "nested_plate", "conditional"])
def test_collapse_takes_any_pair(name):
    pair = PAIRS[name]()
    found = diagnostics.collapse(pair.model, pair.guide, pair.batch, batch_size=5, num_samples=3)
    assert -5 * found.mutual_information_error < found.mutual_information < found.ceiling + 1e-6
    assert all((kl > -1e-6).all() or not found.per_dim[site] for site, kl in found.kl.items())
    assert set(found.summary()) >= {"num_active", "mutual_information", "ceiling", "verdict"}


def test_points_have_no_density(truth):
    model, x = truth
    with pytest.raises(ValueError, match="'z' from a point"):
        diagnostics.collapse(model, Delta(model, x).double(), x)
    with pytest.raises(ValueError, match="at least 2"):
        diagnostics.collapse(model, Exact(model), x[:1])


# --- inference gaps


def test_gaps_of_the_exact_guide_are_zero(truth):
    model, x = truth
    found = diagnostics.inference_gap(model, Exact(model), x[:50], num_samples=20, estimator=ImportanceSampling(50))
    assert found.approximation.values.abs().max() < 1e-10
    assert found.amortisation.values.abs().max() < 1e-10
    assert found.verdict == "no gap beyond the errors: the guide is as good as exact"
    assert (found.log_p.values - model.log_prob(x[:50])).abs().max() < 1e-10


def test_gaps_of_the_best_mean_field_are_its_closed_form(truth):
    model, x = truth
    x = x[:NUM_DATA]
    exact = precision(model)
    expected = 0.5 * (exact.diagonal().log().sum() - exact.logdet()).item()
    assert expected > 0.05
    guide = best_mean_field(model, x)
    before = {name: value.clone() for name, value in [*guide.named_parameters(), *model.named_parameters()]}
    found = diagnostics.inference_gap(model, guide, x, estimator=model.log_prob, local_steps=200, batch_size=NUM_DATA)
    assert found.bound == "exact"
    assert abs(found.approximation.mean - expected) < 5 * found.approximation.mc_standard_error + 2e-3
    assert found.amortisation.mean > -5 * found.amortisation.mc_standard_error
    assert abs(found.amortisation.mean) < 5 * found.amortisation.mc_standard_error + 2e-3
    assert found.verdict.startswith("the approximation gap is 100%")
    for name, value in [*guide.named_parameters(), *model.named_parameters()]:
        assert torch.equal(value, before[name])
        assert value.grad is None


def test_amortisation_gap_of_a_displaced_encoder_is_its_kl(truth):
    model, x = truth
    x = x[:NUM_DATA]
    shift = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    expected = 0.5 * (shift @ precision(model) @ shift).item()
    assert expected > 0.1
    guide = best_mean_field(model, x, shift)
    found = diagnostics.inference_gap(
        model, guide, x, estimator=[PriorSampling(50), ImportanceSampling(200)], local_steps=200, batch_size=NUM_DATA
    )
    assert found.bound == "lower"
    assert abs(found.amortisation.mean - expected) < 5 * found.amortisation.mc_standard_error + 2e-3
    assert found.amortisation.mc_standard_error < 0.01
    # The larger of both per datum would be 0.1 nats above log p(x).
    assert (found.log_p.values - model.log_prob(x).detach()).mean() < found.log_p.mc_standard_error
    total = found.log_p.mean - found.guide_bound.mean
    assert found.approximation.mean + found.amortisation.mean == pytest.approx(total, abs=1e-9)
    assert found.summary()["amortisation_gap"]["mean"] == found.amortisation.mean


def test_too_few_local_steps_are_told(truth):
    model, x = truth
    guide = best_mean_field(model, x, 3.0)
    found = diagnostics.inference_gap(
        model, guide, x[:50], estimator=model.log_prob, local_steps=30, lr=0.005, num_samples=20
    )
    assert found.rise.mean > 0.1
    assert "raise local_steps" in found.verdict


def test_a_guide_of_ones_own_is_freed_by_a_function():
    model, guide = normal_pair(lambda x: pyro.param("slope", torch.tensor(0.0)) * x, 0.5**0.5)

    def local_guide(x):
        start = torch.zeros_like(x)
        return normal_pair(lambda x: pyro.param("free", start).repeat(len(x) // len(start), 1), 0.5**0.5)[1]

    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    arguments = {"estimator": ImportanceSampling(100), "local_steps": 200, "lr": 0.1}
    with pytest.raises(ValueError, match="local_guide="):
        diagnostics.inference_gap(model, guide, x, **arguments)
    found = diagnostics.inference_gap(model, guide, x, local_guide=local_guide, **arguments)
    # The guide at 0 misses the posterior mean x / 2 at precision 2: the gap is x^2 / 4 in every dimension.
    expected = (x.square() / 4).sum(1)
    score = (found.amortisation.values - expected) / (found.amortisation.mc_standard_errors + 2e-3)
    assert score.abs().max() < 5
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize(
    ("estimators", "message"),
    [
        ([], "several lower bounds"),
        ([ImportanceSampling(3), ImportanceSampling(3, smooth=True)], r"several lower bounds, got \['lower', 'none'\]"),
        ([ImportanceSampling(3), object()], "estimator must be one of pvae.estimators, built, got <object"),
    ],
)
def test_only_lower_bounds_can_be_compared(truth, estimators, message):
    model, x = truth
    with pytest.raises(ValueError, match=message):
        diagnostics.inference_gap(model, Exact(model), x[:5], estimator=estimators)


# --- calibration


def coverage(level, ratio, shift=0.0):
    """Chance that N(0, 1) falls in the central interval of N(shift, ratio^2)."""
    normal = torch.distributions.Normal(0.0, 1.0)
    half = ratio * normal.icdf(torch.tensor((1 + level) / 2))
    return (normal.cdf(shift + half) - normal.cdf(shift - half)).item()


def test_the_exact_guide_is_calibrated(truth):
    model, x = truth
    found = diagnostics.calibration(model, Exact(model), x[:10])
    assert found.ranks["z"].shape == (1000, LATENT_DIM)
    assert (found.p_values["z"] > 1e-4).all()
    errors = found.coverage_errors[:, None]
    assert ((found.coverage["z"] - torch.tensor(found.levels)[:, None]).abs() < 5 * errors).all()
    assert found.verdict.startswith("calibrated in all 3 dimensions")


@pytest.mark.parametrize(
    ("ratio", "shift", "verdict"),
    [
        (0.5, 0.0, "too narrow"),
        pytest.param(2.0, 0.0, "too wide", marks=pytest.mark.slow),
        pytest.param(1.0, 0.4, "biased", marks=pytest.mark.slow),
    ],
)
def test_coverage_of_a_wrong_guide_is_its_closed_form(ratio, shift, verdict):
    sd = 0.5**0.5  # of the posterior N(x / 2, 1 / 2)
    pair = normal_pair(lambda x: x / 2 + shift * sd, ratio * sd)
    found = diagnostics.calibration(*pair, torch.zeros(3, 1), num_simulations=2000, seed=1)
    for level, share in zip(found.levels, found.coverage["z"][:, 0].tolist(), strict=True):
        expected = coverage(level, ratio, shift)
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / 2000) + 1e-3
    assert found.p_values["z"].item() < 1e-6
    assert found.verdict == f"{verdict} in 1 of 1 dimensions"
    assert verdict in str(found)


def test_p_values_of_calibrated_guides_are_uniform():
    pair = normal_pair(lambda x: x / 2, 0.5**0.5)
    found = diagnostics.calibration(*pair, torch.zeros(1, 400), num_simulations=200, num_samples=7, seed=2)
    p = found.p_values["z"]
    for quantile in (0.1, 0.5, 0.9):
        error = math.sqrt(quantile * (1 - quantile) / 400)
        assert abs((p < quantile).double().mean() - quantile) < 5 * error
    assert found.verdict.startswith("calibrated")


@pytest.mark.parametrize("name", ["tutorial", "convolutional", "hierarchical", "conditional"])
def test_calibration_takes_any_pair(name):
    pair = PAIRS[name]()
    found = diagnostics.calibration(pair.model, pair.guide, pair.batch, num_simulations=30, num_samples=5)
    assert all(len(ranks) == 30 and ranks.min() >= 0 and ranks.max() <= 5 for ranks in found.ranks.values())
    assert len(found.summary()["p_value"]) == len(found.ranks)


def test_the_worst_data_are_listed(truth):
    model, x = truth
    guide = best_mean_field(model, x)
    result = pvae.log_marginal(model, guide, x[:40], ImportanceSampling(200))
    found = diagnostics.khat_map(result, worst=5)
    assert found.fraction_untrusted == result.fraction_untrusted
    assert found.khat.tolist() == sorted(result.khat.tolist(), reverse=True)[:5]
    assert torch.equal(result.khat[found.index], found.khat)
    assert torch.equal(result.ess[found.index], found.ess)
    assert len(found.summary()["worst"]) == 5
    trusted = diagnostics.khat_map(pvae.log_marginal(model, Exact(model), x[:40], ImportanceSampling(200)))
    assert trusted.verdict == "every one of 40 data can be trusted"


# --- gradients


def gradient_pair():
    """p(z) = N(0, 1), x | z ~ N(z, 1), q = N(0.2, variance exp(-0.4)): its gradients are known."""
    loc = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
    return normal_pair(lambda x: pyro.param("loc", loc).expand(x.shape), math.exp(-0.2))


def x_at(num):
    return torch.full((num, 1), 1.3, dtype=torch.float64)


# d/d loc of the bound; the ELBO's is x - 2 loc, the others are known to the digits given.
@pytest.mark.parametrize(("objective", "expected"), [(ELBO(), 0.9), (IWAE(4), 0.1956), (IWAE(16), 0.0452)])
def test_mean_gradient_is_the_known_one(objective, expected):
    found = diagnostics.gradient_variance(objective, *gradient_pair(), x_at(2000))
    reference = {"loc": torch.tensor(expected, dtype=torch.float64)}
    assert abs(found.mean["loc"] - expected) < 5 * found.standard_errors["loc"]
    assert found.standard_errors["loc"] < 0.01
    again = diagnostics.gradient_variance(objective, *gradient_pair(), x_at(2000), reference=reference)
    assert again.bias["loc"] == found.mean["loc"] - expected
    assert found.groups["guide"].variance == pytest.approx(found.variances["loc"].item())


def test_sticking_the_landing_is_biased_and_dreg_is_not():
    stl = diagnostics.gradient_variance(IWAE(4, gradient="stl"), *gradient_pair(), x_at(2000), num_repeats=100)
    assert abs(stl.mean["loc"] - 0.7217) < 5 * stl.standard_errors["loc"] + 3e-4  # known with an error of its own
    dreg = diagnostics.gradient_variance(IWAE(4, gradient="dreg"), *gradient_pair(), x_at(2000), num_repeats=100)
    assert abs(dreg.mean["loc"] - 0.1956) < 5 * dreg.standard_errors["loc"] + 3e-4
    assert dreg.standard_errors["loc"] < 1e-3


def test_a_biased_gradient_is_called_biased():
    found = diagnostics.gradient_variance(ELBO(), *gradient_pair(), x_at(500), reference=IWAE(4))
    assert found.groups["guide"].bias == pytest.approx(0.9 - 0.1956, abs=5 * found.groups["guide"].bias_noise)
    assert "biased" in found.verdict
    same = diagnostics.gradient_variance(IWAE(4), *gradient_pair(), x_at(500), reference=IWAE(4))
    assert same.groups["guide"].bias < 5 * same.groups["guide"].bias_noise
    assert "biased" not in same.verdict


def test_variance_of_the_elbo_gradient_is_its_closed_form():
    """d/d loc of log p(x, z) - log q(z) at z = loc + scale e is x - 2 z, whose variance is 4 scale^2."""
    found = diagnostics.gradient_variance(ELBO(), *gradient_pair(), x_at(1), num_repeats=4000)
    group = found.groups["guide"]
    assert abs(group.variance - 4 * math.exp(-0.4)) < 5 * group.variance_error
    assert group.variance_error == pytest.approx(group.variance * math.sqrt(2 / 4000), rel=1)
    assert abs(group.snr - 0.9 / (2 * math.exp(-0.2))) < 5 * group.snr_error


def test_signal_of_the_encoder_fades_with_k():
    groups = [
        diagnostics.gradient_variance(IWAE(k), *gradient_pair(), x_at(400), num_repeats=200).groups["guide"]
        for k in (16, 64, 256)
    ]
    for small, large in itertools.pairwise(groups):
        ratio = small.snr / large.snr
        assert abs(ratio - 2) < 5 * ratio * math.hypot(small.snr_error / small.snr, large.snr_error / large.snr)
        assert ratio > 1.3


def test_signal_of_dreg_grows_with_k():
    small, large = (
        diagnostics.gradient_variance(IWAE(k, gradient="dreg"), *gradient_pair(), x_at(300)).groups["guide"]
        for k in (8, 32)
    )
    ratio = large.snr / small.snr
    assert abs(ratio - 2) < 5 * ratio * math.hypot(small.snr_error / small.snr, large.snr_error / large.snr)
    assert ratio > 1.3


def test_groups_and_the_pair_itself(truth):
    model, x = truth
    guide = MeanField(model, x).double()
    before = {name: value.clone() for name, value in [*guide.named_parameters(), *model.named_parameters()]}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = diagnostics.gradient_variance(ELBO(), model, guide, x[:20], num_repeats=20)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(found.groups) == {"guide", "model", *found.mean}
    assert found.mean["linear_gaussian$$$weight"].shape == model.weight.shape
    total = sum(found.groups[name].variance for name in found.mean)
    assert found.groups["guide"].variance + found.groups["model"].variance == pytest.approx(total)
    for name, value in [*guide.named_parameters(), *model.named_parameters()]:
        assert torch.equal(value, before[name])
        assert value.grad is None
    assert "snr" in str(found)
    with pytest.raises(ValueError, match="no parameter 'wieght'"):
        diagnostics.gradient_variance(ELBO(), model, guide, x, groups={"a": ["wieght"]})
    with pytest.raises(ValueError, match="num_repeats"):
        diagnostics.gradient_variance(ELBO(), model, guide, x, num_repeats=3)


def test_kl_of_bits_whose_prior_depends_on_other_bits():
    torch.manual_seed(0)
    x = torch.rand(6, 8).round()
    model = pvae.models.SigmoidBeliefNet((8,), (3, 2))
    guide = pvae.guides.Bernoulli(model, x, hidden=(5,))
    found = diagnostics.collapse(model, guide, x, num_samples=4000)
    weights = pvae.log_weights(model, guide, x, 4000)
    sampled = (weights.log_guide - weights.log_prior).double()
    error = sampled.std(0).div(math.sqrt(len(sampled))).square().sum().sqrt() / len(x)
    # The closed form leaves the draws of the layer above alone to chance, which is less.
    assert sum(kl.sum() for kl in found.kl.values()).item() == pytest.approx(
        sampled.mean().item(), abs=7 * error.item()
    )
