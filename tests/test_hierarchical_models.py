"""The hierarchical VAE: with affine nets against its closed-form log p(x), and its default shape."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal
from torch.nn.functional import softplus

import pvae
from pvae.estimators import ImportanceSampling
from pvae.guides import BottomUp, Ladder, TopDown
from pvae.models import HierarchicalVAE
from pvae.models.likelihoods import Gaussian
from pvae.objectives import ELBO, IWAE

X_DIM, NOISE = 4, 0.5
SHAPES = [((2,), False), ((2, 1), False), ((3, 2, 1), False), ((3, 2, 1), True)]


def affine(latent_dims, skip):
    """A model with affine locs and constant scales."""
    torch.manual_seed(0)
    widths = [sum(latent_dims[index:]) if skip else latent_dims[index] for index in range(len(latent_dims))]
    outputs = [X_DIM, *(2 * latent_dim for latent_dim in latent_dims[:-1])]
    nets = [nn.Linear(width, output) for width, output in zip(widths, outputs, strict=True)]
    with torch.no_grad():
        for net, latent_dim in zip(nets[1:], latent_dims, strict=False):
            net.weight[latent_dim:] = 0
    return HierarchicalVAE((X_DIM,), latent_dims, likelihood=Gaussian(NOISE), nets=nets, skip=skip).double()


@torch.no_grad()
def joint(model):
    """Mean and covariance of (z_L, ..., z_1, x), side by side, by one affine map after the other."""
    dims = [*reversed(model.latent_dims), X_DIM]
    loc, covariance = torch.zeros(dims[0]).double(), torch.eye(dims[0]).double()
    for level, net in enumerate(reversed([*model.nets]), 1):
        last = level == len(model.nets)
        weight, bias = (net.weight, net.bias) if last else (net.weight[: dims[level]], net.bias[: dims[level]])
        scale = torch.full((X_DIM,), NOISE) if last else model.min_scale + softplus(net.bias[dims[level] :])
        # The columns of a net with skips are the layer next above, then those above it: blocks from the bottom up.
        blocks = weight.split([*reversed(dims[:level])], -1) if model.skip else [weight]
        above = torch.cat([*reversed(blocks)], -1)
        above = torch.cat([above.new_zeros(len(above), len(loc) - above.shape[1]), above], -1)
        across = above @ covariance
        below = torch.cat([across, across @ above.T + torch.diag(scale.double() ** 2)], -1)
        covariance = torch.cat([torch.cat([covariance, across.T], -1), below])
        loc = torch.cat([loc, above @ loc + bias])
    return loc, covariance


def log_prob(model, x):
    loc, covariance = joint(model)
    return MultivariateNormal(loc[-X_DIM:], covariance[-X_DIM:, -X_DIM:]).log_prob(x)


def posterior(model):
    """The guide that draws z_L, then z_L-1 given it, ..., from the posterior: Gaussians given (x, all layers above)."""
    loc, covariance = joint(model)

    def guide(x):
        known, given = torch.arange(len(loc) - X_DIM, len(loc)), x
        start = 0
        with pyro.plate("data", len(x)):
            for number in reversed(range(1, len(model.latent_dims) + 1)):
                own = torch.arange(start, start + model.latent_dims[number - 1])
                gain = torch.linalg.solve(covariance[known][:, known], covariance[known][:, own]).T
                spread = covariance[own][:, own] - gain @ covariance[known][:, own]
                normal = dist.MultivariateNormal(loc[own] + (given - loc[known]) @ gain.T, spread)
                z = pyro.sample(f"z{number}", normal)
                given = torch.cat([given.expand(*z.shape[:-1], given.shape[-1]), z], -1)
                known, start = torch.cat([known, own]), start + len(own)

    return guide


def data(model, num):
    loc, covariance = joint(model)
    noise = torch.randn(num, X_DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return loc[-X_DIM:] + noise @ torch.linalg.cholesky(covariance[-X_DIM:, -X_DIM:]).T


@pytest.mark.parametrize(("latent_dims", "skip"), SHAPES)
def test_every_weight_of_the_posterior_is_log_p(latent_dims, skip):
    model = affine(latent_dims, skip)
    x = data(model, 6)
    values = pvae.log_weights(model, posterior(model), x, 5).values
    assert (values - log_prob(model, x)).abs().max() < 1e-10


@pytest.mark.parametrize(("latent_dims", "skip"), SHAPES[1:])
def test_draws_have_the_moments_of_the_joint(latent_dims, skip):
    model, num = affine(latent_dims, skip), 20_000
    draws = pvae.sample(model, num)
    names = [*(f"z{number}" for number in reversed(range(1, len(latent_dims) + 1))), "x"]
    assert list(draws) == names
    loc, covariance = joint(model)
    centred = torch.cat([draws[name] for name in names], -1) - loc
    variance = covariance.diagonal()
    assert (centred.mean(0).abs() < 5 * (variance / num).sqrt()).all()
    # The variance of a product of two Gaussians of mean 0.
    spread = (variance[:, None] * variance + covariance.square()).sqrt()
    assert ((centred.T @ centred / num - covariance).abs() < 5 * spread / math.sqrt(num)).all()


@pytest.mark.parametrize("family", [BottomUp, TopDown, Ladder])
def test_importance_sampling_finds_log_p(family):
    model = affine((3, 2), False)
    x = data(model, 200)
    torch.manual_seed(0)
    guide = family(model, x, hidden=(8,)).double()
    objective = ELBO(4, gradient="stl")
    result = pvae.fit(model, guide, x, objective=objective, train="guide", steps=400, lr=1e-2, step_mode="traced")
    assert result.step_mode == "traced"
    answer = pvae.log_marginal(model, guide, x, ImportanceSampling(2000))
    trusted = answer.khat < answer.khat_threshold
    assert trusted.double().mean() > 0.9
    exact = log_prob(model, x)
    assert ((answer.values - exact).abs() < 5 * answer.mc_standard_errors + 1e-9)[trusted].all()


def test_the_default_is_burdas_net():
    model = HierarchicalVAE((1, 28, 28))
    widths = [
        [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)] for net in model.nets
    ]
    assert widths == [[(100, 200), (200, 200), (200, 784)], [(50, 100), (100, 100), (100, 200)]]
    skip = HierarchicalVAE((1, 28, 28), (30, 20, 10), skip=True)
    firsts = [next(m for m in net.modules() if isinstance(m, nn.Linear)).in_features for net in skip.nets]
    assert firsts == [60, 30, 10]


def test_a_skip_reaches_the_data():
    torch.manual_seed(0)
    x = torch.rand(3, 1, 4, 4).round()
    for skip in (False, True):
        model = HierarchicalVAE((1, 4, 4), (3, 2), hidden=(5,), skip=skip)
        guide = TopDown(model, x, hidden=(5,))
        weights = pvae.log_weights(model, guide, x, 3)
        weights.log_likelihood.sum().backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in model.nets[0].parameters())
        first = model.nets[0].layers[0].weight.grad
        assert first.shape[1] == (5 if skip else 3)
        model.zero_grad()
        IWAE(3).bound(model, guide, x).sum().backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HierarchicalVAE((4,), ()), r"at least one layer, got none; try \(100, 50\)"),
        (lambda: HierarchicalVAE((4,), (3, 0)), "each of latent_dims must be a whole number of at least 1, got 0"),
        (lambda: HierarchicalVAE((4,), (3, 2), nets=[nn.Linear(3, 4)]), "nets must be one per layer.*got 1 for 2"),
        (lambda: HierarchicalVAE((4,))(torch.zeros(2, 5)), r"of shape \(B, 4\), got \(2, 5\)"),
    ],
)
def test_bad_input_is_refused_in_a_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_the_closed_form_of_the_kl_is_that_of_the_same_bound_for_a_guide_from_the_data_up():
    torch.manual_seed(0)
    model = HierarchicalVAE((4,), (2, 2), hidden=(5,))
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)).round()
    guide = BottomUp(model, x, hidden=(5,))
    with torch.no_grad():
        for parameter in [*model.parameters(), *guide.parameters()]:
            parameter.mul_(2.0)  # far enough from its start for z2 to say much of z1
        sampled, closed = (ELBO(20_000, kl=kl) for kl in ("sampled", "analytic"))
        draws = [torch.stack([each.bound(model, guide, x) for _ in range(10)]) for each in (sampled, closed)]
    error = (draws[0].var(0) + draws[1].var(0)).div(10).sqrt()
    assert ((draws[0].mean(0) - draws[1].mean(0)).abs() < 6 * error).all()
