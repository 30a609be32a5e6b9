"""Flow guides: log-determinants, inverses and densities against autograd and integrals, bounds against log p(x)."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pvae
import pvae.truth
from pvae.guides import IAF, CouplingFlow, FullCovariance, MeanField, PlanarFlow, SplineFlow
from pvae.models import LinearGaussian
from pvae.objectives import ELBO, IWAE
from pvae.pair.look import read_layout
from pvae.pair.run import run_pair
from pvae.pair.store import private_store
from tests.test_any_model import Every

FLOWS = {"CouplingFlow": CouplingFlow, "IAF": IAF, "PlanarFlow": PlanarFlow, "SplineFlow": SplineFlow}
INVERTIBLE = sorted(set(FLOWS) - {"PlanarFlow"})
NUM_DATA = 3


def pair(name, dim=4, spread=0.5, **options):
    """A linear-Gaussian model, a guide far from where it starts, and data, in float64."""
    torch.manual_seed(0)
    model, x = LinearGaussian(dim + 2, dim).double(), torch.randn(NUM_DATA, dim + 2, dtype=torch.float64)
    narrow = {} if name == "PlanarFlow" else {"step_hidden": (16,), "context": 8}
    guide = FLOWS[name](model, x, hidden=(8,), **{**narrow, **options}).double()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.normal_(0, spread)
    return model, guide, x


def joint(guide, x):
    return guide.joint(guide.encoder(x))


def jacobian_of(transform, z):
    """Of one vector z (D,), (D, D)."""
    return torch.autograd.functional.jacobian(lambda z: transform(z[None])[0], z)


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("name", FLOWS)
def test_log_determinants_are_those_of_the_jacobian(name, dim):
    _, guide, x = pair(name, dim)
    z = torch.randn(NUM_DATA, dim, dtype=torch.float64)
    # A standardised step is a step between two affine ones, each of which has its own place in the list.
    for transform in joint(guide, x).transforms:
        after, log_det = transform.call_and_ladj(z)
        jacobian = torch.autograd.functional.jacobian(lambda z, f=transform: f(z).sum(0), z).transpose(0, 1)
        torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1], atol=1e-8, rtol=0)
        torch.testing.assert_close(transform.log_abs_det_jacobian(z, after), log_det, atol=1e-8, rtol=0)
        z = after.detach()


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("name", INVERTIBLE)
def test_the_inverse_undoes_the_flow_and_gives_the_same_density(name, dim):
    _, guide, x = pair(name, dim)
    flowed = joint(guide, x)
    z, log_prob = flowed.rsample_and_log_prob(torch.Size([100]))
    start = z
    for transform in reversed(flowed.transforms):
        start = transform.inv(start)
    again = start
    for transform in flowed.transforms:
        again = transform(again)
    torch.testing.assert_close(again, z, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(flowed.log_prob(z), log_prob, atol=1e-6, rtol=1e-6)
    # The draws that the flow started from, made again.
    torch.manual_seed(1)
    first = flowed.base.rsample(torch.Size([100]))
    torch.manual_seed(1)
    moved, _ = flowed.rsample_and_log_prob(torch.Size([100]))
    for transform in reversed(flowed.transforms):
        moved = transform.inv(moved)
    torch.testing.assert_close(moved, first, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["IAF", "SplineFlow"])
def test_jacobians_are_triangular_and_turn_over_between_steps(name):
    _, guide, x = pair(name, 5, length=3)
    z = torch.randn(5, dtype=torch.float64)
    context = guide.encoder(x[:1])[:, 2 * guide.dim :]
    for index, step in enumerate(guide.steps):
        jacobian = jacobian_of(step(context), z)
        beyond, within = (jacobian.tril(-1), jacobian.triu(1)) if index % 2 else (jacobian.triu(1), jacobian.tril(-1))
        assert (beyond == 0).all()
        assert (within != 0).sum() == 10
        assert (jacobian.diagonal() > 0).all()


def test_coupling_steps_change_parts():
    _, guide, x = pair("CouplingFlow", 5, length=2)
    z, context = torch.randn(5, dtype=torch.float64), guide.encoder(x[:1])[:, 10:]
    for index, step in enumerate(guide.steps):
        jacobian = jacobian_of(step(context), z)
        place = torch.arange(5)
        moved, by = place % 2 != index, place % 2 == index
        depends = (moved[:, None] & by) | torch.eye(5, dtype=torch.bool)
        assert torch.equal(jacobian != 0, depends)


@pytest.mark.parametrize(("name", "passes"), [("IAF", 6), ("SplineFlow", 6), ("CouplingFlow", 3)])
def test_draws_take_one_pass_and_other_values_as_many_as_there_are_parts(name, passes):
    _, guide, x = pair(name, 5, length=1)
    calls = []
    guide.steps[0].hyper.register_forward_hook(lambda *_: calls.append(1))
    flowed = joint(guide, x)
    z, _ = flowed.rsample_and_log_prob(torch.Size([7]))
    assert len(calls) == 1
    flowed.log_prob(z)
    # The inverse, then the log-determinant at what it gave.
    assert len(calls) - 1 == passes


def test_iaf_starts_with_open_gates():
    torch.manual_seed(0)
    model, x = LinearGaussian(6, 4), torch.randn(50, 6)
    guide = IAF(model, x, gate_bias=2.0)
    flowed = joint(guide, x)
    z = flowed.base.rsample()
    for transform in flowed.transforms:
        _, log_det = transform.call_and_ladj(z)
        # Four gates near sigmoid(2).
        assert (log_det / 4 - math.log(1 / (1 + math.exp(-2)))).abs().max() < 0.1


@pytest.mark.parametrize("size", [1e-3, 1.0, 3.0])
def test_planar_steps_are_invertible_whatever_u(size):
    _, guide, x = pair("PlanarFlow", 3, length=4, spread=0.5)
    with torch.no_grad():
        numbers = guide.encoder(x)
        w, u, _b = numbers[:, 6:].unflatten(-1, (4, 7)).split([3, 3, 1], -1)
        w *= size / w.norm(dim=-1, keepdim=True)
        u.copy_(-5 * w / w.square().sum(-1, keepdim=True))
        along = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
        for index, step in enumerate(guide.joint(numbers).transforms):
            direction = w[:, index] / w[:, index].norm(dim=-1, keepdim=True)
            line = along[..., None] * direction / size
            raw = line + u[:, index] * ((line * w[:, index]).sum(-1, keepdim=True) + step.b).tanh()
            height, unfixed = ((each * direction).sum(-1) for each in (step(line), raw))
            assert (height.diff(dim=0) > 0).all()
            assert (unfixed.diff(dim=0) < 0).any()
            assert ((w[:, index] * step.u).sum(-1) > -1).all()


def test_a_planar_step_with_no_u_changes_nothing():
    _, guide, x = pair("PlanarFlow", 3, length=2)
    with torch.no_grad():
        numbers = guide.encoder(x)
        numbers[:, 6:].unflatten(-1, (2, 7))[..., 3:6] = 0
        flowed = guide.joint(numbers)
        z, log_prob = flowed.rsample_and_log_prob(torch.Size([10]))
        torch.testing.assert_close(log_prob, flowed.base.log_prob(z), atol=1e-12, rtol=0)


@pytest.mark.parametrize("several", [False, True], ids=["one site", "many sites"])
@pytest.mark.parametrize("name", FLOWS)
def test_without_steps_a_flow_is_mean_field_bit_for_bit(name, several):
    torch.manual_seed(3)
    model, x = (Every(), torch.randn(6, 4)) if several else (LinearGaussian(4, 2), torch.randn(6, 4))
    found = {}
    for family, options in ((MeanField, {}), (FLOWS[name], {"length": 0})):
        torch.manual_seed(4)
        guide = family(model, x, hidden=(5,), **options)
        before = {key: value.clone() for key, value in guide.state_dict().items()}
        draws = pvae.encode(guide, x, num_samples=3)
        weights = pvae.log_weights(model, guide, x, 3).values
        torch.manual_seed(5)
        objective = IWAE(3, gradient="dreg")
        gradients = torch.autograd.grad(objective.bound(model, guide, x).sum(), list(guide.parameters()))
        found[family] = before, draws, weights, gradients
    (state, draws, weights, gradients), (others, other_draws, other_weights, other_gradients) = found.values()
    assert state.keys() == others.keys()
    assert all(torch.equal(state[key], others[key]) for key in state)
    assert all(torch.equal(draws[site], other_draws[site]) for site in draws)
    assert torch.equal(weights, other_weights)
    assert all(torch.equal(*each) for each in zip(gradients, other_gradients, strict=True))


@pytest.mark.parametrize("name", INVERTIBLE)
def test_densities_integrate_to_one(name):
    _, guide, x = pair(name, 2, spread=0.3)
    flowed = joint(guide, x[:1])
    with torch.no_grad():
        draws, _ = flowed.rsample_and_log_prob(torch.Size([10_000]))
        middle, reach = draws.mean((0, 1)), 8 * draws.std((0, 1))
        ticks = torch.linspace(-1, 1, 301, dtype=torch.float64)
        grid = middle + torch.cartesian_prod(ticks, ticks)[:, None] * reach
        cell = (reach * (ticks[1] - ticks[0])).prod()
        total = (flowed.log_prob(grid).exp() * cell).sum()
    assert abs(total - 1) < 2e-3


@pytest.mark.parametrize("name", FLOWS)
def test_densities_of_own_draws_are_those_of_where_they_land(name):
    # E_q[g(z) / q(z)] = 1 for the density g of any distribution whose support q covers.
    _, guide, x = pair(name, 2, spread=0.3)
    with torch.no_grad():
        flowed = joint(guide, x)
        draws, log_prob = flowed.rsample_and_log_prob(torch.Size([20_000]))
        inner = torch.distributions.Normal(draws.mean(0), 0.3 * draws.std(0))
        ratio = (inner.log_prob(draws).sum(-1) - log_prob).exp()
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert (error < 0.1).all()
    assert ((ratio.mean(0) - 1).abs() < 5 * error).all()


@pytest.mark.parametrize("name", INVERTIBLE)
def test_sticking_the_landing_leaves_out_the_score_alone(name):
    model, guide, x = pair(name, 3, spread=0.3)
    leaves = list(guide.parameters())

    def gradient(gradient):
        torch.manual_seed(2)
        return torch.autograd.grad(ELBO(4, gradient=gradient).bound(model, guide, x).sum(), leaves)

    layout = read_layout(model, guide, (x,), 4)
    with private_store(model, guide):
        torch.manual_seed(2)
        own = run_pair(model, guide, (x,), 4, layout)
        given = {site: value.detach() for site, value in own.latents.items()}
        again = run_pair(model, guide, (x,), 4, layout, given=given)
    log_guide = again.log_weights().log_guide
    torch.testing.assert_close(log_guide, own.log_weights().log_guide, atol=1e-8, rtol=0)
    score = torch.autograd.grad(log_guide.mean(0).sum(), leaves)
    for pathwise, stl, part in zip(gradient("pathwise"), gradient("stl"), score, strict=True):
        torch.testing.assert_close(pathwise, stl - part, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("objective", [ELBO(2, gradient="stl"), IWAE(2, gradient="dreg")], ids=["stl", "dreg"])
def test_planar_flows_refuse_values_from_elsewhere_in_a_line(objective):
    model, guide, x = pair("PlanarFlow", 2)
    with pytest.raises(ValueError, match="site 'z' has no density at a value that it did not draw itself; use a flow"):
        objective.bound(model, guide, x)
    with private_store(model, guide):
        run = run_pair(
            model, guide, (x,), 2, read_layout(model, guide, (x,), 2), given={"z": torch.zeros(2, 3, 2).double()}
        )
        with pytest.raises(ValueError, match="no density at a value"):
            run.log_weights()


def gap(family, model, x, log_prob, *, steps, lr=1e-2, hidden=(32,), **options):
    """Mean of log p(x) - ELBO of a guide trained against the model as it is, in nats, and its standard error."""
    torch.manual_seed(0)
    guide = family(model, x, hidden=hidden, **options).double()
    pvae.fit(
        model,
        guide,
        x,
        objective=ELBO(8, gradient="stl"),
        steps=steps,
        batch_size=len(x),
        lr=lr,
        schedule="cosine",
        train="guide",
        step_mode="traced",
        progress=False,
    )
    torch.manual_seed(1)
    with torch.no_grad():
        weights = pvae.log_weights(model, guide, x, 4000).values
    return (log_prob - weights.mean(0)).mean().item(), (weights.mean(1).std() / math.sqrt(4000)).item()


@pytest.mark.parametrize(
    "name", ["IAF", *(pytest.param(name, marks=pytest.mark.slow) for name in ("CouplingFlow", "SplineFlow"))]
)
def test_flows_close_the_gap_that_rotation_leaves_to_mean_field(name):
    torch.manual_seed(0)
    model = LinearGaussian(4, 2).double()
    turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64) / math.sqrt(2)
    with torch.no_grad():
        model.weight.copy_(torch.eye(4, 2, dtype=torch.float64) * torch.tensor([2.0, 0.5]) @ turn)
    x = torch.randn(4, 4, dtype=torch.float64)
    log_prob = model.log_prob(x).detach()
    # Of the best diagonal Gaussian: half of sum log diag(P) - log det P of the posterior's precision P.
    precision = model.posterior(x).precision_matrix
    precision = precision[0] if precision.dim() == 3 else precision
    of_mean_field = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
    assert of_mean_field > 0.2
    found, error = gap(FLOWS[name], model, x, log_prob, steps=300, step_hidden=(16,), context=8)
    assert -5 * error < found < 0.02


@pytest.mark.slow
def test_richer_families_lie_nearer_to_the_ring():
    truth = pvae.truth.ring()
    shared = {"model": truth.model, "x": truth.x, "log_prob": truth.log_prob, "steps": 1000}
    families = {"mean field": MeanField, "full": FullCovariance, "IAF": IAF, "spline": SplineFlow}
    gaps = {name: gap(family, **shared) for name, family in families.items()}
    for above, below in (("mean field", "full"), ("full", "IAF"), ("full", "spline")):
        error = math.hypot(gaps[above][1], gaps[below][1])
        assert gaps[above][0] - gaps[below][0] > 5 * error, gaps
    assert all(value > -5 * error for value, error in gaps.values())


def test_importing_flows_leaves_torch_as_it_was():
    code = """
import torch
from torch.distributions import Distribution
import pyro
before = Distribution._validate_args, Distribution.__dict__["arg_constraints"]
import pvae.guides
assert "zuko" in __import__("sys").modules
assert before == (Distribution._validate_args, Distribution.__dict__["arg_constraints"])
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1])


@pytest.mark.parametrize("length", [-1, 1.5])
@pytest.mark.parametrize("name", FLOWS)
def test_lengths_are_whole_numbers(name, length):
    with pytest.raises(ValueError, match=r"length must be a whole number of at least 0, got (-1|1\.5); try"):
        pair(name, length=length)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_steps_need_a_context(name):
    with pytest.raises(ValueError, match="context must be a whole number of at least 1, got 0"):
        pair(name, context=0)
