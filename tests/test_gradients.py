"""Gradients against known answers: closed forms, quadrature and enumeration of the same expectation."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pvae
from pvae.objectives import CIWAE, CUBO, ELBO, IWAE, MIWAE, PIWAE, Renyi, ReweightedWakeSleep
from pvae.objectives.baselines import LeaveOneOut, Neural, RunningMean

X = torch.tensor([1.3], dtype=torch.float64)
# Of the importance-weighted bound with K particles by the guide's mean, at q = N(0.2, exp(-0.4)).
KNOWN = {1: 0.897, 4: 0.1956, 16: 0.0452}
COPIES = 4000


class OneDim(nn.Module):
    """z ~ N(0, 1), x | z ~ N(theta + z, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        pyro.module("model", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(self.theta + z, 1.0), obs=x)


class OneDimGuide(nn.Module):
    """q(z) = N(loc, exp(log_scale)^2), the same for all data."""

    def __init__(self, loc=0.2, log_scale=-0.2) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(loc, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor(log_scale, dtype=torch.float64))

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()))


def gradients(objective, model, guide, x, repeats=20, copies=COPIES, seed=0):
    """Mean and standard error of the gradient of one datum's bound, by parameter, from copies * repeats draws."""
    torch.manual_seed(seed)
    leaves = [*model.parameters(), *guide.parameters()]
    batch = x.repeat(copies, *(1,) * (x.dim() - 1))
    draws = []
    for _ in range(repeats):
        bound = objective.bound(model, guide, batch).mean()
        got = torch.autograd.grad(bound, leaves, allow_unused=True)
        draws.append(
            torch.cat(
                [torch.zeros(leaf.numel()) if g is None else g.flatten() for g, leaf in zip(got, leaves, strict=True)]
            )
        )
    draws = torch.stack(draws).double()
    return draws.mean(0), draws.std(0) / math.sqrt(repeats)


def check(objective, truth, model=None, guide=None, x=X, **options):
    mean, error = gradients(objective, model or OneDim(), guide or OneDimGuide(), x, **options)
    truth = torch.as_tensor(truth, dtype=torch.float64)
    assert ((mean - truth).abs() < 5 * error + 1e-9).all(), (mean, truth, error)
    return mean, error


def elbo_truth():
    """The ELBO's gradient by theta, loc and log_scale: x - loc, x - 2 loc, 1 - 2 scale^2."""
    return [1.1, 0.9, 1 - 2 * math.exp(-0.4)]


UNBIASED = [
    ("pathwise", None),
    ("stl", None),
    ("dreg", None),
    ("score", None),
    ("score", LeaveOneOut),
    ("score", RunningMean),
    ("mixed", None),
]


@pytest.mark.parametrize(("gradient", "baseline"), UNBIASED)
@pytest.mark.parametrize("num_samples", [2, 5])
def test_every_gradient_of_the_elbo_is_unbiased(gradient, baseline, num_samples):
    objective = ELBO(num_samples, gradient=gradient, baseline=baseline() if baseline else None)
    check(objective, elbo_truth())


@pytest.mark.parametrize(("gradient", "baseline"), [case for case in UNBIASED if case[0] != "stl"])
def test_every_gradient_of_the_importance_weighted_bound_is_unbiased(gradient, baseline):
    check(IWAE(2, gradient=gradient, baseline=baseline() if baseline else None), two_draws(log_mean(1.0)))


@pytest.mark.parametrize("gradient", ["pathwise", "dreg"])
@pytest.mark.parametrize("num_samples", KNOWN)
def test_the_mean_of_the_guide_feels_the_known_gradient(gradient, num_samples):
    mean, error = gradients(IWAE(num_samples, gradient=gradient), OneDim(), OneDimGuide(), X)
    assert abs(mean[1] - KNOWN[num_samples]) < 5 * error[1] + 5e-4


def test_sticking_the_landing_is_biased_for_more_than_one_particle():
    mean, error = gradients(IWAE(4, gradient="stl"), OneDim(), OneDimGuide(), X)
    assert abs(mean[1] - 0.721) < 5 * error[1] + 5e-4
    assert mean[1] - KNOWN[4] > 50 * error[1]


def two_draws(value):
    """The gradient of E[value(log w_1, log w_2)] by quadrature over both draws and autograd through it."""
    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.0, 0.2, -0.2)]
    theta, loc, log_scale = leaves
    grid = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    weight = dist.Normal(0.0, 1.0).log_prob(grid).exp() * (grid[1] - grid[0])
    z = loc + log_scale.exp() * grid
    lw = dist.Normal(z + theta, 1.0).log_prob(X) + dist.Normal(0.0, 1.0).log_prob(z)
    lw = lw - dist.Normal(loc, log_scale.exp()).log_prob(z)
    bound = value(lw[:, None], lw[None]) * weight[:, None] * weight[None]
    return torch.stack(torch.autograd.grad(bound.sum(), leaves))


def log_mean(power):
    return lambda a, b: (torch.logaddexp(power * a, power * b) - math.log(2)) / power


TWO_DRAW_TRUTHS = {
    "Renyi(0.5)": (lambda **o: Renyi(0.5, 2, **o), log_mean(0.5)),
    "Renyi(-1)": (lambda **o: Renyi(-1.0, 2, **o), log_mean(2.0)),
    "Renyi(2)": (lambda **o: Renyi(2.0, 2, **o), log_mean(-1.0)),
    "CIWAE(0.3)": (lambda **o: CIWAE(0.3, 2, **o), lambda a, b: 0.15 * (a + b) + 0.7 * log_mean(1.0)(a, b)),
    "MIWAE(3, 2)": (lambda **o: MIWAE(3, 2, **o), log_mean(1.0)),
}
GRADIENTS = {
    "pathwise": {"gradient": "pathwise"},
    "dreg": {"gradient": "dreg"},
    "score": {"gradient": "score"},
    "leave one out": {"gradient": "score", "baseline": LeaveOneOut()},
}


@pytest.mark.parametrize("options", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("name", TWO_DRAW_TRUTHS)
def test_every_power_mean_has_every_gradient_unbiased(name, options):
    make, value = TWO_DRAW_TRUTHS[name]
    check(make(**options), two_draws(value))


@pytest.mark.parametrize("options", GRADIENTS.values(), ids=GRADIENTS)
def test_piwae_trains_the_model_by_all_particles_and_the_guide_by_groups(options):
    mean, error = gradients(PIWAE(3, 2, **options), OneDim(), OneDimGuide(), X)
    of_groups = two_draws(log_mean(1.0))
    assert ((mean - of_groups)[1:].abs() < 5 * error[1:]).all()
    of_all, its_error = gradients(IWAE(6), OneDim(), OneDimGuide(), X, seed=1)
    assert abs(mean[0] - of_all[0]) < 5 * (error[0] ** 2 + its_error[0] ** 2).sqrt()
    assert abs(of_all[0] - of_groups[0]) > 5 * error[0]


@pytest.mark.parametrize("options", GRADIENTS.values(), ids=GRADIENTS)
def test_cubo_descends_the_upper_bound_and_leaves_the_model_alone(options):
    truth = -two_draws(log_mean(2.0))
    truth[0] = 0
    check(CUBO(2, **options), truth)
    bound = CUBO(4000).bound(OneDim(), OneDimGuide(0.6, -0.3), X.repeat(50))
    log_p = dist.Normal(0.0, math.sqrt(2)).log_prob(X).item()
    assert bound.mean() < -log_p


def test_vr_max_keeps_the_largest_weight():
    model, guide = OneDim(), OneDimGuide()
    objective = Renyi(-math.inf, 7)
    objective.bound(model, guide, X)
    torch.manual_seed(3)
    largest = objective.bound(model, guide, X)
    torch.testing.assert_close(largest, in_the_same_state(IWAE(7), model, guide).amax(0))


def in_the_same_state(objective, model, guide):
    """The log weights that an objective with as many particles has drawn after seed 3."""
    objective.bound(model, guide, X)
    torch.manual_seed(3)
    return objective._run(model, guide, (X,)).log_weights().values


@pytest.mark.parametrize("gradient", ["stl", "dreg"])
@pytest.mark.parametrize(
    "make", [lambda g: ELBO(4, gradient=g), lambda g: IWAE(4, gradient=g), lambda g: Renyi(0.3, 4, gradient=g)]
)
def test_no_draw_has_a_gradient_at_the_exact_posterior(make, gradient):
    guide = OneDimGuide(X.item() / 2, 0.5 * math.log(0.5))
    torch.manual_seed(0)
    bound = make(gradient).bound(OneDim(), guide, X.repeat(100))
    for gradient_of in torch.autograd.grad(bound.sum(), [guide.loc, guide.log_scale]):
        assert gradient_of.abs() < 1e-12 * 100
    plain = IWAE(4).bound(OneDim(), guide, X.repeat(100))
    assert torch.autograd.grad(plain.sum(), guide.log_scale)[0].abs() > 1


def test_no_draw_has_a_gradient_at_the_exact_posterior_of_several_dimensions():
    # The guide's own factor of the covariance, several sites deep: what stands behind a flow, too.
    torch.manual_seed(0)
    model = ThreeSites().double()
    x = torch.randn(5, dtype=torch.float64)
    guide = ThreeSitesGuide()
    bound = ELBO(3, gradient="stl").bound(model, guide, x)
    for name, gradient_of in zip(("b", "a"), torch.autograd.grad(bound.sum(), list(guide.parameters())), strict=True):
        assert gradient_of.abs().max() < 1e-12, name


class ThreeSites(nn.Module):
    """a ~ N(0, 1), b | a ~ N(a, 1), x | b ~ N(b, 1): a chain, whose posterior is one, too."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)


class ThreeSitesGuide(nn.Module):
    """q(b | x) q(a | b), by default the exact posterior: b | x ~ N(2 x / 3, 2 / 3), a | b ~ N(b / 2, 1 / 2)."""

    def __init__(self, slope_b=2 / 3, slope_a=0.5) -> None:
        super().__init__()
        self.slope_b = nn.Parameter(torch.tensor(slope_b, dtype=torch.float64))
        self.slope_a = nn.Parameter(torch.tensor(slope_a, dtype=torch.float64))

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(self.slope_b * x, math.sqrt(2 / 3)))
            pyro.sample("a", dist.Normal(self.slope_a * b, math.sqrt(0.5)))


@pytest.mark.parametrize("options", GRADIENTS.values(), ids=GRADIENTS)
def test_a_draw_that_depends_on_another_passes_its_pull_on(options):
    # E[log p - log q] is a polynomial of the slopes here, so autograd through its closed form is the truth.
    u, v = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.9, 0.2))
    x = X.item()
    mean_b, var_b = u * x, 2 / 3
    second_b = mean_b**2 + var_b
    second_a = v**2 * second_b + 0.5
    elbo = -0.5 * (second_a + (second_b - 2 * v * second_b + second_a) + (x**2 - 2 * x * mean_b + second_b))
    truth = torch.stack(torch.autograd.grad(elbo, [u, v]))
    check(ELBO(2, **options), truth, ThreeSites(), ThreeSitesGuide(0.9, 0.2))


@pytest.mark.slow
def test_the_signal_of_the_encoder_dies_with_k_and_dreg_keeps_it():
    ratios = {}
    for gradient in ("pathwise", "dreg"):
        snr = []
        for num_samples in (4, 64):
            mean, error = gradients(IWAE(num_samples, gradient=gradient), OneDim(), OneDimGuide(), X, 400, 20)
            snr.append((mean[1].abs() / (error[1] * math.sqrt(400 * 20))).item())
        ratios[gradient] = snr[1] / snr[0]
    # 1 / sqrt(16), a relative error of 400 repeats' standard deviation being 1 / sqrt(800).
    assert ratios["pathwise"] == pytest.approx(0.25, rel=0.5)
    assert ratios["dreg"] > 2


class SharedPrior(nn.Module):
    """A prior that uses the guide's own parameters, as a VampPrior does: p(z) = N(loc, exp(log_scale))."""

    def __init__(self, guide) -> None:
        super().__init__()
        self.guide = [guide]

    def forward(self, x):
        guide = self.guide[0]
        pyro.module("guide", guide)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(guide.loc, guide.log_scale.exp()))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("gradient", ["pathwise", "stl", "dreg", "score"])
def test_a_prior_that_shares_the_guides_parameters_keeps_its_gradient(gradient):
    # With p(z) = q(z), E[log p(x | z)] is all that is left of the ELBO.
    guide = OneDimGuide()
    truth = [1.3 - 0.2, -math.exp(-0.4)]
    check(ELBO(2, gradient=gradient), truth, SharedPrior(guide), guide)


class Bits(nn.Module):
    """y ~ Bernoulli(sigmoid(bias))^3, x | y ~ N(weight . y, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64))
        self.weight = nn.Parameter(torch.tensor([1.0, -0.7, 0.4], dtype=torch.float64))

    def forward(self, x):
        pyro.module("bits", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(logits=self.bias).to_event(1))
            pyro.sample("x", dist.Normal(y @ self.weight, 1.0), obs=x)


class BitsGuide(nn.Module):
    """q(y | x) = prod_d Bernoulli(sigmoid(slope_d x + bias_d))."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.2, 0.1, -0.3], dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([-0.1, 0.4, 0.2], dtype=torch.float64))

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=self.slope * x[..., None] + self.bias).to_event(1))


def enumerated(num_samples):
    """The gradient of the bound with 1 or 2 particles, by enumeration of all bits and autograd through it."""
    model, guide = Bits(), BitsGuide()
    y = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)
    log_q = dist.Bernoulli(logits=guide.slope * X + guide.bias).log_prob(y).sum(-1)
    log_w = dist.Bernoulli(logits=model.bias).log_prob(y).sum(-1) - log_q
    log_w = log_w + dist.Normal(y @ model.weight, 1.0).log_prob(X)
    q = log_q.exp()
    bound = (q * log_w).sum()
    if num_samples == 2:
        bound = (q[:, None] * q * (torch.logaddexp(log_w[:, None], log_w) - math.log(2))).sum()
    return torch.cat(torch.autograd.grad(bound, [*model.parameters(), *guide.parameters()]))


BASELINES = {
    "none": lambda: None,
    "leave one out": LeaveOneOut,
    "running mean": RunningMean,
    "neural": lambda: Neural(X, hidden=(4,), normalize=False),
}


@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
@pytest.mark.parametrize("num_samples", [1, 2])
def test_bits_have_the_gradient_of_enumeration(baseline, num_samples):
    if num_samples == 1 and baseline is LeaveOneOut:
        with pytest.raises(ValueError, match="LeaveOneOut compares a draw with the others, and num_samples is 1"):
            gradients(IWAE(1, gradient="score", baseline=LeaveOneOut()), Bits(), BitsGuide(), X)
        return
    objective = IWAE(num_samples, gradient="score", baseline=baseline())
    check(objective, enumerated(num_samples), Bits(), BitsGuide(), repeats=40)


def test_several_particles_of_the_elbo_have_the_gradient_of_one():
    check(ELBO(5, gradient="score", baseline=LeaveOneOut()), enumerated(1), Bits(), BitsGuide(), repeats=40)


def test_the_leave_one_out_signal_is_the_loop_over_the_others():
    log_weights = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    elbo, iwae = ELBO(4), IWAE(4)
    for objective, value in ((elbo, lambda w: w.mean(0)), (iwae, lambda w: w.logsumexp(0) - math.log(4))):
        blend = blend_of(objective)
        for k in range(4):
            others = torch.cat([log_weights[:k], log_weights[k + 1 :]])
            replaced = log_weights.clone()
            replaced[k] = others.mean(0)
            expected = value(log_weights) - value(replaced)
            got = blend.signals(log_weights)[k] - blend.signals_without(log_weights)[k]
            torch.testing.assert_close(got, expected)


def blend_of(objective):
    from pvae.objectives.means import Blend, PowerMean

    return Blend([(1.0, PowerMean(0.0 if isinstance(objective, ELBO) else 1.0))], 4)


class Mixed(nn.Module):
    """y ~ Bernoulli(0.3), z | y ~ N(2 y - 1, 1), x | z ~ N(z, 1)."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3, dtype=x.dtype)))
            z = pyro.sample("z", dist.Normal(2 * y - 1, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class MixedGuide(nn.Module):
    """q(y) = Bernoulli(sigmoid(logit)), q(z | y) = N(loc + y, exp(log_scale)^2)."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("logit", 0.4), ("loc", 0.1), ("log_scale", -0.2)):
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(logits=self.logit))
            pyro.sample("z", dist.Normal(self.loc + y, self.log_scale.exp()))


@pytest.mark.parametrize(
    "options", [{"gradient": "mixed"}, {"gradient": "score"}, {"gradient": "mixed", "baseline": LeaveOneOut()}]
)
def test_a_pair_of_discrete_and_continuous_sites_has_the_right_gradient(options):
    guide = MixedGuide()
    x, s2 = X.item(), (2 * guide.log_scale).exp()
    bound = torch.zeros((), dtype=torch.float64)
    for y, log_prior in ((0.0, math.log(0.7)), (1.0, math.log(0.3))):
        q = dist.Bernoulli(logits=guide.logit).log_prob(torch.tensor(y, dtype=torch.float64))
        loc = guide.loc + y
        inside = -0.5 * ((loc - 2 * y + 1) ** 2 + s2 + (x - loc) ** 2 + s2) + guide.log_scale
        bound = bound + q.exp() * (log_prior - q + inside)
    truth = torch.stack(torch.autograd.grad(bound, list(guide.parameters())))
    check(ELBO(3, **options), truth, Mixed(), guide, repeats=60)


def test_a_kl_weight_takes_part_in_every_gradient():
    # ELBO at weight 0.3: E[log p(x | z)] - 0.3 KL(q || p), in closed form.
    truth = [1.1, 1.1 - 0.3 * 0.2, -math.exp(-0.4) - 0.3 * (math.exp(-0.4) - 1)]
    for options in (*GRADIENTS.values(), {"gradient": "stl"}):
        objective = ELBO(2, beta=0.3, **options)
        check(objective, truth)


def test_a_relaxed_guide_trains_a_discrete_model_pathwise():
    class Relaxed(BitsGuide):
        def forward(self, x):
            pyro.module("guide", self)
            with pyro.plate("data", len(x)):
                temperature = torch.tensor(0.3, dtype=x.dtype)
                logits = self.slope * x[..., None] + self.bias
                pyro.sample("y", dist.RelaxedBernoulliStraightThrough(temperature, logits=logits).to_event(1))

    torch.manual_seed(0)
    model, guide = Bits(), Relaxed()
    x = model_draws(200)
    before = ELBO(50).bound(model, guide, x).mean().item()
    pvae.fit(model, guide, x, steps=300, lr=2e-2, progress=False)
    assert ELBO(50).bound(model, guide, x).mean().item() > before + 0.05


def model_draws(num):
    return pvae.sample(Bits(), num, like=torch.zeros(2, dtype=torch.float64))["x"]


@pytest.mark.parametrize("step_mode", ["traced", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
def test_score_functions_train_in_every_mode(baseline, step_mode):
    torch.manual_seed(0)
    model, guide, x = Bits(), BitsGuide(), model_draws(256)
    objective = IWAE(4, gradient="score", baseline=baseline())
    result = pvae.fit(
        model, guide, x, objective=objective, steps=400, batch_size=64, lr=2e-2, step_mode=step_mode, progress=False
    )
    assert result.step_mode == step_mode
    exact = pvae.log_marginal(model, guide, x, pvae.estimators.ImportanceSampling(2000))
    with torch.no_grad():
        gap = exact.mean - ELBO(500).bound(model, guide, x).mean().item()
        before = exact.mean - ELBO(500).bound(model, BitsGuide(), x).mean().item()
    assert gap < 0.6 * before
    module = objective.gradient.baseline
    if isinstance(module, RunningMean):
        assert module.mean.item() / module.weight.item() == pytest.approx(exact.mean, abs=0.3)


def test_a_neural_baseline_learns_to_predict_the_signal():
    torch.manual_seed(0)
    model, guide, x = Bits(), BitsGuide(), model_draws(256)
    baseline = Neural(x[:, None], hidden=(16,), normalize=True)
    objective = ELBO(gradient="score", baseline=baseline)
    pvae.fit(model, guide, x, objective=objective, steps=600, batch_size=64, lr=2e-2, progress=False)
    with torch.no_grad():
        weights = pvae.log_weights(model, guide, x, 200).values.mean(0)
        predicted = baseline._predict((x,)).double()
    assert torch.corrcoef(torch.stack([weights, predicted]))[0, 1] > 0.8


@pytest.mark.parametrize("phase", ["wake", "sleep", "both"])
def test_wake_sleep_has_the_gradients_of_its_phases(phase):
    theta, loc, log_scale = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.0, 0.2, -0.2))
    grid = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    with torch.no_grad():
        draws = dist.Normal(loc, log_scale.exp())
        z = loc + log_scale.exp() * grid
        density = dist.Normal(0.0, 1.0).log_prob(grid).exp() * (grid[1] - grid[0])
        lw = dist.Normal(z, 1.0).log_prob(X) + dist.Normal(0.0, 1.0).log_prob(z) - draws.log_prob(z)
        first = torch.sigmoid(lw[:, None] - lw) * density[:, None] * density
    # Both draws count alike, so twice the first.
    wake = 2 * (first.sum(1) * dist.Normal(loc, log_scale.exp()).log_prob(z)).sum()
    # A dreamt latent is N(0, 1).
    sleep = -0.5 * (1 + loc**2) / (2 * log_scale).exp() - log_scale
    of_guide = {"wake": wake, "sleep": sleep, "both": wake + sleep}[phase]
    of_model = 2 * (first.sum(1) * dist.Normal(z + theta, 1.0).log_prob(X)).sum()
    truth = torch.cat([g[None] for g in torch.autograd.grad(of_guide + of_model, [theta, loc, log_scale])])
    check(ReweightedWakeSleep(2, phase=phase), truth)


@pytest.mark.parametrize("phase", ["wake", "sleep", "both"])
def test_wake_sleep_trains_bits(phase):
    torch.manual_seed(0)
    model, guide, x = Bits(), BitsGuide(), model_draws(256)
    objective = ReweightedWakeSleep(10, phase=phase)
    result = pvae.fit(model, guide, x, objective=objective, steps=400, batch_size=64, lr=2e-2, progress=False)
    assert result.step_mode != "eager"
    with torch.no_grad():
        gaps = [
            pvae.log_marginal(model, each, x, pvae.estimators.ImportanceSampling(2000)).mean
            - ELBO(500).bound(model, each, x).mean().item()
            for each in (guide, BitsGuide())
        ]
    assert gaps[0] < 0.7 * gaps[1]


def test_dreams_need_to_know_what_is_observed():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=2 * x)

    with pytest.raises(ValueError, match="site 'x' observes something computed from the batch"):
        ReweightedWakeSleep(2, phase="sleep").bound(model, OneDimGuide(), X)


class FlowGuide(nn.Module):
    """z = f(e), e ~ N(0, I_2), with one learnable transform f; independent of x."""

    def __init__(self, transform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            zero = torch.zeros(2, dtype=x.dtype)
            base = dist.Normal(zero, 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [self.transform]).expand_by([len(x)]))


class TwoDim(nn.Module):
    """z ~ N(0, I_2), x | z ~ N(z_1 + z_2, 1)."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


@pytest.mark.parametrize("make", [dist.transforms.affine_coupling, dist.transforms.affine_autoregressive])
@pytest.mark.parametrize("options", [{"gradient": "stl"}, {"gradient": "dreg"}, {"gradient": "score"}])
def test_flows_with_an_inverse_have_every_gradient(make, options):
    torch.manual_seed(0)
    guide = FlowGuide(make(2, hidden_dims=[4]))
    truth, its_error = gradients(ELBO(2), TwoDim(), guide, X.float(), repeats=30)
    mean, error = gradients(ELBO(2, **options), TwoDim(), guide, X.float(), repeats=30, seed=1)
    assert ((mean - truth).abs() < 5 * (error**2 + its_error**2).sqrt() + 1e-6).all()
    assert truth.abs().max() > 0.1


def test_a_flow_without_an_inverse_says_so_where_it_needs_one():
    torch.manual_seed(0)
    guide = FlowGuide(dist.transforms.planar(2).double())
    assert torch.isfinite(ELBO(2).bound(TwoDim(), guide, X)).all()
    with pytest.raises(ValueError, match=r"no density at a value that it did not draw itself; .*'pathwise'"):
        ELBO(2, gradient="stl").bound(TwoDim(), guide, X)


def test_a_neural_baseline_is_trained_by_svi_too_and_is_no_part_of_a_saved_pair(tmp_path):
    torch.manual_seed(0)
    model, guide, x = Bits(), BitsGuide(), model_draws(64)
    baseline = Neural(x[:, None], hidden=(4,))
    objective = IWAE(3, gradient="score", baseline=baseline)
    before = [parameter.clone() for parameter in baseline.parameters()]
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=objective)
    for _ in range(3):
        svi.step(x)
    assert not any(torch.equal(old, new) for old, new in zip(before, baseline.parameters(), strict=True))
    result = pvae.fit(model, guide, x, objective=objective, steps=3, out=tmp_path / "run", progress=False)
    assert not any("baseline" in name for name in result.parameters)
    other = Bits(), BitsGuide()
    pvae.load(tmp_path / "run", *other)
    assert torch.equal(other[1].slope, guide.slope)


@pytest.mark.parametrize("step_mode", ["eager", "traced"])
def test_what_is_reported_counts_the_kl_in_full_and_the_loss_does_not(step_mode):
    model, guide, x = OneDim(), OneDimGuide(), X.repeat(4000)
    data = pvae.data.DataSet("x", train=x, valid=x, kind="real")
    kl = 0.5 * (0.04 + math.exp(-0.4) - 1 + 0.4)
    result = pvae.fit(
        model, guide, data, steps=1, batch_size=4000, lr=1e-9, kl_schedule=lambda step: 0.25, step_mode=step_mode,
        progress=False,
    )  # fmt: skip
    record = result.history[0]
    assert -result.losses[0].item() - record["train_bound"] == pytest.approx(0.75 * kl, abs=0.05)
    assert record["valid_bound"] == pytest.approx(record["train_bound"], abs=0.1)
