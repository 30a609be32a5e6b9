"""Priors against known answers: integrals, samples, closed forms, and gradients written by hand."""

import copy
import math

import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal

import pvae
from pvae.estimators import ImportanceSampling
from pvae.guides import IAF, Delta, FullCovariance, MeanField, PlanarFlow
from pvae.models import VAE, likelihoods
from pvae.models.priors import (
    ExemplarPrior,
    FlowPrior,
    Gaussian,
    GaussianMixture,
    StandardNormal,
    VampPrior,
    pseudo_inputs_near,
)
from pvae.nets import MLP
from pvae.objectives import ELBO, IWAE
from pvae.pair.aggregate import log_aggregate_posterior
from pvae.pair.store import private_store

X = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0)).round().double()


def vae(prior, latent_dim=2):
    return VAE((1, 4, 4), latent_dim, prior=prior, decoder=MLP(latent_dim, (5,), (1, 4, 4))).double()


def tied(inputs, latent_dim=2, family=MeanField, spread=3.0, prior=VampPrior):
    """A VAE with a VampPrior (or its kin), and its guide, whose posteriors are well apart."""
    torch.manual_seed(1)
    model = vae(prior(latent_dim, inputs), latent_dim)
    guide = family(model, X, hidden=(6,)).double()
    with torch.no_grad():
        guide.encoder.head.weight.mul_(spread)
    model.prior.tie(guide)
    return model, guide


def moved(prior, scale=0.5):
    """The prior with parameters that differ from its start."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return prior.double()


def in_one_dim(name):
    """A prior over one number, and what keeps it alive."""
    if name == "VampPrior":
        return tied(pseudo_inputs_near(X, 5), 1)[0].prior
    if name == "ExemplarPrior":
        return moved(tied(X, 1, prior=ExemplarPrior)[0].prior)
    return moved({"Gaussian": Gaussian, "GaussianMixture": GaussianMixture, "FlowPrior": FlowPrior}[name](1))


ONE_DIM = ["Gaussian", "GaussianMixture", "FlowPrior", "VampPrior", "ExemplarPrior"]


@pytest.mark.parametrize("name", ONE_DIM)
def test_density_integrates_to_one_and_draws_follow_it(name):
    with torch.no_grad(), private_store():
        prior = in_one_dim(name)()
        grid = torch.linspace(-40, 40, 80_001, dtype=torch.float64)
        cumulative = torch.cumulative_trapezoid(prior.log_prob(grid[:, None]).exp(), grid)
        assert cumulative[-1] == pytest.approx(1.0, abs=1e-6)
        torch.manual_seed(3)
        draws = prior.sample((4000,))[:, 0]
    levels = cumulative[((draws + 40) / 80 * 80_000).long()]
    assert stats.kstest(levels.numpy(), "uniform").pvalue > 1e-5


def test_flow_in_two_dims_integrates_to_one_and_has_the_moments_of_its_draws():
    prior = moved(FlowPrior(2, length=3, step_hidden=(8,)), 0.3)
    side = torch.linspace(-25, 25, 1001, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    torch.manual_seed(4)
    with torch.no_grad():
        mass = prior().log_prob(grid).exp() * (side[1] - side[0]) ** 2
        draws = prior().sample((20_000,))
    assert mass.sum() == pytest.approx(1.0, abs=1e-4)
    for power in (grid, grid**2, grid.prod(1, keepdim=True)):
        expected = (mass[:, None] * power).sum(0)
        drawn = {id(grid): draws}.get(id(power), draws**2 if power.shape[1] == 2 else draws.prod(1, keepdim=True))
        assert ((drawn.mean(0) - expected).abs() < 5 * drawn.std(0) / math.sqrt(len(drawn)) + 1e-3).all()


def test_flow_starts_near_the_standard_normal_and_takes_any_leading_dims():
    torch.manual_seed(0)
    prior, z = FlowPrior(3).double(), torch.randn(4, 5, 3).double()
    found, expected = prior().log_prob(z), StandardNormal(3).double()().log_prob(z)
    assert found.shape == (4, 5)
    assert (found - expected).abs().max() < 0.5
    torch.testing.assert_close(found[1, 2], prior().log_prob(z[1, 2]))


# --- closed forms


@pytest.mark.parametrize("make", [Gaussian, GaussianMixture])
def test_log_p_of_a_linear_vae(make):
    """p(x) = sum_m w_m N(x; A mu_m + b, A S_m A' + s2 I)."""
    torch.manual_seed(5)
    prior = moved(make(2))
    likelihood = likelihoods.Gaussian(0.7)
    model = VAE((4,), 2, prior=prior, likelihood=likelihood, decoder=MLP(2, (), (4,))).double()
    x = torch.randn(6, 4).double()
    guide = FullCovariance(model, x, hidden=(8,))
    pvae.fit(model, guide, x, train="guide", steps=300, batch_size=6, lr=3e-2, step_mode="traced", progress=False)
    answer = pvae.log_marginal(model, guide, x, ImportanceSampling(20_000))
    with torch.no_grad():
        affine = model.decoder.layers[-1]
        locs, scales = prior.loc.reshape(-1, 2), prior.scale.reshape(-1, 2)
        weights = prior.logits.log_softmax(0) if isinstance(prior, GaussianMixture) else torch.zeros(1)
        covariance = (affine.weight * scales[:, None].square()) @ affine.weight.T + 0.49 * torch.eye(4)
        components = MultivariateNormal(locs @ affine.weight.T + affine.bias, covariance)
        exact = (weights + components.log_prob(x[:, None])).logsumexp(-1)
    assert abs(answer.mean - exact.mean()) < 5 * answer.mc_standard_error
    assert answer.mc_standard_error < 0.03


def standard_guide(model):
    """The guide whose posterior is N(0, I) whatever the data."""
    guide = MeanField(model, X, hidden=(3,)).double()
    with torch.no_grad():
        guide.encoder.head.weight.zero_()
        raw = math.log(math.expm1(1 - guide.min_scale))
        guide.encoder.head.bias.copy_(torch.tensor([0.0, 0.0, raw, raw], dtype=torch.float64))
    return guide


def test_vamp_prior_of_a_standard_posterior_is_the_standard_normal():
    torch.manual_seed(0)
    model = vae(VampPrior(2, X[:1]))
    guide = standard_guide(model)
    model.prior.tie(guide)
    plain = VAE((1, 4, 4), 2, decoder=model.decoder).double()
    z = 3 * torch.randn(50, 2).double()
    with private_store(model):
        torch.testing.assert_close(model.prior().log_prob(z), plain.prior().log_prob(z), rtol=0, atol=1e-12)
    torch.manual_seed(0)
    found = pvae.log_weights(model, guide, X, 3)
    torch.manual_seed(0)
    torch.testing.assert_close(found.values, pvae.log_weights(plain, guide, X, 3).values)


@pytest.mark.parametrize("family", [MeanField, FullCovariance, IAF])
def test_vamp_prior_at_all_data_is_the_aggregate_posterior(family):
    model, guide = tied(X, family=family)
    z = 2 * torch.randn(7, 2).double()
    with private_store(model, guide), torch.no_grad():
        expected = log_aggregate_posterior(guide, {"z": z}, [(X[:5],), (X[5:],)])
        torch.testing.assert_close(model.prior().log_prob(z), expected)
        before = model.prior().log_prob(z)
        model.prior.free.copy_(model.prior.free[torch.randperm(12)])
        torch.testing.assert_close(model.prior().log_prob(z), before)


@pytest.mark.slow
def test_exemplar_prior_by_hand_and_on_subsets():
    model, guide = tied(X, prior=lambda dim, x: ExemplarPrior(dim, x, subset=3))
    z = torch.randn(4, 2, dtype=torch.float64)
    locs = guide.encoder(X)[:, :2]
    components = Normal(locs, model.prior.log_scale.exp()).log_prob(z[:, None]).sum(-1)
    with private_store(model), torch.no_grad():
        subsets = torch.stack([model.prior().log_prob(z) for _ in range(3000)])
        model.eval()
        torch.testing.assert_close(model.prior().log_prob(z), components.logsumexp(1) - math.log(12))
    # The density itself is unbiased, and any subset is one of three exemplars.
    density = subsets.exp()
    error = density.std(0) / math.sqrt(len(density))
    assert ((density.mean(0) - components.exp().mean(1)).abs() < 5 * error).all()
    result = pvae.fit(model, guide, X, steps=4, step_mode="traced", progress=False)
    assert result.step_mode == "traced"
    assert pvae.log_marginal(model, guide, X, ImportanceSampling(50)).values.isfinite().all()


# --- gradients by hand


def by_hand(guide, num_samples, frozen):
    """Draws (K, B, 2) and their log q (K, B) from torch alone; with `frozen`, log q has no gradient of its own."""
    torch.manual_seed(9)
    numbers = guide.encoder(X)
    loc, scale = numbers[:, :2], guide.min_scale + nn.functional.softplus(numbers[:, 2:])
    z = loc + scale * torch.randn(num_samples, 12, 2, dtype=torch.float64)
    if frozen:
        loc, scale = loc.detach(), scale.detach()
    log_guide = Normal(loc, scale).log_prob(z).sum(-1)
    return z, log_guide


def log_joint(model, guide, z, frozen_prior=False):
    u = guide.encoder(model.prior.free.clamp(0, 1))
    if frozen_prior:
        u = u.detach()
    components = Normal(u[:, :2], guide.min_scale + nn.functional.softplus(u[:, 2:]))
    log_prior = components.log_prob(z[..., None, :]).sum(-1).logsumexp(-1) - math.log(len(u))
    return log_prior + Bernoulli(logits=model.decoder(z)).log_prob(X).sum((-1, -2, -3))


def gradients(model, guide, value):
    leaves = [*model.parameters(), *guide.parameters()]
    return torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("gradient", ["pathwise", "stl"])
def test_gradient_of_the_elbo_flows_through_both_uses_of_the_guide(gradient):
    model, guide = tied(pseudo_inputs_near(X, 5))
    z, log_guide = by_hand(guide, 1, frozen=gradient == "stl")
    expected = gradients(model, guide, (log_joint(model, guide, z) - log_guide).mean())
    torch.manual_seed(9)
    found = gradients(model, guide, ELBO(gradient=gradient).bound(model, guide, X).mean())
    torch.testing.assert_close(found, expected)


def test_gradient_of_iwae_flows_through_both_uses_of_the_guide():
    model, guide = tied(pseudo_inputs_near(X, 5))
    z, log_guide = by_hand(guide, 3, frozen=False)
    expected = gradients(model, guide, (log_joint(model, guide, z) - log_guide).logsumexp(0).mean())
    torch.manual_seed(9)
    found = gradients(model, guide, IWAE(3).bound(model, guide, X).mean())
    torch.testing.assert_close(found, expected)
    # The doubly reparameterised one: w for what log p knows, w^2 for the path through the draws.
    z, log_guide = by_hand(guide, 3, frozen=True)
    through_draws = log_joint(model, guide, z, frozen_prior=True) - log_guide
    weights = through_draws.softmax(0).detach()
    fixed = log_joint(model, guide, z.detach())
    guides, models = list(guide.parameters()), list(model.parameters())
    at_draws = torch.autograd.grad((weights**2 * through_draws).sum(0).mean(), guides, retain_graph=True)
    of_prior = torch.autograd.grad((weights * fixed).sum(0).mean(), [*models, *guides])
    torch.manual_seed(9)
    found = gradients(model, guide, IWAE(3, gradient="dreg").bound(model, guide, X).mean())
    torch.testing.assert_close(found[: len(models)], of_prior[: len(models)])
    torch.testing.assert_close(
        found[len(models) :], tuple(a + b for a, b in zip(of_prior[len(models) :], at_draws, strict=True))
    )


# --- the tie


def test_parameters_of_the_guide_have_one_home():
    model, guide = tied(pseudo_inputs_near(X, 5))
    result = pvae.fit(model, guide, X, steps=4, step_mode="traced", progress=False)
    assert result.step_mode == "traced"
    assert len(result.parameters) == len([*model.parameters(), *guide.parameters()])
    assert not {id(p) for p in model.parameters()} & {id(p) for p in guide.parameters()}


def test_the_tied_guide_is_not_refitted_alone_and_another_one_is():
    model, guide = tied(pseudo_inputs_near(X, 5), spread=1.0)
    with pytest.raises(ValueError, match="has no parameter that the model does not register too"):
        pvae.fit(model, guide, X, train="guide", steps=2, progress=False)
    before = [parameter.clone() for parameter in [*model.parameters(), *guide.parameters()]]
    fresh = MeanField(model, X, hidden=(6,)).double()
    pvae.fit(model, fresh, X, train="guide", steps=60, lr=1e-2, progress=False)
    assert all(map(torch.equal, before, [*model.parameters(), *guide.parameters()]))
    a, b = (
        pvae.log_marginal(model, each, X, ImportanceSampling(4000), seed=i) for i, each in enumerate((guide, fresh))
    )
    assert abs(a.mean - b.mean) < 5 * math.hypot(a.mc_standard_error, b.mc_standard_error)


def test_copies_keep_a_tie():
    model, guide = tied(pseudo_inputs_near(X, 5))
    both_model, both_guide = copy.deepcopy((model, guide))
    alone = copy.deepcopy(model)
    expected = pvae.log_marginal(model, guide, X).values
    with torch.no_grad():
        guide.encoder.head.bias.add_(5.0)
    torch.testing.assert_close(pvae.log_marginal(both_model, both_guide, X).values, expected)
    torch.testing.assert_close(pvae.log_marginal(alone, both_guide, X).values, expected)
    with torch.no_grad():
        both_guide.encoder.head.bias.add_(5.0)
    assert (pvae.log_marginal(both_model, both_guide, X).values - expected).abs().min() > 1e-3
    torch.testing.assert_close(
        pvae.log_marginal(both_model, both_guide, X).values, pvae.log_marginal(model, guide, X).values
    )


def test_draws_of_the_model_come_from_the_prior():
    model, _ = tied(pseudo_inputs_near(X, 5), 1)
    drawn = pvae.sample(model, 4000)["z"][:, 0]
    with private_store(model):
        torch.manual_seed(8)
        other = model.prior().sample((4000,))[:, 0]
    assert stats.ks_2samp(drawn.numpy(), other.numpy()).pvalue > 1e-5


def test_start_near_data_leaves_every_value_a_gradient():
    start = pseudo_inputs_near(X, 20)
    assert start.shape == (20, 1, 4, 4)
    assert ((start > 0) & (start < 1)).all()
    nearest = (start[:12, None].double() - X).abs().amax((2, 3, 4)).argmin(1)
    assert sorted(nearest.tolist()) == list(range(12))


# --- mistakes


def test_mistakes_are_refused_in_one_line():
    for make, message in (
        (lambda: GaussianMixture(2, 0), "num_components must be a whole number of at least 1, got 0"),
        (lambda: FlowPrior(2, 0), "length must be a whole number of at least 1, got 0"),
        (lambda: VampPrior(2, torch.zeros(3)), r"pseudo_inputs must be .* one row per datum, got a tensor \(3,\)"),
        (lambda: VampPrior(2, X, bounds=(1.0, 0.0)), "bounds must be a least and a larger number"),
        (lambda: ExemplarPrior(2, X, 0), "subset must be a whole number of at least 1, got 0"),
        (lambda: ExemplarPrior(2, torch.zeros(3)), r"exemplars must be .* one row per datum, got a tensor \(3,\)"),
        (lambda: pseudo_inputs_near(X, 0), "num must be a whole number of at least 1, got 0"),
        (lambda: VampPrior(2, X).tie("mean_field"), "guide must be a built module, got 'mean_field'"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_a_guide_that_does_not_serve_is_refused():
    model = vae(VampPrior(2, X))
    with pytest.raises(ValueError, match=r"VampPrior has no density yet; call model.prior.tie\(guide\)"):
        pvae.log_marginal(model, MeanField(model, X), X)
    other, wider = VAE((1, 4, 4), 3).double(), VAE((1, 4, 8), 2).double()
    for guide, reason in (
        (PlanarFlow(model, X).double(), "NotImplementedError"),
        (Delta(model, X).double(), "from points"),
        (MeanField(other, X), "other shapes"),
        (MeanField(wider, torch.cat([X, X], -1)), "was built for data of shape"),
    ):
        with pytest.raises(ValueError, match=f"VampPrior needs a guide with one latent site.*{reason}.*use MeanField"):
            model.prior.tie(guide)
