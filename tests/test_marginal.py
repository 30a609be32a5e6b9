"""Discrete sites of a model that are summed out of its log weights, against closed forms and sums by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn
from torch.distributions import MultivariateNormal

import pvae
from pvae import truth
from pvae.estimators import (
    DefensiveMixture,
    Enumeration,
    GuideMixture,
    ImportanceSampling,
    Jackknife,
    PriorSampling,
    Quadrature,
)
from pvae.estimators.enumeration import joint_states
from pvae.guides import Bernoulli, Categorical, MeanField
from pvae.objectives import ELBO, IWAE
from pvae.objectives.baselines import LeaveOneOut
from pvae.pair.contexts import seeded
from pvae.pair.look import read_layout
from pvae.pair.run import run_pair
from pvae.pair.store import private_store

DOUBLE = torch.float64
PARALLEL = {"enumerate": "parallel"}
NUM_DATA = 7


class Clusters(nn.Module):
    """y one of 3, z | y ~ N(loc_y, scale_y^2) in the plane, x | z ~ N(W z, noise^2) in 4 dims."""

    def __init__(self, infer=PARALLEL):
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def fixed(*shape):
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=DOUBLE))

        self.logits, self.loc, self.log_scale = fixed(3), fixed(3, 2), fixed(3, 2)
        self.weight, self.noise = fixed(4, 2), fixed(4)
        self.infer = dict(infer)

    def forward(self, x):
        pyro.module("model", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer=self.infer)
            z = pyro.sample("z", dist.Normal(self.loc[y], self.log_scale[y].exp()).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T, self.noise.exp()).to_event(1), obs=x)

    def log_prior(self, z):
        """log p(z), the last dim of z being its event."""
        log_probs = dist.Normal(self.loc, self.log_scale.exp()).log_prob(z[..., None, :]).sum(-1)
        return (self.logits.log_softmax(-1) + log_probs).logsumexp(-1)

    def log_likelihood(self, x, z):
        return dist.Normal(z @ self.weight.T, self.noise.exp()).log_prob(x).sum(-1)

    def log_prob(self, x):
        parts = []
        for y in range(3):
            spread = self.weight @ torch.diag((2 * self.log_scale[y]).exp()) @ self.weight.T
            marginal = MultivariateNormal(self.weight @ self.loc[y], spread + torch.diag((2 * self.noise).exp()))
            parts.append(self.logits.log_softmax(-1)[y] + marginal.log_prob(x))
        return torch.stack(parts).logsumexp(0)


def data(*shape):
    return torch.randn(NUM_DATA, *shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def clusters():
    """The model, a guide over z alone that was trained a little, and data."""
    torch.manual_seed(0)
    model, x = Clusters(), data(4)
    guide = MeanField(model, x, hidden=(8,))
    objective = IWAE(20)  # the ELBO would leave the tails of a mixture uncovered
    pvae.fit(model, guide, x, objective=objective, train="guide", steps=200, lr=1e-2, batch_size=NUM_DATA)
    return model, guide, x


def test_a_guide_leaves_out_what_is_summed_and_the_pair_is_sound(clusters):
    model, guide, x = clusters
    assert [site.name for site in guide.sites] == ["z"]
    assert pvae.check(model, guide, x) == []


@pytest.mark.parametrize(
    "estimator",
    [ImportanceSampling(4000), PriorSampling(20_000), DefensiveMixture(4000)],
    ids=lambda e: type(e).__name__,
)
def test_log_p_is_that_of_the_mixture(clusters, estimator):
    model, guide, x = clusters
    found = pvae.log_marginal(model, guide, x, estimator)
    assert ((found.values - model.log_prob(x)).abs() < 5 * found.mc_standard_errors).all()


def test_quadrature_over_the_rest_is_exact(clusters):
    model, _, x = clusters
    found = pvae.log_marginal(model, None, x, Quadrature())
    assert (found.values - model.log_prob(x)).abs().max() < 1e-10


@pytest.mark.parametrize("num_samples", [1, 5])
def test_weights_and_gradients_are_those_of_the_sum_by_hand(num_samples):
    torch.manual_seed(0)
    model, x = Clusters(), data(4)
    guide = MeanField(model, x, hidden=(5,))
    parameters = [*model.parameters(), *guide.parameters()]
    with private_store(model, guide):
        layout = read_layout(model, guide, (x,), num_samples)
        run = run_pair(model, guide, (x,), num_samples, layout)
        parts, z = run.log_weights(), run.latents["z"]
        log_guide = run.guide["z"]["fn"].log_prob(run.guide["z"]["value"]).reshape(num_samples, NUM_DATA)
    assert z.shape == (num_samples, NUM_DATA, 2)
    torch.testing.assert_close(parts.log_prior, model.log_prior(z), rtol=0, atol=1e-10)
    torch.testing.assert_close(parts.log_likelihood, model.log_likelihood(x, z), rtol=0, atol=1e-10)
    by_hand = model.log_prior(z) + model.log_likelihood(x, z) - log_guide
    torch.testing.assert_close(parts.values, by_hand, rtol=0, atol=1e-10)
    bound = parts.values.logsumexp(0).sum()
    found = torch.autograd.grad(bound, parameters, retain_graph=True)
    for mine, other in zip(found, torch.autograd.grad(by_hand.logsumexp(0).sum(), parameters), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10)


def test_elbo_and_its_gradient_equal_those_of_trace_enum_from_the_same_draws():
    torch.manual_seed(0)
    model, x = Clusters(), data(4)
    guide = MeanField(model, x, hidden=(5,))
    parameters = [*model.parameters(), *guide.parameters()]
    losses = []
    for objective in (ELBO(), TraceEnum_ELBO(max_plate_nesting=1)):
        with private_store(model, guide), seeded(3):
            if isinstance(objective, ELBO):
                objective.bound(model, guide, x)  # finds out how to run the pair, by draws of its own
        with private_store(model, guide), seeded(3):
            losses.append(objective.differentiable_loss(model, guide, x))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-8)


def test_a_scale_of_the_whole_pair_scales_the_bound_and_not_the_weights():
    torch.manual_seed(0)
    model, x = Clusters(), data(4)
    guide = MeanField(model, x, hidden=(5,))
    pair, scaled = (model, guide), [pyro.poutine.scale(each, 0.1) for each in (model, guide)]
    bounds, weights = [], []
    for each in (pair, scaled):
        objective = ELBO(3)
        objective.bound(*each, x)
        with seeded(0):
            bounds.append(objective.bound(*each, x))
        with seeded(0):
            weights.append(pvae.log_weights(*each, x, 3).values)
    torch.testing.assert_close(bounds[1], 0.1 * bounds[0])
    torch.testing.assert_close(weights[1], weights[0])


@pytest.mark.parametrize("gradient", ["pathwise", "stl", "dreg", "score"])
def test_every_gradient_is_of_the_same_bound(clusters, gradient):
    model, guide, x = clusters
    baseline = LeaveOneOut() if gradient == "score" else None
    objective = IWAE(3, gradient=gradient, baseline=baseline)
    with seeded(0):
        objective.bound(model, guide, x)
    with seeded(0):
        bound = objective.bound(model, guide, x)
    with seeded(0):
        expected = pvae.log_weights(model, guide, x, 3).values
    with seeded(0):
        again = pvae.log_weights(model, guide, x, 3).values
    torch.testing.assert_close(again, expected)
    torch.testing.assert_close(bound, expected.logsumexp(0) - math.log(3))
    (-bound.mean()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in guide.parameters())
    guide.zero_grad()
    model.zero_grad()


@pytest.mark.parametrize("step_mode", ["eager", "traced"])
@pytest.mark.parametrize("objective", [ELBO(), IWAE(3, gradient="dreg")], ids=["ELBO", "IWAE"])
def test_training_raises_the_bound(step_mode, objective):
    torch.manual_seed(0)
    model, x = Clusters(), data(4)
    guide = MeanField(model, x, hidden=(5,))
    result = pvae.fit(model, guide, x, objective=objective, steps=60, lr=2e-2, batch_size=NUM_DATA, step_mode=step_mode)
    assert result.step_mode == step_mode
    assert result.losses[-10:].mean() < result.losses[:10].mean() - 0.5


def flat(x):
    """As `Clusters`, in Python that takes no dim beside that of the data."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.3 * torch.ones(2, dtype=DOUBLE)).to_event(1), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1))
        mean = torch.einsum("bi,bj->bij", z, y.view(len(x), 2) + 1).reshape(len(x), 4)
        pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)


@pytest.mark.parametrize("num_samples", [1, 4])
def test_a_model_that_takes_no_particles_runs_on_copies(num_samples):
    torch.manual_seed(0)
    x = data(4)
    guide = MeanField(flat, x, hidden=(5,))
    with private_store(flat, guide):
        layout = read_layout(flat, guide, (x,), num_samples)
        assert not layout.vectorizes
        run = run_pair(flat, guide, (x,), num_samples, layout)
        z, found = run.latents["z"], run.log_weights()
    bits = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=DOUBLE)
    mean = (z[..., None, :, None] * (bits + 1)[:, None, :]).flatten(-2)
    log_y = (bits * math.log(0.3) + (1 - bits) * math.log(0.7)).sum(-1)
    by_hand = (log_y + dist.Normal(mean, 0.5).log_prob(x[:, None]).sum(-1)).logsumexp(-1)
    torch.testing.assert_close(found.log_likelihood, by_hand, rtol=0, atol=1e-10)
    log_prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(found.log_prior, log_prior, rtol=0, atol=1e-10)


def zoo(x, infer=PARALLEL):
    """Two coins in a plate left of the data's, a category by them, a one-hot vector; none of them continuous."""
    with pyro.plate("data", len(x)):
        with pyro.plate("coins", 2, dim=-2):
            coins = pyro.sample("coin", dist.Bernoulli(x.new_tensor([[0.3], [0.6]])), infer=infer)
        total = coins.sum(-2, keepdim=True) if coins.dim() > 1 else coins
        total = total.squeeze(-2) if coins.dim() == 2 else total
        y = pyro.sample("y", dist.Categorical(logits=torch.stack([total, 1 - total, total * 0], -1)))
        v = pyro.sample("v", dist.OneHotCategorical(logits=x.new_tensor([0.1, 0.5])), infer=infer)
        pyro.sample("x", dist.Normal(total + y + v[..., 0], 1.0), obs=x)


def test_sites_that_the_guide_draws_are_not_summed():
    x = data()
    guide = Categorical(zoo, x, hidden=(5,))
    assert [site.name for site in guide.sites] == ["y"]
    exact = joint_states(zoo, x).log_prob
    found = pvae.log_marginal(zoo, guide, x, ImportanceSampling(4000, step_mode="eager"))
    assert ((found.values - exact).abs() < 5 * found.mc_standard_errors).all()
    torch.testing.assert_close(pvae.log_marginal(zoo, None, x, Enumeration()).values, exact, rtol=0, atol=1e-12)


def empty(x):
    """A guide of nothing."""


@pytest.mark.parametrize("build", [truth.gaussian_mixture, truth.sigmoid_belief_net])
def test_nothing_left_to_draw_gives_log_p_itself(build):
    known = build()

    def bits_annotated(x):
        with pyro.poutine.infer_config(config_fn=lambda site: {} if site["is_observed"] else dict(PARALLEL)):
            known.model(x)

    for guide in (None, empty):
        found = pvae.log_weights(bits_annotated, guide, known.x, 2).values
        assert found.shape == (2, len(known.x))
        assert (found - known.log_prob).abs().max() < 1e-10
    answer = pvae.log_marginal(bits_annotated, empty, known.x, ImportanceSampling(3))
    assert (answer.values - known.log_prob).abs().max() < 1e-10


def test_config_enumerate_marks_the_sites():
    known = truth.gaussian_mixture()
    found = pvae.log_weights(config_enumerate(known.model), None, known.x, 1).values
    assert (found - known.log_prob).abs().max() < 1e-10
    # The guide of the truth draws y, so that nothing is summed.
    spread = pvae.log_weights(config_enumerate(known.model), known.guide, known.x, 50).values.std(0)
    assert (spread > 0.01).all()


def test_reconstructions_draw_the_summed_sites_from_their_posterior():
    model = Clusters()
    x = data(4)[:1].expand(20_000, 4)
    guide = MeanField(model, x[:2], hidden=(5,))
    with private_store(model, guide), seeded(0):
        layout = read_layout(model, None, (x,), 1)
        z = torch.tensor([0.3, -0.2], dtype=DOUBLE).expand(1, len(x), 2)
        draws = run_pair(model, None, (x,), 1, layout, given={"z": z}).draw_summed()["y"]
    shares = torch.stack([(draws == y).double().mean() for y in range(3)])
    log_probs = dist.Normal(model.loc, model.log_scale.exp()).log_prob(z[0, 0]).sum(-1) + model.logits
    exact = log_probs.softmax(-1)
    assert ((shares - exact).abs() < 5 * (exact * (1 - exact) / len(x)).sqrt()).all()
    assert pvae.reconstruct(model, guide, x[:3])["x"].shape == (3, 4)


def counts(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Poisson(x.new_ones(())), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(y, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def many(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(x.new_full((20,), 0.5)).to_event(1), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(y.sum(-1), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ELBO(kl="analytic").bound(Clusters(), MeanField(Clusters(), data(4)), data(4)),
            r"\['y'\] are summed out",
        ),
        (
            lambda: pvae.log_weights(counts, MeanField(counts, data()), data(), 2),
            r"'y' \(Poisson\) has no finite support",
        ),
        (lambda: pvae.log_weights(many, MeanField(many, data()), data(), 2), "1.05e.06 joint states, more than 65536"),
        (lambda: Bernoulli(config_enumerate(truth.gaussian_mixture().model), data(2)), "no latent site"),
    ],
)
def test_what_cannot_be_summed_is_refused_in_a_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


# --- nothing is drawn


class Known(nn.Module):
    """x ~ N(loc, 1) in two dims, with or without a coin that is summed out and shifts it by 1."""

    def __init__(self, coin):
        super().__init__()
        self.loc, self.coin = nn.Parameter(torch.tensor([0.5, -1.0], dtype=DOUBLE)), coin

    def forward(self, x):
        pyro.module("known", self)
        with pyro.plate("data", len(x)):
            shift = torch.zeros((), dtype=DOUBLE)
            if self.coin:
                shift = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3, dtype=DOUBLE)), infer=PARALLEL)[..., None]
            pyro.sample("x", dist.Normal(self.loc + shift, 1.0).to_event(1), obs=x)

    def log_prob(self, x):
        tails = dist.Normal(self.loc, 1.0).log_prob(x).sum(-1)
        if not self.coin:
            return tails
        heads = dist.Normal(self.loc + 1, 1.0).log_prob(x).sum(-1)
        return torch.logaddexp(math.log(0.7) + tails, math.log(0.3) + heads)


def no_sites(x):
    """A guide of a model that draws nothing."""


@pytest.mark.parametrize("coin", [False, True])
@pytest.mark.parametrize(
    "estimator",
    [
        *(ImportanceSampling(num_samples) for num_samples in (1, 2, 7, 100)),
        PriorSampling(1),
        DefensiveMixture(2),
        GuideMixture([no_sites], 2),
        Jackknife(5),
    ],
    ids=lambda each: f"{type(each).__name__}-{each.num_samples}",
)
def test_what_draws_nothing_has_no_monte_carlo_error(estimator, coin):
    model = Known(coin)
    x = torch.randn(NUM_DATA, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    found = pvae.log_marginal(model, no_sites, x, estimator)
    torch.testing.assert_close(found.values, model.log_prob(x).detach(), rtol=0, atol=1e-12)
    assert found.mc_standard_errors.tolist() == [0.0] * NUM_DATA
    assert found.ess.tolist() == [estimator.num_samples] * NUM_DATA
    assert found.khat.tolist() == [-math.inf] * NUM_DATA
    assert found.fraction_untrusted == 0
    assert found.mc_standard_error == 0


def test_one_round_is_enough_where_nothing_is_drawn():
    x = torch.zeros(3, 2, dtype=DOUBLE)
    found = pvae.log_marginal(Known(True), no_sites, x, ImportanceSampling(1), target_se=1)
    assert found.samples.tolist() == [1] * 3


def test_one_draw_has_an_unknown_error():
    model = Clusters()
    x = torch.zeros(3, 4, dtype=DOUBLE)
    guide = MeanField(model, x).double()
    assert pvae.log_marginal(model, guide, x, ImportanceSampling(1)).mc_standard_errors.isnan().all()
