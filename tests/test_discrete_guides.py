"""Guides of discrete latents: densities that sum to one, exact posteriors, training by scores and by relaxations."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pvae
from pvae import truth
from pvae.estimators import ImportanceSampling
from pvae.estimators.enumeration import joint_states
from pvae.guides import Bernoulli, Categorical, MeanField, Mixed, RelaxedBernoulli, RelaxedCategorical
from pvae.guides.parts.straight_through import StraightThroughBernoulli, StraightThroughOneHot
from pvae.guides.parts.temperature import Temperature
from pvae.models import VAE
from pvae.objectives import ELBO, IWAE
from pvae.objectives.baselines import LeaveOneOut
from pvae.pair.contexts import seeded
from tests.test_marginal import Clusters

DOUBLE = torch.float64
BY_SCORE = {"gradient": "score", "baseline": LeaveOneOut()}


def data(num, *shape):
    return torch.randn(num, *shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


def coins(x):
    """A scalar bit, two bits in a plate left of the data's, and bits with event dims."""
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", dist.Bernoulli(x.new_tensor(0.3)))
        with pyro.plate("inner", 2, dim=-2):
            b = pyro.sample("b", dist.Bernoulli(logits=a - 0.5))
        c = pyro.sample("c", dist.Bernoulli(x.new_full((2, 1), 0.4)).to_event(2))
        pyro.sample("x", dist.Normal(a + b[..., 0, :] * 2 - b[..., 1, :] + c.sum((-2, -1)), 1.0), obs=x)


def dice(x):
    """A scalar category, categories in a plate, with event dims, and one-hot vectors with and without them."""
    with pyro.plate("data", len(x), dim=-2):
        a = pyro.sample("a", dist.Categorical(logits=x.new_tensor([0.1, 0.2, -0.5])))
        with pyro.plate("inner", 2, dim=-1):
            b = pyro.sample("b", dist.Categorical(x.new_tensor([[0.2, 0.8], [0.5, 0.5]])))
        c = pyro.sample("c", dist.Categorical(x.new_tensor([[0.2, 0.3, 0.5], [0.5, 0.4, 0.1]])).to_event(1))
        d = pyro.sample("d", dist.OneHotCategorical(x.new_tensor([[0.2, 0.8], [0.5, 0.5]])).to_event(1))
        pyro.sample("x", dist.Normal(a + b.sum(-1, keepdim=True) + c.sum(-1) * d[..., 0, 0], 1.0), obs=x[:, None])


SMALL = {"Bernoulli": (Bernoulli, coins), "Categorical": (Categorical, dice), "Mixed": (Mixed, dice)}


@pytest.fixture(params=SMALL)
def discrete(request):
    make, model = SMALL[request.param]
    torch.manual_seed(0)
    x = data(5)
    guide = make(model, x, hidden=(6,))
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.normal_()
    return model, guide, x


def test_the_mass_of_all_states_is_one(discrete):
    _, guide, x = discrete
    assert joint_states(guide, x).log_prob.abs().max() < 1e-10


def test_weights_average_to_p_over_sites_in_nested_plates(discrete):
    """E_q w = p(x), by the sum over all states with the guide's own mass."""
    model, guide, x = discrete
    exact, mass = joint_states(model, x), joint_states(guide, x)
    torch.manual_seed(0)
    num_samples = 3000
    weights = pvae.log_weights(model, guide, x, num_samples).values
    variance = (2 * exact.log_joint).sub(_in_order_of(exact, mass)).logsumexp(0).exp() - (2 * exact.log_prob).exp()
    error = (variance / num_samples).sqrt() / exact.log_prob.exp()
    assert ((weights.exp().mean(0) / exact.log_prob.exp() - 1).abs() < 5 * error).all()


def _in_order_of(states, others):
    """The log masses of `others` at the states of the first."""
    keys = [
        torch.cat([value[:, 0].reshape(len(value), -1).double() for value in of.values()], 1)
        for of in (states.latents, {name: others.latents[name] for name in states.latents})
    ]
    place = (keys[0][:, None] == keys[1][None]).all(-1).double().argmax(1)
    return others.log_joint[place]


def test_the_exact_posterior_over_categories_gives_constant_weights():
    known = truth.gaussian_mixture()
    model = known.model

    class Squares(nn.Module):
        def forward(self, x):
            return torch.cat([x, x.square().sum(-1, keepdim=True)], -1)

    guide = Categorical(model, known.x, encoder=Squares())
    guide.double()
    with torch.no_grad():
        precision = (-2 * model.log_scale).exp()
        head = guide.encoder.head
        head.weight.copy_(torch.cat([model.loc * precision[:, None], -0.5 * precision[:, None]], -1))
        head.bias.copy_(model.logits - 2 * model.log_scale - 0.5 * model.loc.square().sum(-1) * precision)
    weights = pvae.log_weights(model, guide, known.x, 4).values
    assert (weights - known.log_prob).abs().max() < 1e-10


@pytest.mark.parametrize("step_mode", ["eager", "traced"])
@pytest.mark.parametrize(
    ("build", "make"),
    [(truth.gaussian_mixture, Categorical), (truth.gaussian_mixture, Mixed), (truth.sigmoid_belief_net, Bernoulli)],
)
def test_training_by_score_closes_in_on_log_p(build, make, step_mode):
    known = build()
    torch.manual_seed(0)
    guide = make(known.model, known.x, hidden=(16,))
    before = gap(known, guide)
    options = {"objective": ELBO(8, **BY_SCORE), "steps": 150, "lr": 2e-2, "batch_size": len(known.x)}
    result = pvae.fit(known.model, guide, known.x, train="guide", step_mode=step_mode, progress=False, **options)
    assert result.step_mode == step_mode
    after = gap(known, guide)
    assert after[0] > -5 * after[1]
    assert after[0] < 0.7 * before[0]


def gap(known, guide, num_samples=4000):
    """log p(x) less the ELBO, averaged over data, with its standard error."""
    with torch.no_grad(), seeded(0):
        gaps = (known.log_prob - pvae.log_weights(known.model, guide, known.x, num_samples).values).mean(1)
    return gaps.mean().item(), gaps.std().item() / math.sqrt(num_samples)


def test_a_guide_of_discrete_and_continuous_sites_finds_log_p():
    torch.manual_seed(0)
    model, x = Clusters(infer={}), data(7, 4)
    guide = Mixed(model, x, hidden=(16,))
    assert [site.name for site in guide.sites] == ["y", "z"]
    objective = IWAE(20, gradient="mixed", baseline=LeaveOneOut())  # the ELBO would leave tails uncovered
    assert pvae.check(model, guide, x, objective) == []
    result = pvae.fit(
        model, guide, x, objective=objective, train="guide", steps=300, lr=1e-2, batch_size=7, step_mode="traced"
    )
    assert result.step_mode == "traced"
    exact = model.log_prob(x)
    found = pvae.log_marginal(model, guide, x, ImportanceSampling(10_000))
    trusted = found.khat < found.khat_threshold
    assert trusted.sum() >= 5
    assert ((found.values - exact).abs() < 5 * found.mc_standard_errors)[trusted].all()
    bound = (result.losses[-50:]).neg().mean()
    assert exact.mean() - 0.3 < bound < exact.mean()


def test_mixed_serves_a_continuous_model_as_mean_field_does():
    torch.manual_seed(0)
    x = data(6, 4)
    model = VAE((4,), 2, likelihood=pvae.models.likelihoods.Gaussian(0.5)).double()
    mixed, plain = Mixed(model, x, hidden=(5,)), MeanField(model, x, hidden=(5,))
    assert [tuple(p.shape) for p in mixed.parameters()] == [tuple(p.shape) for p in plain.parameters()]
    assert torch.isfinite(pvae.log_weights(model, mixed, x, 3).values).all()


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_relaxed_draws_are_exact_ones(temperature):
    """Shares of each state against its probability, and the mass against torch's."""
    own = Temperature(temperature)
    num_samples = 40_000
    logits = torch.tensor([-1.0, 0.2, 2.0], dtype=DOUBLE)
    pairs = [
        (StraightThroughBernoulli(own, logits), dist.Bernoulli(logits=logits)),
        (StraightThroughOneHot(own, logits), dist.OneHotCategorical(logits=logits)),
    ]
    for relaxed, exact in pairs:
        with seeded(0):
            draws = relaxed.rsample((num_samples,))
        assert exact.support.check(draws).all()
        probs = exact.probs
        assert ((draws.mean(0) - probs).abs() < 5 * (probs * (1 - probs) / num_samples).sqrt()).all()
        torch.testing.assert_close(relaxed.log_prob(draws), exact.log_prob(draws), rtol=0, atol=1e-12)
        assert torch.distributions.kl_divergence(relaxed, exact).abs().max() < 1e-12


def test_relaxed_gradients_are_those_of_the_concrete_distribution():
    own = Temperature(0.7)
    logits = torch.tensor([[-1.0, 0.2, 2.0]], dtype=DOUBLE, requires_grad=True)
    pull = torch.tensor([0.3, -1.0, 2.0], dtype=DOUBLE)
    with seeded(0):
        mine = (StraightThroughBernoulli(own, logits).rsample((50,)) * pull).sum()
    with seeded(0):
        noise = torch.rand(50, 1, 3, dtype=DOUBLE)
    soft = ((logits + noise.logit()) / own.value).sigmoid()
    assert_same_gradient(mine, (soft * pull).sum(), logits)
    with seeded(0):
        mine = (StraightThroughOneHot(own, logits).rsample((50,)) * pull).sum()
    soft = ((logits - (-noise.log()).log()) / own.value).softmax(-1)
    assert_same_gradient(mine, (soft * pull).sum(), logits)


def assert_same_gradient(mine, other, leaf):
    found = [torch.autograd.grad(each, leaf)[0] for each in (mine, other)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


class OneHots(nn.Module):
    """v one of 5, x | v ~ N(W v, 1) in 3 dims."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.logits = nn.Parameter(torch.randn(5, generator=generator, dtype=DOUBLE))
        self.loc = nn.Parameter(torch.randn(5, 3, generator=generator, dtype=DOUBLE))

    def forward(self, x):
        pyro.module("model", self)
        with pyro.plate("data", len(x)):
            v = pyro.sample("v", dist.OneHotCategorical(logits=self.logits))
            pyro.sample("x", dist.Normal(v @ self.loc, 1.0).to_event(1), obs=x)


def one_hots():
    model, x = OneHots(), 2 * data(12, 3)
    return truth.Truth("", model, model, x, joint_states(model, x).log_prob.detach(), "discrete", None, "")


RELAXED = {
    "RelaxedBernoulli": (RelaxedBernoulli, truth.sigmoid_belief_net, lambda: ELBO(4)),
    "RelaxedCategorical": (RelaxedCategorical, one_hots, lambda: ELBO(4, kl="analytic")),
}


@pytest.mark.parametrize("name", RELAXED)
def test_relaxed_guides_train_and_their_weights_are_valid(name):
    make, build, objective = RELAXED[name]
    known = build()
    torch.manual_seed(0)
    guide = make(known.model, known.x, hidden=(16,))
    before = gap(known, guide)
    pvae.fit(known.model, guide, known.x, objective=objective(), train="guide", steps=300, lr=1e-2, batch_size=12)
    after = gap(known, guide)
    assert -5 * after[1] < after[0] < 0.7 * before[0]
    found = pvae.log_marginal(known.model, guide, known.x, ImportanceSampling(20_000))
    trusted = found.khat < found.khat_threshold
    assert trusted.any()
    assert ((found.values - known.log_prob).abs() < 5 * found.mc_standard_errors)[trusted].all()


def cooled(name, step_mode, rate):
    make, build, objective = RELAXED[name]
    known = build()
    torch.manual_seed(0)
    guide = make(known.model, known.x, hidden=(6,), temperature=2.0)
    callbacks = [guide.temperature.anneal(rate, least=0.2)]
    result = pvae.fit(
        known.model,
        guide,
        known.x,
        objective=objective(),
        epochs=12,
        batch_size=6,
        callbacks=callbacks,
        lr=1e-2,
        step_mode=step_mode,
        train="guide",
    )
    assert result.step_mode == step_mode
    return result.losses, guide.temperature.value.item()


@pytest.mark.parametrize("name", RELAXED)
def test_traced_steps_see_the_temperature_fall(name):
    eager, temperature = cooled(name, "eager", 0.05)
    assert temperature == pytest.approx(2 * math.exp(-0.05 * 24), rel=1e-6)
    traced, _ = cooled(name, "traced", 0.05)
    torch.testing.assert_close(traced, eager, rtol=1e-8, atol=0)
    warm, temperature = cooled(name, "traced", 0.0)
    assert temperature == 2.0
    torch.testing.assert_close(traced[:2], warm[:2], rtol=1e-10, atol=0)
    assert (traced - warm)[4:].abs().max() > 1e-4
    assert cooled(name, "eager", 5.0)[1] == pytest.approx(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", RELAXED)
def test_compiled_steps_see_the_temperature_fall(name):
    eager, _ = cooled(name, "eager", 0.05)
    compiled, _ = cooled(name, "compiled", 0.05)
    torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=0)


def counts(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("y", dist.Poisson(x.new_ones(()))), 1.0), obs=x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bernoulli(dice, data(3)), "site 'd' is not binary.*use Categorical"),
        (lambda: Categorical(coins, data(3)), "site 'c' is not categorical.*use Bernoulli"),
        (lambda: Categorical(VAE((3,), 2), data(2, 3)), "site 'z' is not categorical.*use MeanField"),
        (lambda: Mixed(counts, data(3)), "site 'y' is discrete without a finite support"),
        (lambda: RelaxedBernoulli(dice, data(3)), "site 'd' is not binary.*use Categorical"),
        (lambda: RelaxedCategorical(dice, data(3)), "site 'c' is not one-hot.*OneHotCategorical"),
        (
            lambda: RelaxedBernoulli(coins, data(3), temperature=0.0),
            "temperature must be a finite number above 0",
        ),
        (lambda: Temperature(1.0).anneal(-1.0), "rate must be a finite number of at least 0, got -1.0"),
        (lambda: MeanField(dice, data(3)), "site 'a' is discrete.*Mixed; or have it summed out"),
    ],
)
def test_mistakes_are_named_in_a_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
