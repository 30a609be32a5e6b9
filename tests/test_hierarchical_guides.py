"""Guides for hierarchical models, and the auxiliary guide, against linear-Gaussian and one-dimensional truths."""

import functools
import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.nn.functional import softplus

import pvae
from pvae.estimators import ImportanceSampling
from pvae.guides import Auxiliary, BottomUp, Ladder, MeanField, TopDown
from pvae.objectives import ELBO, IWAE
from pvae.objectives.baselines import LeaveOneOut
from pvae.pair.look import read_layout
from pvae.pair.run import run_pair
from pvae.pair.sites import random_sites

ALL = [BottomUp, TopDown, Ladder, Auxiliary]


class Chain(nn.Module):
    """z2 ~ N(0, I), z1 | z2 ~ N(a z2, s^2), x | z1 ~ N(b z1, t^2), all diagonal: dims are apart."""

    def __init__(self):
        super().__init__()
        for name, value in {"a": [0.9, -0.6], "s": [0.5, 0.8], "b": [1.2, 0.7], "t": [0.6, 0.5]}.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(self.a), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(self.a * z2, self.s).to_event(1))
            pyro.sample("x", dist.Normal(self.b * z1, self.t).to_event(1), obs=x)

    def log_prob(self, x):
        variance = self.b**2 * (self.a**2 + self.s**2) + self.t**2
        return torch.distributions.Normal(0.0, variance.sqrt()).log_prob(x).sum(-1)

    def gap_of_independence(self):
        """The least KL from a product to a posterior of precision P, 1/2 (log det diag P - log det P) in nats."""
        a, s, b, t = self.a, self.s, self.b, self.t
        top, low, across = 1 + (a / s) ** 2, s**-2 + (b / t) ** 2, -a / s**2
        return -0.5 * torch.log1p(-(across**2) / (top * low)).sum()

    def data(self, num):
        variance = self.b**2 * (self.a**2 + self.s**2) + self.t**2
        noise = torch.randn(num, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return noise * variance.sqrt()


class Layers(nn.Module):
    """Three Gaussian layers and a plate inside the data plate, with nets between; a label is seen on the way."""

    def __init__(self):
        super().__init__()
        self.low, self.decoder = nn.Linear(2, 6), nn.Linear(3, 4)

    def forward(self, x, y):
        pyro.module("model", self)
        parts = pyro.plate("parts", 2, dim=-1)
        with pyro.plate("data", len(x), dim=-2):
            top = pyro.sample("top", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(top.sum(-1), 1.0), obs=y[:, None])
            loc, raw = self.low(top).chunk(2, -1)
            middle = pyro.sample("middle", dist.Normal(loc, softplus(raw)).to_event(1))
            with parts:
                low = pyro.sample("low", dist.Normal(middle, 0.7).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(low)).to_event(1), obs=x)


def layers():
    torch.manual_seed(0)
    x = torch.rand(6, 2, 4, generator=torch.Generator().manual_seed(0)).round().double()
    return Layers().double(), (x, x.mean((1, 2)))


@functools.cache
def trained(family):
    """A guide of affine maps, trained on the chain."""
    torch.manual_seed(0)
    model = Chain()
    x = model.data(64)
    # A posterior of two numbers per dim is a Gaussian a in each, and independent noise.
    options = {"auxiliary_dim": 2} if family is Auxiliary else {}
    guide = family(model, x, hidden=(), encoder=nn.Flatten(), **options).double()
    objective = ELBO(2, gradient="pathwise" if family is MeanField else "stl")
    pvae.fit(
        model,
        guide,
        x,
        objective=objective,
        steps=1500 if family is Auxiliary else 800,
        batch_size=64,
        lr=2e-2,
        schedule="cosine",
        step_mode="traced",
    )
    return model, guide, x


def gap(family):
    """log p(x) minus the bound as means over data, and the error of the bound."""
    model, guide, x = trained(family)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        values = pvae.log_weights(model, guide, x, 1000).values
    per_draw = (model.log_prob(x) - values).mean(1)
    return per_draw.mean().item(), (per_draw.std() / math.sqrt(len(per_draw))).item()


@pytest.mark.parametrize("family", ALL)
def test_a_guide_that_holds_the_posterior_closes_the_gap(family):
    found, error = gap(family)
    assert -5 * error <= found < 0.01


def test_independent_layers_keep_the_gap_of_the_closed_form():
    found, error = gap(MeanField)
    floor = trained(MeanField)[0].gap_of_independence().item()
    assert floor > 0.3
    assert floor - 5 * error < found < floor + 0.02 + 5 * error


@pytest.mark.parametrize("family", ALL)
def test_importance_sampling_finds_log_p(family):
    model, guide, x = trained(family)
    answer = pvae.log_marginal(model, guide, x, ImportanceSampling(2000))
    assert answer.fraction_untrusted < 0.1
    trusted = answer.khat < answer.khat_threshold
    assert ((answer.values - model.log_prob(x)).abs() < 5 * answer.mc_standard_errors + 1e-9)[trusted].all()


def test_the_ladder_multiplies_evidence_and_prior():
    torch.manual_seed(0)
    model = Chain()
    x = model.data(5)
    guide = Ladder(model, x, hidden=(4,), min_scale=0.1).double()
    sites = poutine.trace(guide).get_trace(x).nodes
    own, hidden = guide.encoder(x).split([4, 4], -1)
    (low, raw_low), (top, raw_top) = own.chunk(2, -1), guide.steps[0](hidden).chunk(2, -1)
    torch.testing.assert_close(sites["z2"]["fn"].base_dist.loc, top, rtol=0, atol=1e-10)
    torch.testing.assert_close(sites["z2"]["fn"].base_dist.scale, 0.1 + softplus(raw_top), rtol=0, atol=1e-10)
    var_d, var_p = (0.1 + softplus(raw_low)) ** 2, model.s**2
    variance = 1 / (1 / var_d + 1 / var_p)
    loc = variance * (low / var_d + model.a * sites["z2"]["value"] / var_p)
    torch.testing.assert_close(sites["z1"]["fn"].base_dist.loc, loc, rtol=0, atol=1e-10)
    torch.testing.assert_close(sites["z1"]["fn"].base_dist.scale, variance.sqrt(), rtol=0, atol=1e-10)


def test_the_ladder_leaves_the_decoder_alone():
    model, batch = layers()
    guide, calls = Ladder(model, batch, hidden=(4,)).double(), []
    model.low.register_forward_hook(lambda *_: calls.append("low"))
    model.decoder.register_forward_hook(lambda *_: calls.append("decoder"))
    trace = poutine.trace(guide).get_trace(*batch)
    assert calls == ["low"]
    assert list(random_sites(trace)) == ["top", "middle", "low"]


@pytest.mark.parametrize("options", [{"hidden": (4,)}, {"hidden": (), "encoder": lambda x, y: x.flatten(1)}])
@pytest.mark.parametrize("family", [*ALL, functools.partial(BottomUp, sees_data=True)])
def test_particles_at_once_equal_particles_one_by_one(family, options):
    model, batch = layers()
    guide = family(model, batch, **options).double()
    with torch.no_grad():
        layout = read_layout(model, guide, batch, 4)
        assert layout.vectorizes
        run = run_pair(model, guide, batch, 4, layout)
        together = run.log_weights().values
        assert together.shape == (4, 6)
        assert torch.isfinite(together).all()
        draws = {name: layout.collect(name, site["value"], 4) for name, site in run.guide.items()}
        assert all(value.shape[:2] == (4, 6) for value in draws.values())
        in_copies = run_pair(model, guide, batch, 4, replace(layout, vectorizes=False), given=draws).log_weights()
        torch.testing.assert_close(in_copies.values, together, rtol=1e-10, atol=1e-10)
        for k in range(4):
            given = {name: value[k : k + 1] for name, value in draws.items()}
            alone = run_pair(model, guide, batch, 1, layout, given=given).log_weights().values
            torch.testing.assert_close(alone[0], together[k], rtol=1e-10, atol=1e-10)
        one = pvae.log_weights(model, guide, batch, 1).values
        assert one.shape == (1, 6)
        assert torch.isfinite(one).all()


@pytest.mark.parametrize("step_mode", ["traced", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ALL)
def test_training_raises_the_bound_and_reaches_every_parameter(family, step_mode):
    model, batch = layers()
    guide = family(model, batch, hidden=(5,)).double()
    (-IWAE(3).bound(model, guide, batch).mean()).backward()
    for name, parameter in [*model.named_parameters(), *guide.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    result = pvae.fit(model, guide, batch, objective=ELBO(4), steps=60, batch_size=6, lr=2e-2, step_mode=step_mode)
    assert result.step_mode == step_mode
    assert result.losses[-10:].mean() < result.losses[:10].mean()


@pytest.mark.parametrize("family", ALL)
def test_a_guide_trains_alone_against_a_frozen_model(family):
    model, batch = layers()
    guide = family(model, batch, hidden=(5,)).double()
    before = [{name: value.clone() for name, value in each.state_dict().items()} for each in (model, guide)]
    pvae.fit(model, guide, batch, steps=3, batch_size=6, lr=2e-2, train="guide", step_mode="eager")
    assert all(torch.equal(value, before[0][name]) for name, value in model.state_dict().items())
    assert not any(torch.equal(value, before[1][name]) for name, value in guide.state_dict().items())


def test_positive_and_scalar_sites_are_carried_to_their_supports():
    def model(x):
        with pyro.plate("data", len(x)):
            scale = pyro.sample("scale", dist.Gamma(2.0, torch.ones((), dtype=x.dtype)))
            share = pyro.sample("share", dist.Dirichlet(x.new_ones(3)))
            pyro.sample("x", dist.Normal(share, scale[..., None]).to_event(1), obs=x)

    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for family in (BottomUp, TopDown, Auxiliary):
        torch.manual_seed(0)
        guide = family(model, x, hidden=(4,)).double()
        assert pvae.check(model, guide, x) == []
        assert torch.isfinite(pvae.log_weights(model, guide, x, 3).values).all()
    with pytest.raises(ValueError, match=r"site 'scale' is drawn from Gamma.*use TopDown"):
        Ladder(model, x)


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_an_auxiliary_latent_has_a_size(size):
    with pytest.raises(ValueError, match=r"auxiliary_dim must be a whole number of at least 1.*try 8"):
        Auxiliary(Chain(), Chain().data(2), auxiliary_dim=size)


def affine_auxiliary(model, x):
    """q(a | x), q(z | a, x) and r(a | x, z) as affine maps, with random weights."""
    torch.manual_seed(1)
    guide = Auxiliary(model, x, hidden=(), encoder=nn.Flatten(), auxiliary_dim=1, min_scale=0.1).double()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return guide


def test_an_auxiliary_latent_that_nobody_uses_changes_no_weight():
    model = Chain()
    x = model.data(6)
    guide = affine_auxiliary(model, x)
    plain = MeanField(model, x, encoder=nn.Flatten(), min_scale=0.1).double()
    with torch.no_grad():
        for net in (guide.conditional, guide.reverse):
            net.first.weight.zero_()
            net.first.bias.zero_()
        for own in (guide.encoder.head.weight, guide.encoder.head.bias):
            own[-2:] = own[:2]
        plain.encoder.head.weight.copy_(guide.encoder.head.weight[2:-2])
        plain.encoder.head.bias.copy_(guide.encoder.head.bias[2:-2])
        run = run_pair(model, guide, (x,), 3, read_layout(model, guide, (x,), 3))
        same = run_pair(model, plain, (x,), 3, read_layout(model, plain, (x,), 3), given=run.latents)
    torch.testing.assert_close(run.log_weights().values, same.log_weights().values, rtol=0, atol=1e-10)


def test_log_r_counts_with_the_prior_and_pyro_agrees_on_the_total():
    model, batch = layers()
    guide = Auxiliary(model, batch, hidden=(4,), auxiliary_dim=3).double()
    with torch.no_grad():
        run = run_pair(model, guide, batch, 1, read_layout(model, guide, batch, 1))
        weights = run.log_weights()
        log_r = -run.reverse["auxiliary_reverse"]["fn"].log_factor[:, 0]
        own = [run.model[name]["fn"].log_prob(value.movedim(0, 0)[0]) for name, value in run.latents.items()]
        log_prior = sum(each.reshape(6, -1).sum(-1) for each in own)
        torch.testing.assert_close(weights.log_prior[0], log_prior + log_r)
        torch.manual_seed(5)
        ours = ELBO().loss(model, guide, *batch)
        torch.manual_seed(5)
        assert pyro.infer.Trace_ELBO().loss(model, guide, *batch) == pytest.approx(ours, rel=1e-10)


class Square(nn.Module):
    """z ~ N(0, 1), x ~ N(z^2, 0.3^2): two modes, and log p(x) by quadrature."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z**2, 0.3).to_event(1), obs=x)

    def log_prob(self, x):
        z = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
        normal = torch.distributions.Normal
        joint = normal(0.0, 1.0).log_prob(z) + normal(z**2, 0.3).log_prob(x)
        return joint.logsumexp(-1) + math.log(16 / 20_000)


def extended_bound(guide, x):
    """The bound of an affine auxiliary guide for `Square`, by Gauss-Hermite quadrature over both draws, (B,)."""
    nodes, masses = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(80))
    noise_a, noise_z = nodes[:, None, None], nodes[:, None]
    mass = (masses[:, None, None] * masses[:, None]) / (2 * math.pi)
    normal = torch.distributions.Normal

    def gaussian(numbers):
        loc, raw = numbers.chunk(2, -1)
        return normal(loc[..., 0], 0.1 + softplus(raw[..., 0]))

    of_a, of_z, of_r = guide.encoder(x).split(2, -1)
    q_a = gaussian(of_a)
    a = q_a.loc + q_a.scale * noise_a
    q_z = gaussian(of_z + guide.conditional.first(a[..., None]))
    z = q_z.loc + q_z.scale * noise_z
    r = gaussian(of_r + guide.reverse.first(z[..., None]))
    log_joint = normal(0.0, 1.0).log_prob(z) + normal(z**2, 0.3).log_prob(x[:, 0])
    return (mass * (log_joint + r.log_prob(a) - q_a.log_prob(a) - q_z.log_prob(z))).sum((0, 1))


OBJECTIVES = {
    "pathwise": lambda: ELBO(400),
    "analytic": lambda: ELBO(400, kl="analytic"),
    "stl": lambda: ELBO(400, gradient="stl"),
    "dreg": lambda: ELBO(400, gradient="dreg"),
    "score": lambda: ELBO(400, gradient="score", baseline=LeaveOneOut()),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_auxiliary_bound_has_the_gradient_of_the_truth(name):
    model, x = Square(), torch.tensor([[0.4], [1.5]], dtype=torch.float64)
    guide = affine_auxiliary(model, x)
    truth = extended_bound(guide, x).mean()
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(truth, [*guide.parameters()])])
    objective = OBJECTIVES[name]()
    values, gradients = [], []
    for _ in range(40):
        bound = objective.bound(model, guide, x).mean()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(bound, [*guide.parameters()])]))
        values.append(bound.detach())
    for found, answer in ((torch.stack(values), truth.detach()), (torch.stack(gradients), wanted)):
        error = found.std(0) / math.sqrt(len(found))
        assert ((found.mean(0) - answer).abs() < 5 * error + 1e-9).all()
        assert (error < 0.1 * answer.abs().max()).all()


def fitted_to_square(family, objectives, **options):
    torch.manual_seed(0)
    model, x = Square(), torch.tensor([[0.8], [1.2], [1.6]], dtype=torch.float64)
    guide = family(model, x, hidden=(16,), **options).double()
    for objective in objectives:
        pvae.fit(model, guide, x, objective=objective, steps=400, batch_size=3, lr=1e-2, step_mode="traced")
    return model, guide, x


# An entropy that counts more than once keeps a guide from settling on the first mode that it finds.
HOT = [ELBO(16, beta=8), ELBO(16, beta=4)]


@pytest.mark.slow
def test_an_auxiliary_latent_reaches_both_modes():
    gaps = {}
    pairs = {
        MeanField: fitted_to_square(MeanField, [ELBO(16)]),
        Auxiliary: fitted_to_square(Auxiliary, [*HOT, ELBO(16, beta=2), ELBO(16)], auxiliary_dim=1),
    }
    for family, (model, guide, x) in pairs.items():
        torch.manual_seed(4)
        values = pvae.log_weights(model, guide, x, 20_000).values
        gaps[family] = model.log_prob(x) - values.mean(0)
    # A narrow Gaussian has one of two equal modes: half of the mass, log 2.
    assert (gaps[MeanField] > math.log(2)).all()
    assert (gaps[Auxiliary] > 0).all()
    assert (gaps[MeanField] - gaps[Auxiliary]).mean() > 0.3


def test_importance_sampling_with_an_auxiliary_latent_finds_log_p_of_two_modes():
    model, guide, x = fitted_to_square(Auxiliary, [*HOT, ELBO(16, beta=2), IWAE(16)], auxiliary_dim=1)
    answer = pvae.log_marginal(model, guide, x, ImportanceSampling(20_000))
    assert (answer.khat < answer.khat_threshold).all()
    assert (answer.mc_standard_errors < 0.05).all()
    assert ((answer.values - model.log_prob(x)).abs() < 5 * answer.mc_standard_errors).all()
