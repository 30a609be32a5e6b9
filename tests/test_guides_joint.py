"""Joint, local and refined guides against posteriors that are known."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

import pvae
from pvae.guides import IAF, FullCovariance, Local, LowRank, MeanField, Mixture, SemiAmortized
from pvae.guides.mixture import _DiagonalMixture
from pvae.models import LinearGaussian
from pvae.objectives import ELBO, IWAE
from pvae.pair.contexts import seeded
from pvae.pair.look import read_layout
from pvae.pair.run import run_pair
from pvae.pair.store import private_store

X_DIM, LATENT_DIM, NUM_DATA = 8, 3, 60


@pytest.fixture
def truth():
    """A model with a correlated posterior, and data drawn from it."""
    torch.manual_seed(0)
    model = LinearGaussian(X_DIM, LATENT_DIM).double()
    model.log_scale.data.fill_(math.log(0.7))
    model.loc.data.normal_()
    model.requires_grad_(False).eval()
    return model, pvae.sample(model, NUM_DATA, like=torch.zeros(1, X_DIM, dtype=torch.float64))["x"]


def least_gap(model):
    """log p(x) less the best ELBO of independent Gaussians, 1/2 (sum_i log P_ii - log |P|) with P the precision."""
    precision = model.weight.T @ model.weight / math.exp(2 * model.log_scale) + torch.eye(LATENT_DIM).double()
    return 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()


def fit(model, guide, x, steps=700, lr=3e-2):
    objective = ELBO(4, gradient="stl")
    return pvae.fit(model, guide, x, objective=objective, steps=steps, batch_size=len(x), lr=lr, schedule="cosine")


def run(model, guide, x, num_samples, given=None, copies=False):
    """One run of the pair, without a history; with `copies`, the particles are copies of the batch."""
    with private_store(model, guide), torch.no_grad():
        layout = read_layout(model, guide, (x,), num_samples)
        if copies:
            layout = replace(layout, vectorizes=False)
        with seeded(0):
            return run_pair(model, guide, (x,), num_samples, layout, given=given)


def site(model, guide, x):
    return run(model, guide, x, 1).guide["z"]["fn"]


def gap(model, guide, x):
    """Mean KL(q(z | x) || p(z | x)) in closed form, of a guide that is one Gaussian per datum."""
    fn = site(model, guide, x)
    if hasattr(fn, "factor"):
        covariance = torch.diag_embed(fn.scale**2) + fn.factor @ fn.factor.mT
    else:
        covariance = torch.diag_embed(fn.base_dist.scale**2)
    return kl_divergence(MultivariateNormal(fn.mean, covariance), model.posterior(x)).mean().item()


def test_low_rank_of_full_rank_closes_the_gap(truth):
    model, x = truth
    guide = LowRank(model, x, encoder=nn.Identity(), rank=LATENT_DIM).double()
    fit(model, guide, x)
    assert gap(model, guide, x) < 0.02 < least_gap(model)


def test_low_rank_density_is_that_of_its_covariance(truth):
    model, x = truth
    fn = site(model, LowRank(model, x, rank=2).double(), x)
    z = torch.randn(5, NUM_DATA, LATENT_DIM, dtype=torch.float64)
    full = MultivariateNormal(fn.loc, torch.diag_embed(fn.scale**2) + fn.factor @ fn.factor.mT)
    torch.testing.assert_close(fn.log_prob(z), full.log_prob(z))


def test_low_rank_density_keeps_its_digits_in_float32(truth):
    _, x = truth
    model = LinearGaussian(X_DIM, LATENT_DIM)
    guide = LowRank(model, x.float(), rank=2)
    guide.encoder.head.bias.data[LATENT_DIM : 2 * LATENT_DIM] = -6
    fn = site(model, guide, x.float())
    factor = fn.factor.double()
    full = MultivariateNormal(fn.loc.double(), torch.diag_embed(fn.scale.double() ** 2) + factor @ factor.mT)
    with seeded(0):
        z = fn.rsample()
    torch.testing.assert_close(fn.log_prob(z).double(), full.log_prob(z.double()), rtol=1e-5, atol=1e-4)


def test_low_rank_draws_have_its_covariance(truth):
    model, x = truth
    fn = site(model, LowRank(model, x, rank=2).double(), x[:1])
    with seeded(1):
        z = fn.rsample((40_000,))[:, 0] - fn.loc[0]
    covariance = (torch.diag_embed(fn.scale**2) + fn.factor @ fn.factor.mT)[0]
    products = z[:, :, None] * z[:, None, :]
    error = products.std(0) / math.sqrt(len(z))
    assert ((products.mean(0) - covariance).abs() < 5 * error).all()


def test_local_reaches_the_best_bound_of_its_family_and_no_encoder_passes_it(truth):
    model, x = truth
    torch.manual_seed(1)
    local, amortised = Local(model, x).double(), MeanField(model, x, hidden=(5,)).double()
    for guide in (local, amortised):
        fit(model, guide, x, lr=0.1)
    least = least_gap(model)
    assert least - 1e-9 <= gap(model, local, x) < least + 2e-3
    assert gap(model, local, x) < gap(model, amortised, x)


def test_local_serves_its_data_in_any_batch_and_order_and_no_others(truth):
    model, x = truth
    guide = Local(model, x).double()
    guide.table.numbers.data.normal_()
    whole = site(model, guide, x).mean
    order = torch.randperm(NUM_DATA)
    torch.testing.assert_close(site(model, guide, x[order]).mean, whole[order])
    torch.testing.assert_close(site(model, guide, x[7:8]).mean, whole[7:8])
    with pytest.raises(ValueError, match=r"numbers for the 60 data.*1 of the batch of 2 are others"):
        pvae.log_weights(model, guide, torch.stack([x[0], x[1] + 1e-9]), 2)


def test_local_knows_binary_data_apart():
    x = torch.rand(2000, 16, generator=torch.Generator().manual_seed(0)).round().unique(dim=0)
    model = pvae.models.VAE((16,), 2)
    hashes = Local(model, x).table.hashes
    assert len(hashes.unique()) == len(x)


@pytest.mark.parametrize("family", [MeanField, IAF])
def test_local_starts_at_a_trained_guide_and_leaves_it_alone(truth, family):
    model, x = truth
    trained = family(model, x, hidden=(5,)).double()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    guide = Local(model, x, family=lambda *_: trained)
    start, local = (pvae.encode(each, x, num_samples=2)["z"] for each in (trained, guide))
    torch.testing.assert_close(local, start)
    fit(model, guide, x, steps=5)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert not torch.equal(pvae.encode(guide, x, num_samples=2)["z"], start)


@pytest.mark.slow
def test_local_takes_any_family(truth):
    model, x = truth
    guide = Local(model, x, family=lambda *pair: LowRank(*pair, rank=LATENT_DIM)).double()
    fit(model, guide, x, lr=0.1)
    assert gap(model, guide, x) < 0.02


def test_refinement_brings_a_bad_encoder_nearer_to_the_best_bound(truth):
    model, x = truth
    torch.manual_seed(1)
    bad = MeanField(model, x, encoder=nn.Identity()).double()
    gaps = [gap(model, bad, x)]
    for num_steps in (0, 1, 5, 20):
        guide = SemiAmortized(model, x, encoder=nn.Identity(), num_steps=num_steps).double()
        guide.guide.encoder.load_state_dict(bad.encoder.state_dict())
        gaps.append(gap(model, guide, x))
    assert gaps[0] == pytest.approx(gaps[1])
    assert gaps[1] > gaps[2] > gaps[3] > gaps[4] > least_gap(model)
    assert gaps[4] < 0.1 * gaps[0]


@pytest.mark.parametrize("family", [MeanField, FullCovariance])
@pytest.mark.parametrize("copies", [False, True])
def test_refined_numbers_do_not_depend_on_particles_or_neighbours(truth, family, copies):
    model, x = truth
    guide = SemiAmortized(model, x, hidden=(5,), family=family).double()
    one = run(model, guide, x, 1).guide["z"]["fn"]
    five = run(model, guide, x, 5, copies=copies).guide["z"]["fn"]
    for name in ("mean", "variance"):
        alone, beside = getattr(one, name), getattr(five, name).reshape(5, NUM_DATA, LATENT_DIM)
        torch.testing.assert_close(beside, alone.expand_as(beside))
        torch.testing.assert_close(getattr(site(model, guide, x[3:4]), name), alone[3:4])


def test_a_step_too_long_is_not_taken(truth):
    model, x = truth
    start = SemiAmortized(model, x, hidden=(5,), num_steps=0).double()
    guide = SemiAmortized(model, x, hidden=(5,), lr=1e6, num_samples=64, num_steps=8).double()
    guide.load_state_dict(start.state_dict())
    assert gap(model, guide, x) <= gap(model, start, x)


def test_the_gradient_goes_around_the_steps_or_through_them(truth):
    model, x = truth
    gradients = []
    for differentiable in (False, True):
        torch.manual_seed(2)
        guide = SemiAmortized(model, x, hidden=(5,), num_samples=500, lr=0.02, differentiable=differentiable).double()
        with seeded(3):
            ELBO(64).bound(model, guide, x[:4]).mean().backward()
        gradients.append(guide.guide.encoder.head.bias.grad[:LATENT_DIM])
    around, through = gradients
    # Of a quadratic with Hessian -P, d lambda_5 / d lambda_0 = (I - lr P)^5.
    precision = torch.linalg.inv(model.posterior(x).covariance_matrix[0])
    factor = torch.linalg.matrix_power(torch.eye(LATENT_DIM).double() - 0.02 * precision, 5)
    assert (through - factor @ around).norm() < 0.1 * (through - around).norm()


def test_refinement_leaves_nothing_in_the_callers_trace(truth):
    model, x = truth
    guide = SemiAmortized(model, x, hidden=(5,), num_steps=2).double()
    with private_store(model, guide), pyro.poutine.trace() as outer:
        guide(x)
    names = [name for name, node in outer.trace.nodes.items() if node["type"] == "sample"]
    assert names == ["data", "z"]


class Square(nn.Module):
    """x = z^2 + noise: two modes, one per sign of z."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z**2, 0.3).to_event(1), obs=x)


def test_a_mixture_finds_both_modes():
    torch.manual_seed(0)
    model, x = Square(), (0.5 + 1.5 * torch.rand(30, 1)).double()
    z = torch.linspace(-6, 6, 4001).double()[:, None, None].expand(-1, 30, 1)
    log_joint = dist.Normal(0, 1).log_prob(z) + dist.Normal(z**2, 0.3).log_prob(x)
    log_p = (log_joint[..., 0].logsumexp(0) + math.log(12 / 4000)).mean().item()
    gaps = {}
    for name, guide in (("mean field", MeanField(model, x)), ("mixture", Mixture(model, x))):
        pvae.fit(model, guide.double(), x, objective=ELBO(8), steps=400, batch_size=30, lr=1e-2, schedule="cosine")
        gaps[name] = log_p - run(model, guide, x, 4000).log_weights().values.mean().item()
    # One mode of two equal ones misses log 2.
    assert gaps["mean field"] > math.log(2) - 0.01
    assert 0 < gaps["mixture"] < 0.25


def mixture(parameters):
    logits, loc, scale = parameters
    return _DiagonalMixture(dist.Categorical(logits=logits), dist.Normal(loc, scale).to_event(1))


@pytest.fixture
def components():
    """Logits, locs and scales of 3 components in 2 dims, a grid of z and its cell's area."""
    torch.manual_seed(0)
    parameters = [torch.randn(3), torch.randn(3, 2), 0.5 + torch.rand(3, 2)]
    axis = torch.linspace(-10, 10, 801, dtype=torch.float64)
    return [each.double() for each in parameters], torch.cartesian_prod(axis, axis), (axis[1] - axis[0]) ** 2


def test_a_mixture_of_any_support_integrates_to_one(components):
    parameters, z, area = components
    assert (mixture(parameters).log_prob(z).exp().sum() * area).item() == pytest.approx(1, abs=1e-8)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(2.0, torch.ones(1).double()).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1), obs=x)

    x = torch.randn(2, 1).double()
    guide = Mixture(model, x, learn_weights=True).double()
    values = torch.linspace(-15, 15, 20_001).double().exp()
    given = {"z": values[:, None, None].expand(-1, 2, 1)}
    density = run(model, guide, x, len(values), given=given).log_weights().log_guide.exp()
    torch.testing.assert_close(torch.trapezoid(density, values, dim=0), torch.ones(2).double(), atol=1e-4, rtol=0)


def test_pathwise_gradients_of_a_mixture_are_unbiased(components):
    parameters, z, area = components

    def f(z):
        return torch.sin(z[..., 0]) * z[..., 1] + z[..., 1] ** 3 + z[..., 0] ** 2

    leaves = [each.requires_grad_() for each in parameters]
    expected = torch.autograd.grad((mixture(leaves).log_prob(z).exp() * f(z)).sum() * area, leaves)
    expected = torch.cat([each.flatten() for each in expected])
    # One copy of the parameters per draw keeps the gradients of the draws apart.
    copies = [each.detach().expand(100_000, *each.shape).clone().requires_grad_() for each in parameters]
    draws = torch.autograd.grad(f(mixture(copies).rsample()).sum(), copies)
    draws = torch.cat([each.flatten(1) for each in draws], 1)
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - expected).abs() < 5 * error).all()


def test_a_mixture_of_one_is_mean_field(truth):
    model, x = truth
    single, plain = Mixture(model, x, num_components=1).double(), MeanField(model, x).double()
    single.load_state_dict(plain.state_dict())
    z = torch.randn(7, NUM_DATA, LATENT_DIM).double()
    one, other = site(model, single, x), site(model, plain, x)
    torch.testing.assert_close(one.log_prob(z), other.log_prob(z))
    with seeded(0):
        draws = (one.rsample((2000,)) - other.mean) / other.stddev
    assert draws.mean().abs() < 5 / math.sqrt(draws.numel())
    assert (draws.var() - 1).abs() < 5 * math.sqrt(2 / draws.numel())


@pytest.mark.parametrize(
    "make",
    [LowRank, Mixture, lambda *pair, **options: Mixture(*pair, learn_weights=True, **options)],
    ids=["LowRank", "Mixture", "Mixture, learnt weights"],
)
@pytest.mark.parametrize(
    ("plain", "other"),
    [(ELBO(20), ELBO(20, gradient="stl")), (IWAE(20), IWAE(20, gradient="dreg"))],
    ids=["stl", "dreg"],
)
def test_path_derivatives_agree_with_the_plain_gradient(truth, make, plain, other):
    model, x = truth
    torch.manual_seed(0)
    guide = make(model, x, hidden=(5,)).double()
    means, errors = [], []
    for objective in (plain, other):
        draws = []
        for _ in range(80):
            guide.zero_grad()
            # Copies of one datum are independent draws of its gradient.
            objective.bound(model, guide, x[:1].expand(40, -1)).mean().backward()
            draws.append(guide.encoder.head.bias.grad)
        draws = torch.stack(draws)
        means.append(draws.mean(0))
        errors.append(draws.std(0) / math.sqrt(len(draws)))
    assert ((means[0] - means[1]).abs() < 5 * torch.hypot(*errors) + 1e-12).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda *pair: LowRank(*pair, rank=0), "rank must be a whole number of at least 1, got 0; .*MeanField"),
        (lambda *pair: Mixture(*pair, num_components=1.5), "num_components must be .* got 1.5; try 5"),
        (lambda *pair: SemiAmortized(*pair, num_steps=-1), "num_steps must be .* at least 0, got -1; try 5"),
        (lambda *pair: SemiAmortized(*pair, lr=0), "lr must be a finite number above 0, got 0; try 0.05"),
        (
            lambda *pair: Local(*pair, family=lambda *_: nn.Identity()),
            "amortized guide with an encoder, got Identity; use",
        ),
        (lambda *pair: Local(*pair, family=SemiAmortized), "amortized guide with an encoder, got SemiAmortized; use"),
        (lambda *pair: Local(*pair, family=Local), "amortized guide with an encoder, got Local; use"),
    ],
)
def test_bad_input_is_one_line_with_the_fix(truth, make, words):
    with pytest.raises(ValueError, match=words) as caught:
        make(*truth)
    assert "\n" not in str(caught.value)
