"""Objectives with a discriminator, and models and guides that can be drawn from and not scored."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import pvae
from pvae.estimators import AnnealedImportanceSampling, ImportanceSampling, ParzenWindow, PriorSampling
from pvae.guides import Delta, Implicit, MeanField
from pvae.models import VAE, Generator, LinearGaussian
from pvae.objectives import ELBO, AdversarialAutoencoder, AdversarialVB, GenerativeAdversarial
from pvae.pair.implicit import Implicit as ImplicitDistribution
from tests.test_any_model import Every

DATA, DRAWN = dist.Normal(1.0, 0.8), dist.Normal(0.3, 1.1)
NO_X, NO_Q = r"\A(site 'x': )?x has no density: .*ParzenWindow\Z", r"\A(site 'z': )?the guide has no density: .*\Z"


def affine(loc=DRAWN.loc, scale=DRAWN.scale):
    """A generator of N(loc, scale^2)."""
    net = nn.Linear(1, 1)
    with torch.no_grad():
        net.weight.fill_(scale)
        net.bias.fill_(loc)
    return Generator((1,), 1, decoder=net)


def draws(num, seed, distribution=DATA):
    return distribution.loc + distribution.scale * torch.randn(num, 1, generator=torch.Generator().manual_seed(seed))


def log_ratio(x):
    return (DATA.log_prob(x) - DRAWN.log_prob(x)).squeeze(-1)


def jensen_shannon():
    x = torch.linspace(-9, 11, 20_001, dtype=torch.float64)
    p, q = DATA.log_prob(x), DRAWN.log_prob(x)
    mid = torch.logaddexp(p, q) - math.log(2)
    return (0.5 * (p.exp() * (p - mid) + q.exp() * (q - mid)).sum() * (x[1] - x[0])).item()


def adam(lr=1e-3, betas=(0.5, 0.9)):
    return lambda leaves: torch.optim.Adam(leaves, lr=lr, betas=betas, fused=True)


# --- the game of model and discriminator


def test_at_the_best_discriminator_the_value_is_minus_the_jensen_shannon_divergence():
    values = GenerativeAdversarial(draws(2, 0), discriminator=log_ratio).bound(affine(), None, draws(100_000, 1))
    assert abs(values.mean() + jensen_shannon()) < 5 * values.std() / math.sqrt(len(values))


def test_a_trained_discriminator_is_the_log_ratio_of_the_densities():
    torch.manual_seed(0)
    model, objective = affine(), GenerativeAdversarial(draws(2, 0), hidden=(32, 32))
    before = [parameter.clone() for parameter in model.parameters()]
    result = pvae.fit(
        model, None, draws(50_000, 1), objective=objective, steps=800, batch_size=500, lr=5e-3, schedule="cosine",
        train="guide", step_mode="traced", progress=False,
    )  # fmt: skip
    assert result.step_mode == "traced"
    assert all(map(torch.equal, before, model.parameters()))
    points = torch.linspace(-1.0, 2.5, 8)[:, None]
    with torch.no_grad():
        assert (objective.discriminator(points) - log_ratio(points)).abs().max() < 0.2
        values = objective.bound(model, None, draws(100_000, 2))
    # No other discriminator comes nearer to the divergence, and this one by less than 0.005 nats.
    gap = -jensen_shannon() - values.mean().item()
    error = 5 * values.std().item() / math.sqrt(len(values))
    assert -0.005 - error < gap < error


def test_the_draws_approach_the_data():
    torch.manual_seed(0)
    model, objective = affine(0.0, 0.3), GenerativeAdversarial(draws(2, 0), hidden=(32, 32))
    pvae.fit(
        model, None, draws(20_000, 1), objective=objective, steps=800, batch_size=500, optimizer=adam(5e-3),
        schedule="cosine", step_mode="traced", progress=False,
    )  # fmt: skip
    x = pvae.sample(model, 10_000, seed=3)["x"]
    assert abs(x.mean() - DATA.loc) < 0.15
    assert abs(x.std() - DATA.scale) < 0.15


class Conditional(nn.Module):
    """x = slope * label + z / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))

    def forward(self, x, label):
        pyro.module("conditional", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
            pyro.sample("x", dist.Normal(self.slope * label + 0.4 * z, 0.3), obs=x)


def test_what_the_model_conditions_on_is_shown_to_the_discriminator():
    torch.manual_seed(0)
    label = torch.randn(5000)
    data, model = (2 * label + 0.5 * torch.randn(5000), label), Conditional()
    objective = GenerativeAdversarial(data, hidden=(32,))
    pvae.fit(model, None, data, objective=objective, steps=400, optimizer=adam(1e-2), schedule="cosine", progress=False)
    assert abs(model.slope.item() - 2) < 0.3


def test_one_more_turn_for_the_discriminator_leaves_the_model_alone():
    torch.manual_seed(0)
    model, objective = affine(), GenerativeAdversarial(draws(2, 0), hidden=(8,))
    optimizer = lambda leaves: torch.optim.SGD(leaves, lr=1e-2)  # noqa: E731
    before = [[p.clone() for p in module.parameters()] for module in (model, objective.discriminator)]
    pvae.fit(
        model, None, draws(100, 1), objective=objective, steps=1, optimizer=optimizer, inference_steps=2, progress=False
    )
    assert all(map(torch.equal, before[0], model.parameters()))
    assert not any(map(torch.equal, before[1], objective.discriminator.parameters()))


def test_discrete_draws_teach_no_model():
    model = VAE((3,), 2)
    objective = GenerativeAdversarial(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\Asite 'x' is drawn from Bernoulli, .*; use pvae.models.Generator.*\Z"):
        pvae.fit(model, None, torch.ones(4, 3), objective=objective, steps=1, progress=False)


# --- guides without a density


def line(num=4000):
    """A linear-Gaussian model of one latent, and data of its own."""
    torch.manual_seed(0)
    model = LinearGaussian(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.2], [-0.7]]))
        model.log_scale.fill_(math.log(0.8))
    return model, pvae.sample(model, num, like=torch.zeros(1, 2), seed=4)["x"]


class LinearImplicit(nn.Module):
    """z = slope x + scale noise, its density withheld."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.scale = nn.Linear(2, 1), nn.Parameter(torch.tensor([1.0]))

    def forward(self, x):
        pyro.module("linear_implicit", self)
        loc = self.slope(x)
        fn = ImplicitDistribution(
            lambda shape: loc + self.scale * torch.randn(*shape, 1),
            loc.shape[:-1],
            (1,),
            "the guide has no density; no",
        )
        with pyro.plate("data", len(x)):
            pyro.sample("z", fn)

    def log_prob(self, x, z):
        return dist.Normal(self.slope(x), self.scale.abs()).log_prob(z).squeeze(-1)


class Quadratic(nn.Module):
    """All polynomials of x and z of degree 2: the log ratio of any two Gaussians."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(9, 1)

    def forward(self, x, z):
        values = torch.cat([x, z], 1)
        left, right = torch.triu_indices(3, 3)
        return self.net(torch.cat([values, values[:, left] * values[:, right]], 1))


def test_the_discriminator_of_an_implicit_guide_is_its_log_ratio_and_gives_log_p():
    model, x = line()
    guide, objective = LinearImplicit(), AdversarialVB(model, x[:2], discriminator=Quadratic())
    pvae.fit(
        model, guide, x, objective=objective, steps=1200, batch_size=500, optimizer=adam(2e-2), schedule="cosine",
        train="guide", step_mode="traced", progress=False,
    )  # fmt: skip
    data = pvae.sample(model, 20_000, like=x[:1], seed=5)["x"]
    z = pvae.encode(guide, data, seed=6)["z"]
    with torch.no_grad():
        truth = guide.log_prob(data, z) - dist.Normal(0.0, 1.0).log_prob(z).squeeze(-1)
        assert (objective.discriminator(data, z) - truth).square().mean().sqrt() < 0.2
        bound, log_prob = objective.bound(model, guide, data), model.log_prob(data)
    difference = bound - log_prob
    assert abs(difference.mean()) < 0.05 + 5 * difference.std() / math.sqrt(len(data))
    posterior = model.posterior(data[:100])
    assert (guide.slope(data[:100]) - posterior.mean).abs().max() < 0.15
    assert abs(guide.scale.abs().item() - posterior.covariance_matrix[0, 0, 0].sqrt().item()) < 0.1


def test_at_the_true_log_ratio_what_is_left_out_of_the_gradient_has_mean_zero():
    """E_q[d log q(z | x) / d phi] = 0: the ELBO's gradient less that of a given T, draw by draw."""
    model, x = line(400)
    guide = MeanField(model, x[:2], hidden=(3,)).double()
    model, x = model.double(), x.double()

    frozen = MeanField(model, x[:2], hidden=(3,)).double()
    frozen.load_state_dict(guide.state_dict())
    frozen.requires_grad_(False).eval()

    def ratio(x, z):
        log_q = pyro.poutine.trace(frozen).get_trace(x).nodes["z"]["fn"].log_prob(z)
        return log_q - dist.Normal(0.0, 1.0).log_prob(z).squeeze(-1)

    objective, leaves, left_out = AdversarialVB(model, x[:2], discriminator=ratio), list(guide.parameters()), []
    for seed in range(80):
        gradients = []
        for each in (ELBO(), objective):
            torch.manual_seed(seed)
            bound = each.bound(model, guide, x).mean()
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(bound, leaves)]))
        left_out.append(gradients[0] - gradients[1])
    left_out = torch.stack(left_out)
    assert (left_out.abs() > 1e-6).all(0).any()
    assert (left_out.mean(0).abs() < 5 * left_out.std(0) / math.sqrt(80) + 1e-12).all()


def mean_gradient(objective, model, guide, x, repeats=60):
    """The discriminator's gradient of the bound, its mean and standard error."""
    leaves, found = list(objective.discriminator.parameters()), []
    torch.manual_seed(1)
    for _ in range(repeats):
        gradients = torch.autograd.grad(objective.bound(model, guide, x).mean(), leaves)
        found.append(torch.cat([gradient.flatten() for gradient in gradients]))
    found = torch.stack(found)
    return found.mean(0), found.std(0) / math.sqrt(repeats)


def test_each_discriminator_ascends_the_logistic_likelihood_and_no_more():
    """T(v) = w v + b: d/dw = E_first[sigmoid(-T) v] - E_second[sigmoid(T) v], by quadrature."""
    torch.manual_seed(0)
    net, grid = nn.Linear(1, 1).double(), torch.linspace(-12, 12, 8001, dtype=torch.float64)

    def slope(first, second):
        t = (net.weight * grid + net.bias).flatten().detach()
        masses = [each.log_prob(grid).exp() * (grid[1] - grid[0]) for each in (first, second)]
        of_t = masses[0] * (-t).sigmoid() - masses[1] * t.sigmoid()
        return torch.stack([(of_t * grid).sum(), of_t.sum()])

    x = draws(5_000, 1).double()
    mean, error = mean_gradient(GenerativeAdversarial(x[:2], discriminator=net), affine().double(), None, x)
    # x is drawn once, so it has an error of its own.
    own = (torch.cat([x, torch.ones_like(x)], 1) * (-net(x)).sigmoid()).std(0) / math.sqrt(len(x))
    assert ((mean - slope(DATA, DRAWN)).abs() < 5 * torch.hypot(error, own)).all()
    # A guide that ignores x, so that q(z) = q(z | x) is known.
    model, x = line(500)
    model, x, guide = model.double(), x.double(), LinearImplicit().double()
    with torch.no_grad():
        guide.slope.weight.zero_()
        guide.scale.fill_(0.6)
    q = dist.Normal(guide.slope.bias.detach(), 0.6)
    truth = slope(q, dist.Normal(0.0, 1.0))
    autoencoder = AdversarialAutoencoder(model, x[:2], 3.0, discriminator=net)

    class OfLatents(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x, z):
            return self.net(z)

    for objective in (autoencoder, AdversarialVB(model, x[:2], discriminator=OfLatents())):
        mean, error = mean_gradient(objective, model, guide, x)
        assert ((mean - truth).abs() < 5 * error).all(), type(objective).__name__


def test_the_codes_of_an_adversarial_autoencoder_look_like_the_prior():
    torch.manual_seed(0)
    x = 1 + torch.randn(2000, 1) @ torch.tensor([[1.0, -0.5, 0.2]]) + 0.1 * torch.randn(2000, 3)
    model = LinearGaussian(3, 1)
    guide = Delta(model, x[:2], encoder=nn.Identity())
    with torch.no_grad():
        guide.encoder.head.weight.copy_(torch.tensor([[2.0, -1.0, 0.4]]))
    # A plain autoencoder would leave the codes N(2.6, 2.6^2).
    objective = AdversarialAutoencoder(model, x[:2], 30.0, hidden=(32,))
    pvae.fit(
        model, guide, x, objective=objective, steps=800, batch_size=250, optimizer=adam(1e-2), schedule="cosine",
        step_mode="traced", progress=False,
    )  # fmt: skip
    z = pvae.encode(guide, x)["z"]
    assert abs(z.mean()) < 0.2
    assert abs(z.std() - 1) < 0.2
    # And they still tell of the data: x's noise is 0.1.
    assert (pvae.reconstruct(model, guide, x)["x"] - x).square().mean().sqrt() < 0.2


@pytest.mark.parametrize("make", [AdversarialVB, AdversarialAutoencoder])
def test_an_implicit_guide_serves_any_continuous_sites(make):
    torch.manual_seed(0)
    model, x = Every(), torch.randn(6, 4)
    guide = Implicit(model, x, hidden=(5,), noise_dim=3, context=4)
    (-make(model, x, hidden=(5,)).bound(model, guide, x).mean()).backward()
    for name, parameter in guide.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_each_draw_of_an_implicit_guide_has_noise_of_its_own():
    model, x = line(3)
    guide = Implicit(model, x, hidden=(8,))
    z = pvae.encode(guide, x, num_samples=400)["z"]
    assert z.shape == (400, 3, 1)
    assert (z.std(0) > 0.05).all()
    with pyro.plate("particles", 5, dim=-2):
        run = pyro.poutine.trace(guide).get_trace(x)
    assert len(run.nodes["z"]["value"].unique()) == 15
    assert pvae.reconstruct(model, guide, x)["x"].shape == (3, 2)


# --- the pair around them


def pairs():
    torch.manual_seed(0)
    generator = affine()
    model, x = line(300)
    yield generator, None, GenerativeAdversarial(x[:2, :1], hidden=(8,)), x[:, :1]
    yield model, Implicit(model, x, hidden=(8,)), AdversarialVB(model, x[:2], hidden=(8,)), x
    yield model, Implicit(model, x, hidden=(8,)), AdversarialAutoencoder(model, x[:2], hidden=(8,)), x


@pytest.mark.parametrize("index", range(3))
def test_eager_and_traced_steps_agree_and_the_discriminator_is_not_saved(index, tmp_path):
    losses = []
    for mode in ("eager", "traced"):
        model, guide, objective, x = list(pairs())[index]
        before = [parameter.clone() for parameter in objective.discriminator.parameters()]
        result = pvae.fit(
            model, guide, x, objective=objective, steps=30, step_mode=mode, out=tmp_path / mode, progress=False
        )
        assert result.step_mode == mode
        losses.append(result.losses)
        assert not any(map(torch.equal, before, objective.discriminator.parameters()))
        assert not any("discriminator" in name for name in result.parameters)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
    assert not any("discriminator" in name for name in load_file(tmp_path / "traced" / "checkpoint.safetensors"))
    fresh_model, fresh_guide, *_ = list(pairs())[index]
    pvae.load(tmp_path / "traced", fresh_model, fresh_guide)
    assert all(map(torch.equal, fresh_model.parameters(), model.parameters()))
    if guide is not None:
        assert all(map(torch.equal, fresh_guide.parameters(), guide.parameters()))


def test_the_discriminator_is_trained_by_svi_too():
    model, guide, objective, x = list(pairs())[1]
    before = [parameter.clone() for parameter in objective.discriminator.parameters()]
    with pyro.get_param_store().scope():
        pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), objective).step(x)
    assert not any(map(torch.equal, before, objective.discriminator.parameters()))


def test_the_parzen_window_of_a_generator_is_its_density_blurred():
    x = draws(200, 1)
    found = pvae.log_marginal(affine(), None, x, ParzenWindow(40_000, bandwidth=0.5))
    blurred = dist.Normal(DRAWN.loc.double(), math.hypot(DRAWN.scale, 0.5)).log_prob(x.double()).squeeze(-1)
    # One set of draws for all data, so their errors go together.
    assert ((found.values - blurred).abs() < 5 * found.mc_standard_errors).all()
    assert found.bound == "none"


def test_what_asks_for_log_p_of_a_generator_is_refused():
    model, x = affine(), draws(6, 0)
    guide = MeanField(model, x, hidden=(4,))
    for ask in (
        lambda: pvae.log_marginal(model, guide, x, ImportanceSampling(10)),
        lambda: pvae.log_marginal(model, None, x, PriorSampling(10)),
        lambda: pvae.log_marginal(model, guide, x, AnnealedImportanceSampling(10)),
        lambda: pvae.log_weights(model, guide, x, 2),
        lambda: ELBO().bound(model, guide, x),
        lambda: pvae.fit(model, guide, x, steps=1, progress=False),
        lambda: pvae.fit(model, guide, x, objective=AdversarialVB(model, x), steps=1, progress=False),
    ):
        with pytest.raises(ValueError, match=NO_X):
            ask()
    (finding,) = pvae.check(model, guide, x)
    assert finding.level == "error"
    assert pvae.check(model, guide, x, GenerativeAdversarial(x)) == []
    assert pvae.check(model, None, x, GenerativeAdversarial(x)) == []


def test_what_asks_for_log_q_of_an_implicit_guide_is_refused():
    model, x = line(6)
    guide = Implicit(model, x, hidden=(4,))
    for ask in (
        lambda: pvae.log_marginal(model, guide, x, ImportanceSampling(10)),
        lambda: pvae.log_weights(model, guide, x, 2),
        lambda: ELBO().bound(model, guide, x),
        lambda: pvae.fit(model, guide, x, steps=1, progress=False),
        lambda: pvae.diagnostics.collapse(model, guide, x),
    ):
        with pytest.raises(ValueError, match=NO_Q):
            ask()
    assert len(pvae.check(model, guide, x)) == 1
    assert pvae.check(model, guide, x, AdversarialVB(model, x)) == []
    assert torch.isfinite(pvae.log_marginal(model, guide, x, PriorSampling(100)).values).all()


def test_mistakes_are_told_in_one_line():
    model, x = line(6)
    guide = MeanField(model, x, hidden=(4,))
    data = pvae.data.DataSet("mine", train=x, valid=x)
    for message, ask in {
        "leave early_stopping out": lambda: pvae.fit(
            model, guide, data, objective=AdversarialVB(model, x), epochs=2, early_stopping=1, progress=False
        ),
        r"a tensor \(6,\) or \(6, 1\), got a tensor \(6, 2\)": lambda: GenerativeAdversarial(
            x, discriminator=nn.Linear(2, 2)
        ),
        "divergence must be a finite number above 0": lambda: AdversarialAutoencoder(model, x, 0.0),
        "noise_dim must be": lambda: Implicit(model, x, noise_dim=0),
        "latent_dim must be": lambda: Generator((1,), 0),
        r"Generator expects a batch of shape \(B, 1\)": lambda: affine()(x),
        "is Pyro's own: it takes a guide": lambda: pvae.fit(
            model, None, x, objective=pyro.infer.Trace_ELBO(), steps=1, progress=False
        ),
    }.items():
        with pytest.raises(ValueError, match=rf"\A.*{message}.*\Z"):
            ask()


def test_without_a_guide_a_bound_draws_from_the_prior():
    model, x = line(6)
    result = pvae.fit(model, None, x, objective=ELBO(3), steps=2, progress=False)
    assert torch.isfinite(result.losses).all()


def test_a_value_that_is_not_finite_is_found_without_a_density():
    model, x = affine(math.inf), draws(4, 0)
    with pytest.raises(FloatingPointError, match="not finite"):
        pvae.fit(model, None, x, objective=GenerativeAdversarial(x, hidden=(4,)), steps=1, progress=False)
