"""Objectives that take the KL apart or replace it, against closed forms of the aggregate posterior."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pvae
from pvae.guides import Delta, Exact, FullCovariance, MeanField
from pvae.models import VAE, LinearGaussian
from pvae.objectives import ELBO, BetaTCVAE, InfoVAE
from pvae.objectives.info import squared_mmd
from pvae.objectives.total_correlation import log_aggregate
from pvae.pair.aggregate import log_aggregate_posterior, pairwise_log_factors, pairwise_log_guide

SLOPE, SCALE = (1.5, -0.8), 0.6


class Likelihood(nn.Module):
    """p(z) = N(0, I), x ~ N(0, 1) whatever z: the model that leaves the KL's replacement alone in the gradient."""

    def __init__(self, latent_dim=2):
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros_like(x[0]), 1.0).to_event(1), obs=x)


class LinearGuide(nn.Module):
    """q(z | x) = N(slope x + loc, scale^2 I) for one number x: with x ~ N(0, 1) the aggregate is Gaussian."""

    def __init__(self, slope=SLOPE, scale=SCALE, loc=(0.0, 0.0)):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))
        self.loc = nn.Parameter(torch.tensor(loc, dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x + self.loc, self.scale).to_event(1))


def quantiles(num_data):
    """N(0, 1) as equally likely points, whose average is nearly an integral."""
    at = (torch.arange(num_data, dtype=torch.float64) + 0.5) / num_data
    return math.sqrt(2) * torch.erfinv(2 * at - 1)[:, None]


def closed_forms(guide):
    """Mutual information, total correlation and dimension-wise KL of a linear guide with x ~ N(0, 1)."""
    slope, noise = guide.slope, guide.scale**2
    variances = slope**2 + noise
    information = 0.5 * torch.log1p((slope**2).sum() / noise)
    correlation = 0.5 * (variances.log().sum() - (noise + (slope**2).sum()).log() - noise.log())
    dimension_wise = 0.5 * (variances + guide.loc**2 - 1 - variances.log()).sum()
    return information, correlation, dimension_wise


@pytest.fixture
def pair():
    torch.manual_seed(0)
    x = torch.rand(9, 12, dtype=torch.float64).round()
    model = VAE((12,), 3).double()
    return model, MeanField(model, x, hidden=(8,)), x


def seeded_bound(objective, pair, *args):
    objective.bound(*pair)
    torch.manual_seed(1)
    return objective.bound(*pair, *args)


# --- the guide's density of every draw at every datum


def test_pairs_of_a_mean_field_guide_are_its_gaussians(pair):
    _model, guide, x = pair
    z = torch.randn(4, 3, dtype=torch.float64)
    loc, raw = guide.encoder(x).unflatten(-1, (2, 3)).unbind(1)
    by_hand = dist.Normal(loc, guide.min_scale + nn.functional.softplus(raw)).log_prob(z[:, None]).sum(-1)
    torch.testing.assert_close(pairwise_log_guide(guide, {"z": z}, (x,)), by_hand)


class TwoSites(nn.Module):
    """q(b | x) = N(slope x, 0.5^2), q(a | b, x) = N(b - x, 2^2): the second site depends on the first."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(self.slope * x, 0.5))
            pyro.sample("a", dist.Normal(b - x, 2.0))


def test_pairs_of_dependent_sites_are_their_joint_density_with_its_gradients():
    guide, x = TwoSites(), torch.randn(5, dtype=torch.float64)
    a, b = torch.randn(2, 3, dtype=torch.float64).requires_grad_().unbind(0)
    got = pairwise_log_guide(guide, {"a": a, "b": b}, (x,))
    by_hand = dist.Normal(guide.slope * x, 0.5).log_prob(b[:, None])
    by_hand = by_hand + dist.Normal(b[:, None] - x, 2.0).log_prob(a[:, None])
    torch.testing.assert_close(got, by_hand)
    upstream = torch.randn(3, 5, dtype=torch.float64)
    leaves = [guide.slope, a, b]
    found = torch.autograd.grad(got, leaves, upstream)
    for one, other in zip(found, torch.autograd.grad(by_hand, leaves, upstream), strict=True):
        torch.testing.assert_close(one, other)


def test_the_aggregate_is_the_mean_over_all_batches():
    guide, x = TwoSites(), torch.randn(7, dtype=torch.float64)
    latents = {name: torch.randn(4, dtype=torch.float64) for name in "ab"}
    whole = pairwise_log_guide(guide, latents, (x,)).logsumexp(1) - math.log(7)
    torch.testing.assert_close(log_aggregate_posterior(guide, latents, [(x[:4],), (x[4:],)]), whole)


class Positive(nn.Module):
    """q(z | x) = LogNormal(slope x, 0.5) of shape (2, 3), by way of a transform."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3))

    def base(self, x):
        return self.slope * x[:, None, None]

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            base = dist.Normal(self.base(x), 0.5).to_event(2)
            pyro.sample("z", dist.TransformedDistribution(base, [dist.transforms.ExpTransform()]))


class Ones(nn.Module):
    """p(z) = Exponential(1) over (2, 3), x | z ~ N(0, 1)."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Exponential(x.new_ones(2, 3)).to_event(2))
            pyro.sample("x", dist.Normal(torch.zeros_like(x), 1.0), obs=x)


def test_dimensions_behind_a_transform_are_told_apart():
    guide, x = Positive(), torch.randn(4, dtype=torch.float64)
    run = ELBO()._run(Ones(), guide, (x,))
    z = run.latents["z"][0]
    by_hand = dist.LogNormal(guide.base(x), 0.5).log_prob(z[:, None]).flatten(2)
    torch.testing.assert_close(pairwise_log_factors(run, "z"), by_hand)
    terms = BetaTCVAE(num_data=4).decompose(Ones(), guide, x)
    assert torch.isfinite(terms.kl).all()


# --- the estimate of log q(z) from a batch


def test_the_stratified_aggregate_is_unbiased_and_exact_for_all_data():
    torch.manual_seed(0)
    num_data, size = 7, 3
    pairs = torch.randn(num_data, num_data, 2, dtype=torch.float64)
    truth = pairs.logsumexp(1) - math.log(num_data)
    torch.testing.assert_close(log_aggregate(pairs, num_data, "stratified"), truth)
    estimates = [[] for _ in range(num_data)]
    for subset in itertools.combinations(range(num_data), size):
        index = torch.tensor(subset)
        for n, estimate in zip(subset, log_aggregate(pairs[index][:, index], num_data, "stratified"), strict=True):
            estimates[n].append(estimate.exp())
    mean = torch.stack([torch.stack(each).mean(0) for each in estimates])
    torch.testing.assert_close(mean, truth.exp())


def test_weighted_terms_are_off_by_multiples_of_log_n_that_cancel(pair):
    terms = {}
    for aggregate in ("stratified", "weighted"):
        torch.manual_seed(2)
        terms[aggregate] = BetaTCVAE(num_data=9, aggregate=aggregate).decompose(*pair)
    exact, weighted, log_n = terms["stratified"], terms["weighted"], torch.full((9,), math.log(9), dtype=torch.float64)
    torch.testing.assert_close(weighted.mutual_information - exact.mutual_information, log_n)
    torch.testing.assert_close(weighted.total_correlation - exact.total_correlation, 2 * log_n)
    torch.testing.assert_close(weighted.dimension_wise - exact.dimension_wise, -3 * log_n)


# --- beta-TCVAE


@pytest.mark.parametrize("aggregate", ["stratified", "weighted"])
@pytest.mark.parametrize("num_data", [9, 1000])
def test_the_three_terms_sum_to_the_sampled_kl(pair, num_data, aggregate):
    objective = BetaTCVAE(num_data=num_data, aggregate=aggregate)
    objective.bound(*pair)
    torch.manual_seed(1)
    terms = objective.decompose(*pair)
    with_kl, without = (seeded_bound(ELBO(), pair, weight) for weight in (1.0, 0.0))
    torch.testing.assert_close(terms.kl, without - with_kl, rtol=0, atol=1e-12)


def test_at_weights_of_one_it_is_the_elbo_with_its_gradient(pair):
    leaves = [*pair[0].parameters(), *pair[1].parameters()]
    bounds = [seeded_bound(objective, pair) for objective in (BetaTCVAE(1, 1, 1, num_data=50), ELBO())]
    torch.testing.assert_close(*bounds, rtol=0, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad(bound.sum(), leaves) for bound in bounds), strict=True):
        torch.testing.assert_close(one, other)


def test_each_weight_and_the_kl_weight_count_as_they_say(pair):
    objective = BetaTCVAE(0.5, 6.0, 2.0, num_data=50)
    bound = seeded_bound(objective, pair, 0.3)
    torch.manual_seed(1)
    terms = objective.decompose(*pair)
    kl = 0.5 * terms.mutual_information + 6 * terms.total_correlation + 2 * terms.dimension_wise
    torch.testing.assert_close(bound, seeded_bound(ELBO(), pair, 0.0) - 0.3 * kl)


def test_the_terms_of_a_gaussian_aggregate_are_its_closed_forms():
    num_data = 1500
    guide, x = LinearGuide(), quantiles(num_data)
    torch.manual_seed(0)
    with torch.no_grad():
        terms = BetaTCVAE(num_data=num_data).decompose(Likelihood(), guide, x)
    for name, truth in zip(vars(terms), closed_forms(guide), strict=True):
        values = getattr(terms, name)
        error = values.std() / math.sqrt(num_data)
        assert abs(values.mean() - truth) < 5 * error, name
        assert error < 0.05 < truth, name


def test_the_terms_have_the_gradients_of_their_closed_forms():
    num_data, repeats = 300, 60
    guide, x = LinearGuide(loc=(0.3, -0.2)), quantiles(num_data)
    leaves = list(guide.parameters())
    truths = torch.stack([flat(truth, leaves) for truth in closed_forms(guide)])
    torch.manual_seed(0)
    objective, draws = BetaTCVAE(num_data=num_data), []
    for _ in range(repeats):
        terms = objective.decompose(Likelihood(), guide, x)
        draws.append(torch.stack([flat(term.mean(), leaves) for term in vars(terms).values()]))
    mean, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / math.sqrt(repeats)
    assert ((mean - truths).abs() < 5 * error + 1e-3).all(), (mean, truths, error)
    assert error.max() < 0.05


def flat(value, leaves):
    pairs = zip(torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True), leaves, strict=True)
    return torch.cat([(torch.zeros_like(leaf) if g is None else g).flatten() for g, leaf in pairs])


def test_a_guide_that_ignores_x_has_no_information_and_no_correlation():
    guide, x = LinearGuide(slope=(0.0, 0.0)), torch.randn(20, 1, dtype=torch.float64)
    terms = BetaTCVAE(num_data=100).decompose(Likelihood(), guide, x)
    assert terms.mutual_information.abs().max() < 1e-12
    assert terms.total_correlation.abs().max() < 1e-12


def test_total_correlation_is_driven_out_by_its_weight():
    x = quantiles(100)
    correlations = []
    for weight in (0.0, 20.0):
        model, guide = Likelihood(), LinearGuide(scale=0.9)
        objective = BetaTCVAE(0.0, weight, 0.0, num_data=100)
        pvae.fit(model, guide, x, objective=objective, steps=120, lr=2e-2, step_mode="traced")
        correlations.append(closed_forms(guide)[1].item())
    assert correlations[0] > 0.15
    assert correlations[1] < 0.02


def test_what_beta_tcvae_cannot_take_is_refused(pair):
    model, guide, x = pair
    objective = BetaTCVAE(num_data=9)
    torch.manual_seed(0)
    line = LinearGaussian(12, 3).double()
    for other in (Exact(line), FullCovariance(line, x)):
        with pytest.raises(ValueError, match="whose dimensions depend on each other; use MeanField"):
            objective.bound(line, other, x)
    with pytest.raises(ValueError, match=r"a point \(Delta\), which has no density; train MeanField"):
        objective.bound(model, Delta(model, x), x)
    with pytest.raises(ValueError, match=r"takes one latent site, got \['a', 'b'\]; .* MeanField"):
        objective.bound(TwoLatents(), TwoSites(), x[:, 0])
    with pytest.raises(ValueError, match="num_data is 5, and the batch alone holds 9"):
        BetaTCVAE(num_data=5).bound(*pair)
    with pytest.raises(ValueError, match="holds 1 datum; choose a batch_size that leaves no batch of 1"):
        objective.bound(model, guide, x[:1])
    for options, message in (
        ({"num_data": 0}, "num_data must be a whole number of at least 1, got 0"),
        ({"num_data": None}, "num_data must be a whole number of at least 1, got None"),
        (
            {"num_data": 9, "total_correlation": -1.0},
            "total_correlation must be a finite number of at least 0",
        ),
        ({"num_data": 9, "aggregate": "mws"}, "unknown aggregate 'mws': the choices are stratified, weighted"),
    ):
        with pytest.raises(ValueError, match=message):
            BetaTCVAE(**options)


class TwoLatents(nn.Module):
    """b ~ N(0, 1), a | b ~ N(2 b, 1), x ~ N(0, 1): whose a has a variance of 5."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("a", dist.Normal(2 * b, 1.0))
            pyro.sample("x", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0), obs=x)


# --- InfoVAE


def test_its_weights_interpolate_between_the_elbo_and_the_mmd(pair):
    torch.testing.assert_close(seeded_bound(InfoVAE(0.0, 1.0), pair), seeded_bound(ELBO(), pair))
    likelihood = seeded_bound(ELBO(), pair, 0.0)
    mmd = likelihood - seeded_bound(InfoVAE(1.0, 1.0), pair)
    torch.testing.assert_close(mmd, mmd[:1].expand(9))
    kl = likelihood - seeded_bound(ELBO(), pair)
    mixed = likelihood - 0.5 * (0.7 * kl + 9.3 * mmd)
    torch.testing.assert_close(seeded_bound(InfoVAE(0.3, 10.0), pair, 0.5), mixed)


def expected_kernel(kernel, square, shift, dim=2):
    """E k(x, y) for x - y ~ N(shift, 2 I): closed form of the RBF, quadrature over |x - y|^2 of the other."""
    distance = torch.as_tensor(shift).square().sum()
    if kernel == "rbf":
        return (square / (square + 2)) ** (dim / 2) * (-distance / (2 * (square + 2))).exp()
    # C / (C + r^2) is the mean of exp(-r^2 t / C) over t ~ Exp(1), which turns it into RBFs.
    t = (torch.arange(400_000, dtype=torch.float64) + 0.5) * 1e-4
    total = torch.zeros((), dtype=torch.float64)
    for c in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0):
        inner = c * square / (2 * t)
        total = total + ((inner / (inner + 2)) ** (dim / 2) * (-distance / (2 * (inner + 2))).exp() * (-t).exp()).sum()
    return total * 1e-4


def mmds(objective, guide, repeats, size=40, model=None):
    """MMD^2 and its gradient by the guide's loc, from that many batches."""
    model, x = model or Likelihood(), torch.zeros(size, 1, dtype=torch.float64)
    plain = dist.Normal(0.0, 1.0).log_prob(torch.zeros((), dtype=torch.float64))
    torch.manual_seed(0)
    values, slopes = [], []
    for _ in range(repeats):
        mmd = plain - objective.bound(model, guide, x).mean()
        slopes.append(torch.autograd.grad(mmd, guide.loc)[0])
        values.append(mmd.detach())
    return torch.stack(values), torch.stack(slopes)


def within(draws, truth):
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - truth).abs() < 5 * error).all(), (draws.mean(0), truth, error)
    return error


@pytest.mark.parametrize("scale", [None, 1.3])
@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_the_mmd_of_equal_distributions_is_zero_on_average(kernel, scale):
    values, slopes = mmds(InfoVAE(1.0, 1.0, kernel=kernel, scale=scale), LinearGuide((0.0, 0.0), 1.0), 400, 10)
    within(values, 0.0)
    within(slopes, 0.0)
    assert values.min() < 0


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_the_mmd_of_shifted_gaussians_has_its_closed_form_and_gradient(kernel):
    shift, square = torch.tensor([0.9, -0.4], dtype=torch.float64, requires_grad=True), 1.7
    truth = 2 * (expected_kernel(kernel, square, torch.zeros(2)) - expected_kernel(kernel, square, shift))
    slope = torch.autograd.grad(truth, shift)[0]
    guide = LinearGuide((0.0, 0.0), 1.0, tuple(shift.tolist()))
    values, slopes = mmds(InfoVAE(1.0, 1.0, kernel=kernel, scale=math.sqrt(square)), guide, 300)
    assert within(values, truth.detach()) < 0.03 * truth
    assert (within(slopes, slope) < 0.05 * slope.abs().max()).all()


def test_the_scale_is_read_off_the_prior():
    # E|y - y'|^2 = 2 * 2 for two dims of variance 1.
    guide = LinearGuide((0.0, 0.0), 1.0, (1.0, 1.0))
    read, _ = mmds(InfoVAE(1.0, 1.0, kernel="rbf"), guide, 60, 200)
    given, _ = mmds(InfoVAE(1.0, 1.0, kernel="rbf", scale=2.0), guide, 60, 200)
    within(read, 2 * (4 / 6) * (1 - math.exp(-2 / 12)))
    assert read.mean().item() == pytest.approx(given.mean().item(), rel=0.05)


@pytest.mark.slow
def test_sites_that_depend_on_each_other_are_drawn_from_their_joint_prior():
    class Prior(nn.Module):
        """q(b) q(a | b) equal to the prior, apart from loc."""

        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            pyro.module("guide", self)
            with pyro.plate("data", len(x)):
                b = pyro.sample("b", dist.Normal(self.loc, 1.0))
                pyro.sample("a", dist.Normal(2 * b, 1.0))

    guide = Prior()
    within(mmds_of_two(guide), 0.0)
    # a = 2 b + noise has a scale of sqrt(5): beside a conditional prior of scale 1 the guide would stand out.
    guide.loc.data.fill_(1.0)
    values = mmds_of_two(guide)
    assert values.mean() > 5 * values.std() / math.sqrt(len(values))


def mmds_of_two(guide):
    torch.manual_seed(0)
    x, objective = torch.zeros(30, dtype=torch.float64), InfoVAE(1.0, 1.0)
    plain = dist.Normal(0.0, 1.0).log_prob(x).mean()
    with torch.no_grad():
        return torch.stack([plain - objective.bound(TwoLatents(), guide, x).mean() for _ in range(200)])


def test_the_statistic_is_the_loop_over_pairs():
    torch.manual_seed(0)
    x, y = torch.randn(5, 3, dtype=torch.float64), 100 + torch.randn(4, 3, dtype=torch.float64)

    def kernel(distances):
        return 1 / (1 + distances)

    def mean(left, right):
        pairs = [(a, b) for a in left for b in right if a is not b]
        return sum(kernel((a - b).square().sum()) for a, b in pairs) / len(pairs)

    rows = list(x), list(y)
    by_hand = mean(rows[0], rows[0]) + mean(rows[1], rows[1]) - 2 * mean(*rows)
    torch.testing.assert_close(squared_mmd(x, y, kernel), by_hand)


def test_training_brings_the_aggregate_to_the_prior_and_is_traced():
    x = quantiles(256)
    guide = LinearGuide((2.0, 2.0), 0.3, (1.0, -1.0))
    objective = InfoVAE(1.0, 10.0)
    before = mmds_on(x, guide)
    result = pvae.fit(Likelihood(), guide, x, objective=objective, steps=300, lr=2e-2, step_mode="traced")
    assert result.step_mode == "traced"
    after = mmds_on(x, guide)
    assert after.mean() < 0.1 * before.mean()
    assert before.mean() - after.mean() > 5 * math.hypot(before.std(), after.std()) / math.sqrt(20)


def mmds_on(x, guide):
    torch.manual_seed(0)
    objective, elbo = InfoVAE(1.0, 1.0), dist.Normal(0.0, 1.0).log_prob(x).mean()
    with torch.no_grad():
        return torch.stack([elbo - objective.bound(Likelihood(), guide, x).mean() for _ in range(20)])


def test_a_delta_guide_makes_it_the_wasserstein_autoencoder(pair):
    model, _, x = pair
    guide = Delta(model, x, hidden=(8,))
    bound = InfoVAE(1.0, 10.0).bound(model, guide, x)
    gradients = torch.autograd.grad(bound.sum(), list(guide.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    result = pvae.fit(model, guide, x, objective=InfoVAE(), steps=60, lr=1e-2, step_mode="traced")
    assert result.step_mode == "traced"
    assert result.losses[-10:].mean() < result.losses[:10].mean()


def test_what_info_vae_cannot_take_is_refused(pair):
    model, guide, x = pair
    with pytest.raises(ValueError, match="holds 1 datum; choose a batch_size that leaves no batch of 1"):
        InfoVAE().bound(model, guide, x[:1])
    for options, message in (
        ({"information": 1.5}, "information must be a finite number of at most 1, got 1.5"),
        (
            {"information": -1.0, "divergence": 1.0},
            "divergence must be a finite number of at least 2, got 1.0",
        ),
        ({"kernel": "gauss"}, "unknown kernel 'gauss': the choices are imq, rbf"),
        ({"scale": 0.0}, "scale must be a finite number of at least 1e-15 and of at most"),
    ):
        with pytest.raises(ValueError, match=message):
            InfoVAE(**options)


# --- both


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [lambda: BetaTCVAE(num_data=64), lambda: InfoVAE(0.5)], ids=["tc", "info"])
def test_both_train_traced_in_either_precision_and_ignore_the_schedule_in_reports(make, dtype):
    torch.manual_seed(0)
    x = torch.rand(64, 12, dtype=dtype).round()
    model = VAE((12,), 3).to(dtype)
    guide = MeanField(model, x, hidden=(8,))
    assert make().bound(model, guide, x).dtype == dtype
    data = pvae.data.DataSet("x", train=x, valid=x, kind="binary")
    reports = [
        pvae.fit(
            model, guide, data, objective=make(), epochs=1, lr=1e-9, kl_schedule=schedule, step_mode="eager"
        ).history
        for schedule in (None, lambda step: 0.0)
    ]
    for key in ("train_bound", "valid_bound"):
        assert reports[0][0][key] == pytest.approx(reports[1][0][key], rel=1e-5)
    result = pvae.fit(model, guide, x, objective=make(), steps=40, batch_size=24, lr=1e-2, step_mode="traced")
    assert result.step_mode == "traced"
    assert result.losses[-5:].mean() < result.losses[:5].mean()
