"""The shipped truths: their own consistency, and every bound held to them."""

import itertools
import math

import pytest
import torch

import pvae
from pvae import truth
from pvae.estimators import ImportanceSampling
from pvae.objectives import ELBO, IWAE

DOUBLE = torch.float64
BUILDERS = pytest.mark.parametrize("build", truth.TRUTHS, ids=lambda build: build.__name__)


def bounds(known, objective, repeats, seed=0):
    """Draws of an objective's value less log p(x), (repeats, N): one run on the data so many times over."""
    x = known.x.repeat(repeats, *(1,) * (known.x.dim() - 1))
    torch.manual_seed(seed)
    with torch.no_grad():
        return objective.bound(known.model, known.guide, x).reshape(repeats, -1) - known.log_prob


def bits(size):
    return (torch.arange(2**size)[:, None] >> torch.arange(size) & 1).double()


@BUILDERS
def test_a_truth_is_complete_and_always_the_same(build):
    known, again = build(), build()
    assert known.log_prob.dtype == DOUBLE
    assert known.log_prob.shape == (len(known.x),)
    assert known.log_prob.isfinite().all()
    assert not known.log_prob.requires_grad
    assert 8 <= len(known.x) <= 20
    assert torch.equal(known.x, again.x)
    assert torch.equal(known.log_prob, again.log_prob)
    assert known.source
    found = [finding.found for finding in pvae.check(known.model, known.guide, known.x, pvae.objectives.IWAE(2))]
    assert all("no pathwise gradient" in line for line in found)
    assert bool(found) == (known.latent == "discrete")
    # Answers for other data are those of the same function.
    assert torch.allclose(build(x=known.x[:3]).log_prob, known.log_prob[:3], rtol=0, atol=1e-13)


def test_names_tell_them_apart():
    names = [known.name for known in truth.all_truths()]
    assert len(set(names)) == len(names) == len(truth.TRUTHS)


def test_building_truths_changes_nothing_global():
    torch.manual_seed(5)
    before, dtype = torch.get_rng_state(), torch.get_default_dtype()
    truth.all_truths()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == dtype


@BUILDERS
def test_every_weight_of_the_exact_guide_is_log_p(build):
    known = build()
    if known.exact_guide is None:
        assert build in (truth.sigmoid_belief_net, truth.ring)
        return
    weights = pvae.log_weights(known.model, known.exact_guide, known.x, 7).values
    assert (weights - known.log_prob).abs().max() < 1e-10


@pytest.mark.parametrize(("build", "size"), [(truth.beta_bernoulli, 6), (truth.sigmoid_belief_net, 8)])
def test_probabilities_of_all_data_sum_to_1(build, size):
    assert build(x=bits(size)).log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_probabilities_of_counts_sum_to_1():
    counts = torch.arange(60, dtype=DOUBLE)
    assert truth.gamma_poisson(x=torch.cartesian_prod(counts, counts)).log_prob.exp().sum() == pytest.approx(
        1, abs=1e-8
    )


@pytest.mark.parametrize(("build", "half_width"), [(truth.ring, 2.0), (truth.gaussian_mixture, 12.0)])
def test_densities_integrate_to_1(build, half_width):
    line = torch.linspace(-half_width, half_width, 61, dtype=DOUBLE)
    density = build(x=torch.cartesian_prod(line, line)).log_prob.exp()
    assert density.sum().item() * (line[1] - line[0]).item() ** 2 == pytest.approx(1, abs=1e-6)


@BUILDERS
def test_bounds_rise_to_log_p_with_the_number_of_samples(build):
    known = build()
    chain = [bounds(known, objective, 1500, seed) for seed, objective in enumerate((ELBO(), IWAE(5), IWAE(50)))]
    chain = [draws.mean(1) for draws in chain] + [torch.zeros(1500, dtype=DOUBLE)]
    for below, above in itertools.pairwise(chain):
        error = math.hypot(below.std().item(), above.std().item()) / math.sqrt(1500)
        assert below.mean() - above.mean() < 5 * error
    # The guide is not the posterior, so the ELBO must be seen to fall short.
    assert chain[0].mean() < -5 * chain[0].std() / math.sqrt(1500)
    assert chain[0].mean() < chain[2].mean()


@BUILDERS
@pytest.mark.parametrize("num_samples", [1, 5])
def test_no_estimate_overshoots_more_often_than_markov_allows(build, num_samples):
    """P(log p^ > log p + b) <= e^-b for the mean of any weights. Burda et al. (2016), appendix."""
    draws = bounds(build(), IWAE(num_samples), 3000, seed=7)
    for excess in (0.5, 1.0, 2.0, 4.0):
        limit = math.exp(-excess)
        share = (draws > excess).double().mean().item()
        assert share < limit + 5 * math.sqrt(limit * (1 - limit) / draws.numel())


@BUILDERS
def test_importance_sampling_meets_the_truth(build):
    known = build()
    result = pvae.log_marginal(known.model, known.guide, known.x, ImportanceSampling(20_000))
    # The values are a little low, by half their variance, which is far below the error itself.
    assert ((result.values - known.log_prob).abs() < 5 * result.mc_standard_errors).all()
    assert result.khat.max() < 0.7


@pytest.mark.parametrize("shift", [0.5, 1.0])
def test_elbo_of_a_shifted_guide_is_half_its_square_too_low(shift):
    draws = bounds(truth.shifted_gaussian(shift), ELBO(), 20_000)
    assert abs(draws.mean() + shift**2 / 2) < 5 * draws.std() / math.sqrt(draws.numel())


@pytest.mark.parametrize("num_samples", [20, 100])
def test_iwae_gap_of_a_shifted_guide(num_samples):
    """log p - L_K = (exp(m^2) - 1) / (2 K) + O(K^-2); E[w] = 1 is a control variate that shows it."""
    shift = 0.5
    draws = bounds(truth.shifted_gaussian(shift), IWAE(num_samples), 5000)
    gaps = draws.exp() - 1 - draws
    chi2 = math.expm1(shift**2)
    skew = math.exp(3 * shift**2) - 3 * math.exp(shift**2) + 2
    second = (skew / 3 - 3 * chi2**2 / 4) / num_samples**2
    error = gaps.std() / math.sqrt(gaps.numel())
    assert abs(gaps.mean() - (chi2 / (2 * num_samples) - second)) < 5 * error + 20 * abs(second) / num_samples
    assert error < 0.01 * chi2 / (2 * num_samples)


@pytest.mark.parametrize(("scale", "tolerance"), [(0.9, 0.05), (0.7, 0.05), (0.5, 0.08)])
def test_the_tail_of_a_narrow_guide_has_its_exact_shape(scale, tolerance):
    """Pareto shape 1 - s^2; the fit has a small-sample bias of its own, larger for heavier tails."""
    known = truth.scaled_gaussian(scale)
    shapes = pvae.log_marginal(known.model, known.guide, known.x, ImportanceSampling(200_000)).khat
    error = shapes.std() / math.sqrt(len(shapes))
    assert abs(shapes.mean() - (1 - scale**2)) < tolerance + 5 * error
