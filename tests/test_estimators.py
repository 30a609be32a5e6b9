"""Defensive mixtures, jackknife, smoothed estimates and rounds of draws, against closed forms and brute force."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive
from torch.distributions import Binomial
from torch.utils.data import DataLoader

import pvae
from pvae.estimators import DefensiveMixture, GuideMixture, ImportanceSampling, Jackknife, PriorSampling
from pvae.estimators.jackknife import jackknife
from pvae.estimators.weights.psis import smooth
from pvae.estimators.weights.stream import WeightStream, estimate_from
from pvae.guides import MeanField
from pvae.models import LinearGaussian
from tests import own_pairs
from tests.test_psis import normal_weights

X_DIM, LATENT_DIM, NUM_DATA = 6, 2, 30


class Shrunk(torch.nn.Module):
    """The exact posterior with its spread times `width`, and its mean moved by `shift`."""

    def __init__(self, model, width=1.0, shift=0.0):
        super().__init__()
        self.model, self.width, self.shift = model, width, shift

    def forward(self, x):
        pyro.module("model", self.model)
        exact = self.model.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(exact.loc + self.shift, scale_tril=self.width * exact.scale_tril))


@pytest.fixture
def truth():
    torch.manual_seed(0)
    model = LinearGaussian(X_DIM, LATENT_DIM).double().requires_grad_(False).eval()
    x = pvae.sample(model, NUM_DATA, like=torch.zeros(1, X_DIM, dtype=torch.float64))["x"]
    return model, x


def linear_scores(found, exact):
    """(estimate of p(x) / p(x) - 1) in standard errors, the errors on the linear scale as well."""
    ratio = (found.values - exact).exp()
    return (ratio - 1) / (ratio * found.mc_standard_errors)


# --- guide and prior as one mixture


@pytest.mark.parametrize("width", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_mixture_is_unbiased_on_the_linear_scale(truth, width, share):
    model, x = truth
    estimator = DefensiveMixture(20_000, guide_share=share)
    found = pvae.log_marginal(model, Shrunk(model, width, 0.1), x, estimator, seed=1)
    scores = linear_scores(found, model.log_prob(x))
    assert found.bound == "lower"
    assert scores.abs().max() < 5
    assert scores.mean().abs() < 5 / math.sqrt(NUM_DATA)
    # The errors are of the right size, not only wide enough.
    assert 0.4 < scores.square().mean() < 2


def test_a_mixture_of_few_draws_is_unbiased_over_many_runs(truth):
    model, x = truth
    same = x[:1].expand(20_000, -1)
    found = pvae.log_marginal(model, Shrunk(model, 0.5), same, DefensiveMixture(5, guide_share=0.4), batch_size=20_000)
    ratios = (found.values - model.log_prob(same)).exp()
    assert abs(ratios.mean() - 1) < 5 * ratios.std() / math.sqrt(len(ratios))
    assert ratios.std() > 0.1
    # Low in expectation after the logarithm, by more than chance.
    assert ratios.log().mean() < -5 * ratios.log().std() / math.sqrt(len(ratios))


def test_a_mixture_has_a_lighter_tail_than_a_guide_too_narrow(truth):
    model, x = truth
    guide = Shrunk(model, 0.4)
    alone = pvae.log_marginal(model, guide, x, ImportanceSampling(4000))
    mixed = pvae.log_marginal(model, guide, x, DefensiveMixture(4000))
    assert alone.fraction_untrusted > 0.7
    assert mixed.fraction_untrusted < 0.1
    assert mixed.khat.median() < alone.khat.median() - 0.3


def test_weights_of_a_mixture_are_bounded_by_the_likelihood_over_the_share_of_the_prior(truth):
    model, x = truth
    model.weight.data.mul_(0.3)
    most = -X_DIM * (0.5 * math.log(2 * math.pi) + model.log_scale) + math.log(4)
    found = pvae.log_marginal(model, Shrunk(model, 0.05, 3.0), x, DefensiveMixture(400, guide_share=0.75))
    assert (found.values <= most).all()
    # A guide far off would be wide of the mark by itself; beside the prior it does no harm.
    assert linear_scores(found, model.log_prob(x)).abs().max() < 5


@pytest.mark.parametrize("num_samples", [10, 250, 1000])
def test_a_mixture_draws_exactly_its_share_from_each(truth, num_samples, monkeypatch):
    model, x = truth
    counted = []
    original = WeightStream.update

    def update(self, rows):
        counted.append((self.num_samples, len(rows)))
        original(self, rows)

    monkeypatch.setattr(WeightStream, "update", update)
    pvae.log_marginal(model, Shrunk(model), x, DefensiveMixture(num_samples, guide_share=0.3, chunk_size=100))
    shares = [int(0.3 * num_samples), num_samples - int(0.3 * num_samples)]
    assert [sum(rows for share, rows in counted if share == each) for each in shares] == shares
    assert sum(rows for _, rows in counted) == num_samples


@pytest.mark.parametrize("chunk_size", [1, 7, 100, None])
@pytest.mark.parametrize("strict", [False, True], ids=["particles", "copies"])
def test_a_mixture_is_the_same_by_every_route(chunk_size, strict):
    pair = own_pairs.plain(strict=strict)
    count = 12 if chunk_size == 1 else 300
    found = [
        pvae.log_marginal(
            pair.model, pair.guide, pair.batch, DefensiveMixture(count, chunk_size=chunk_size, step_mode=mode)
        )
        for mode in ("eager", "traced")
    ]
    torch.testing.assert_close(found[0].values, found[1].values, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[0].mc_standard_errors, found[1].mc_standard_errors, rtol=1e-4, atol=1e-6)


def test_strata_are_pooled_as_one_sum_with_errors_within_each():
    first, second = normal_weights(0.9, 300, 4) - 50, normal_weights(0.7, 700, 4, seed=1) - 49
    streams = [WeightStream(len(rows), tail_of=1000) for rows in (first, second)]
    for stream, rows in zip(streams, (first, second), strict=True):
        stream.update(rows)
    found, weights = estimate_from(streams), torch.cat([first, second])
    one = WeightStream(1000)
    one.update(weights)
    torch.testing.assert_close(found.values, weights.logsumexp(0) - math.log(1000))
    torch.testing.assert_close(found.ess, one.estimate().ess)
    assert torch.equal(found.khat, one.estimate().khat)
    scale = weights.amax(0)
    variance = sum(len(rows) * (rows - scale).exp().var(0) for rows in (first, second))
    torch.testing.assert_close(found.mc_standard_errors, variance.sqrt() / (weights - scale).exp().sum(0))


def test_a_mixture_refuses_what_it_cannot_weigh(truth):
    model, x = truth
    with pytest.raises(ValueError, match=r"guide_share must be a finite number above 0 and below 1, got 1\.0"):
        DefensiveMixture(guide_share=1.0)
    with pytest.raises(ValueError, match="num_samples of at least 2"):
        DefensiveMixture(1)
    with pytest.raises(ValueError, match="got no guide; use PriorSampling"):
        pvae.log_marginal(model, None, x, DefensiveMixture(10))

    def auxiliary(x):
        with pyro.plate("data", len(x)):
            loc = pyro.sample("loc", dist.Normal(x[:, :LATENT_DIM], 1.0).to_event(1), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    good = MeanField(model, x, hidden=(5,)).double()
    for guide, estimator in (
        (auxiliary, DefensiveMixture(10)),
        (auxiliary, GuideMixture([good], 10)),
        (good, GuideMixture([auxiliary], 10)),
    ):
        with pytest.raises(ValueError, match=r"the guide draws \['loc'\] that the model does not have"):
            pvae.log_marginal(model, guide, x, estimator)


def test_the_prior_is_a_guide_of_a_mixture_like_any_other(truth):
    model, x = truth
    guide = MeanField(model, x, hidden=(5,)).double()
    defensive = pvae.log_marginal(model, guide, x, DefensiveMixture(100, step_mode="eager"))
    mixture = pvae.log_marginal(model, guide, x, GuideMixture([None], 100, step_mode="eager"))
    torch.testing.assert_close(mixture.values, defensive.values)
    torch.testing.assert_close(mixture.mc_standard_errors, defensive.mc_standard_errors)


# --- the jackknife


def brute_force(log_weights, order):
    """Its definition: coefficients times the means over all subsets that lack 0, 1, 2 of the weights."""
    n = len(log_weights)
    total = 0.0
    for lacking in range(order + 1):
        subsets = itertools.combinations(range(n), n - lacking)
        means = torch.stack([log_weights[list(kept)].logsumexp(0) - math.log(n - lacking) for kept in subsets])
        factors = math.factorial(order - lacking) * math.factorial(lacking)
        total = total + (-1) ** lacking * (n - lacking) ** order / factors * means.mean(0)
    return total


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("num_samples", [3, 4, 18, 30])
@pytest.mark.parametrize("order", [1, 2])
def test_the_jackknife_equals_its_definition(order, num_samples, scale):
    torch.manual_seed(0)
    weights = scale * torch.randn(num_samples, 5, dtype=torch.float64) - 2
    values, errors = jackknife(weights, order)
    torch.testing.assert_close(values, brute_force(weights, order), rtol=0, atol=1e-10)
    left_out = torch.stack([weights[torch.arange(num_samples) != i].logsumexp(0) for i in range(num_samples)])
    expected = ((num_samples - 1) * left_out.var(0, correction=0)).sqrt()
    torch.testing.assert_close(errors, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_the_jackknife_of_equal_weights_is_their_logarithm(order):
    values, errors = jackknife(torch.full((5000, 3), -812.5), order)
    assert (values + 812.5).abs().max() < 1e-10
    assert errors.abs().max() < 1e-10


def exact_bias(num_samples, order):
    """E of the estimate less log E w, for weights 0.4 (3 in 10) and 1.6: the sum over how many of the n are small."""
    small = torch.arange(num_samples + 1)
    weights = (1.6 - 1.2 * (torch.arange(num_samples)[:, None] < small).double()).log()
    if order == 0:
        values = weights.logsumexp(0) - math.log(num_samples)
    else:
        values, _ = jackknife(weights, order)
    chances = Binomial(num_samples, torch.tensor(0.3, dtype=torch.float64)).log_prob(small.double()).exp()
    return ((chances * values).sum() - math.log(1.24)).abs().item()


def test_the_bias_falls_with_the_order():
    """Doubling K divides it by 2, 4, 8; no chance is involved, the expectation is a sum."""
    for order, power in ((0, 1), (1, 2), (2, 3)):
        falls = math.log2(exact_bias(64, order) / exact_bias(128, order))
        assert falls == pytest.approx(power, abs=0.1), order


def test_the_bias_falls_for_lognormal_weights():
    generator = torch.Generator().manual_seed(0)
    weights = 0.7 * torch.randn(12, 200_000, generator=generator, dtype=torch.float64) - 0.245
    # The mean weight has mean 1 and takes most of the noise along.
    noise = weights.exp().mean(0) - 1
    biases, errors = [], []
    for values in (weights.logsumexp(0) - math.log(12), jackknife(weights, 1)[0], jackknife(weights, 2)[0]):
        slope = (values * noise).mean() / noise.square().mean()
        rest = values - slope * noise
        biases.append(rest.mean().abs().item())
        errors.append(rest.std().item() / math.sqrt(len(rest)))
    assert biases[0] == pytest.approx((math.exp(0.49) - 1) / 24, rel=0.2)
    assert biases[0] > 100 * errors[0]
    assert biases[1] + 5 * errors[1] < biases[0] / 3
    assert biases[2] < biases[1]


@pytest.mark.parametrize("order", [1, 2])
def test_the_jackknife_meets_log_p_within_its_error(truth, order):
    model, x = truth
    estimator = Jackknife(500, order=order, chunk_size=60)
    found = pvae.log_marginal(model, Shrunk(model, 1.3, 0.2), x, estimator, batch_size=8)
    scores = (found.values - model.log_prob(x)) / found.mc_standard_errors
    assert found.bound == "none"
    assert scores.abs().max() < 5
    assert 0.4 < scores.square().mean() < 2
    plain = pvae.log_marginal(model, Shrunk(model, 1.3, 0.2), x, ImportanceSampling(500, chunk_size=60), batch_size=8)
    assert (found.values > plain.values).all()
    torch.testing.assert_close(found.ess, plain.ess)
    assert torch.equal(found.khat, plain.khat)


def test_the_jackknife_refuses_orders_and_sizes_it_has_not():
    with pytest.raises(ValueError, match="order must be 1 or 2, got 3"):
        Jackknife(order=3)
    with pytest.raises(ValueError, match="order 2 leaves out 2 draws, so num_samples must exceed it"):
        Jackknife(2, order=2)


# --- smoothed estimates


def test_a_smoothed_estimate_is_the_mean_of_the_smoothed_weights_and_no_bound(truth):
    model, x = truth
    guide = Shrunk(model, 0.5)
    assert ImportanceSampling(10).bound == PriorSampling(10).bound == "lower"
    for estimator in (ImportanceSampling(2000, smooth=True, chunk_size=300), PriorSampling(2000, smooth=True)):
        assert estimator.bound == "none"
        found = pvae.log_marginal(model, guide, x, estimator)
        assert found.bound == found.summary()["bound"] == "none"
    found = pvae.log_marginal(model, guide, x[:4], ImportanceSampling(2000, smooth=True, chunk_size=2000))
    plain = pvae.log_marginal(model, guide, x[:4], ImportanceSampling(2000, chunk_size=2000))
    assert torch.equal(found.khat, plain.khat)
    # The same draws, from the same seed.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = pvae.log_weights(model, guide, x[:4], 2000).values
    torch.testing.assert_close(plain.values, weights.logsumexp(0) - math.log(2000))
    torch.testing.assert_close(found.values, smooth(weights)[0].logsumexp(0) - math.log(2000), rtol=0, atol=1e-10)


def test_smoothing_steadies_a_heavy_tail():
    """Against proposals of half the width (k = 3/4) the mean squared error of log p(x) falls."""
    weights = normal_weights(0.5, 500, num_data=2000)
    errors = []
    for smooths in (False, True):
        stream = WeightStream(500, smooth=smooths)
        stream.update(weights)
        errors.append(stream.estimate().values.square().mean().sqrt().item())
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: graphs of kernels cannot be captured")
def test_chunks_of_a_captured_graph_do_not_overwrite_each_other(monkeypatch):
    model, x = LinearGaussian(X_DIM, LATENT_DIM), torch.randn(5, X_DIM)
    rows = []
    original = WeightStream.update
    monkeypatch.setattr(WeightStream, "update", lambda self, part: rows.append(part) or original(self, part))
    pvae.log_marginal(model, None, x, PriorSampling(250, chunk_size=50, step_mode="graph"), device="cuda")
    assert len(rows) == 5
    assert len({tuple(part.flatten().tolist()) for part in rows}) == 5


# --- draws until an error is small enough


def two_kinds(num_easy=8, num_hard=4):
    """A model whose posterior is sharp for the data beside 0, and a guide that fits the others alone."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            hard = (x > 1.5).to(x.dtype)
            pyro.sample("z", dist.Normal(x / 2 - hard, math.sqrt(0.5) * (1 + hard)).to_event(1))

    x = torch.cat([torch.linspace(-1, 1, num_easy), torch.linspace(2, 2.5, num_hard)]).double()[:, None]
    return model, guide, x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]


ESTIMATORS = {
    "ImportanceSampling": lambda: ImportanceSampling(100),
    "PriorSampling": lambda: PriorSampling(100),
    "DefensiveMixture": lambda: DefensiveMixture(100),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_draws_go_on_until_every_error_is_below_the_target(truth, name):
    model, x = truth
    guide, at_most = Shrunk(model, 1.2, 0.2), {"target_se": 0.035, "max_samples": 50_000}
    found = pvae.log_marginal(model, guide, x, ESTIMATORS[name](), batch_size=7, **at_most)
    finished = torch.ones(NUM_DATA, dtype=torch.bool)
    finished[found.unfinished] = False
    # The prior alone is hopeless for one of these data.
    assert len(found.unfinished) == found.summary()["unfinished"] == (1 if name == "PriorSampling" else 0)
    assert (found.mc_standard_errors[finished] <= 0.035).all()
    assert (found.mc_standard_errors[~finished] > 0.035).all()
    assert (found.samples[~finished] == 50_000).all()
    assert found.bound == "none"
    scores = (found.values - model.log_prob(x)) / found.mc_standard_errors
    assert scores.abs().max() < 5
    assert (found.ess <= found.samples).all()
    assert (found.samples > 100).any()


def test_only_hard_data_are_drawn_for_again():
    model, guide, x = two_kinds()
    found = pvae.log_marginal(model, guide, x, ImportanceSampling(50), batch_size=5, target_se=0.02)
    hard = x[:, 0] > 1.5
    assert (found.samples[~hard] == 50).all()
    assert (found.samples[hard] > 500).all()
    exact = -0.25 * x[:, 0].square() - 0.5 * math.log(4 * math.pi)
    assert (found.values - exact)[~hard].abs().max() < 1e-10
    assert ((found.values - exact) / found.mc_standard_errors)[hard].abs().max() < 5


def test_what_the_cap_stops_is_reported():
    model, guide, x = two_kinds()
    found = pvae.log_marginal(model, guide, x, ImportanceSampling(50), target_se=0.02, max_samples=333)
    hard = (x[:, 0] > 1.5).nonzero()[:, 0]
    assert found.unfinished.tolist() == hard.tolist()
    assert found.summary()["unfinished"] == 4
    assert (found.samples[hard] == 333).all()
    assert (found.mc_standard_errors[hard] > 0.02).all()


def test_rounds_are_pooled_as_one_heap(monkeypatch):
    model, guide, x = two_kinds(0, 3)
    rows = []
    original = WeightStream.update
    monkeypatch.setattr(WeightStream, "update", lambda self, part: rows.append(part.clone()) or original(self, part))
    found = pvae.log_marginal(model, guide, x, ImportanceSampling(100), target_se=1e-3, max_samples=2000)
    assert found.samples.tolist() == [2000] * 3
    weights = torch.cat(rows)
    assert len(weights) == 2000
    assert [len(part) for part in rows] == [100, 200, 400, 800, 500]
    one = WeightStream(2000)
    original(one, weights)
    torch.testing.assert_close(found.values, one.estimate().values, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.mc_standard_errors, one.estimate().mc_standard_errors, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.ess, one.estimate().ess, rtol=1e-9, atol=0)
    # k-hat is that of the largest round.
    largest = WeightStream(800)
    original(largest, rows[3])
    assert torch.equal(found.khat, largest.estimate().khat)


def test_a_target_already_met_changes_no_number(truth):
    model, x = truth
    plain = pvae.log_marginal(model, Shrunk(model, 1.1), x, ImportanceSampling(100))
    found = pvae.log_marginal(model, Shrunk(model, 1.1), x, ImportanceSampling(100), target_se=10.0)
    assert torch.equal(found.values, plain.values)
    assert torch.equal(found.mc_standard_errors, plain.mc_standard_errors)
    assert found.samples.tolist() == plain.samples.tolist() == [100] * NUM_DATA
    assert (plain.unfinished, plain.summary()["unfinished"]) == (None, None)


@pytest.mark.parametrize("source", ["dynamic", "loader"])
def test_further_rounds_see_the_same_data(source):
    """Grey data are not drawn binary anew, and a shuffling loader is read once."""
    rounds = []

    class Noted(PriorSampling):
        def start(self, model, guide, parameters, num_batches):
            estimate = super().start(model, guide, parameters, num_batches)
            batches = []
            rounds.append(batches)
            return lambda batch: batches.append(batch[0]) or estimate(batch)

    def model(x):
        scale = pyro.param("scale", torch.tensor(0.5), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), scale).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z.expand(*z.shape[:-1], 5)).to_event(1), obs=x)

    grey = torch.rand(9, 5, generator=torch.Generator().manual_seed(0))
    data = pvae.data.DataSet("grey", train=grey, test=grey, kind="unit", binarize="dynamic")
    if source == "loader":
        data = DataLoader(grey.round(), batch_size=4, shuffle=True)
    found = pvae.log_marginal(model, None, data, Noted(20), batch_size=4, target_se=1e-3, max_samples=3000)
    assert (found.samples == 3000).all()
    x, *others = [torch.cat(batches) for batches in rounds]
    assert len(others) == 7
    assert all(torch.equal(other, x) for other in others)
    grid = torch.linspace(-5, 5, 2001).double()[:, None]
    ones = x.sum(1).double()
    log_joint = ones * grid - 5 * torch.nn.functional.softplus(grid) + dist.Normal(0.0, 0.5).log_prob(grid)
    exact = log_joint.logsumexp(0) + math.log(10 / 2000)
    assert ((found.values - exact) / found.mc_standard_errors).abs().max() < 5


def test_a_target_is_refused_where_draws_cannot_be_pooled(truth):
    model, x = truth
    guide = Shrunk(model)
    for estimator in (ImportanceSampling(10, smooth=True), Jackknife(10)):
        with pytest.raises(ValueError, match="is not the log of a plain mean of weights; use ImportanceSampling"):
            pvae.log_marginal(model, guide, x, estimator, target_se=0.1)
    with pytest.raises(ValueError, match=r"target_se must be a finite number above 0, got 0\.0; try 0\.02"):
        pvae.log_marginal(model, guide, x, target_se=0.0)
    with pytest.raises(ValueError, match="max_samples must be a whole number of at least 1000, got 500"):
        pvae.log_marginal(model, guide, x, target_se=0.1, max_samples=500)
