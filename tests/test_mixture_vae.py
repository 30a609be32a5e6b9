"""The mixture VAE with an affine decoder, against the closed form of a mixture of Gaussians."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal

import pvae
from pvae.estimators import ImportanceSampling, Quadrature
from pvae.guides import FullCovariance, MeanField
from pvae.models import VAE, MixtureVAE
from pvae.models.likelihoods import Gaussian
from pvae.objectives import ELBO, IWAE
from pvae.pair.contexts import seeded

X_DIM, NOISE = 3, 0.5


def clusters(num_components=3):
    """A mixture with an affine decoder and unequal components, and data of it."""
    torch.manual_seed(0)
    decoder = nn.Linear(2, X_DIM)
    model = MixtureVAE((X_DIM,), 2, num_components, likelihood=Gaussian(NOISE), decoder=decoder).double()
    with torch.no_grad():
        model.logits.normal_()
        model.loc.mul_(2)
        model.raw_scale.normal_()
    return model, pvae.sample(model, 60, seed=1)


class Component(nn.Module):
    """The first component of a mixture as a prior."""

    def __init__(self, mixture):
        super().__init__()
        self.loc, self.scale = mixture.loc[0], mixture.scale[0]

    def forward(self):
        return dist.Normal(self.loc, self.scale).to_event(1)


@torch.no_grad()
def log_joint(model, x):
    """log p(y, x) for every y, (B, num_components), z integrated out."""
    weight, bias = model.decoder.weight, model.decoder.bias
    found = []
    for y in range(model.num_components):
        covariance = weight @ torch.diag(model.scale[y] ** 2) @ weight.T + NOISE**2 * torch.eye(X_DIM)
        marginal = MultivariateNormal(weight @ model.loc[y] + bias, covariance)
        found.append(model.logits.log_softmax(-1)[y] + marginal.log_prob(x))
    return torch.stack(found, -1)


def test_log_p_is_that_of_the_mixture():
    model, draws = clusters()
    x = draws["x"][:4]
    found = pvae.log_marginal(model, None, x, Quadrature())
    assert (found.values - log_joint(model, x).logsumexp(-1)).abs().max() < 1e-9


def test_a_guide_of_z_alone_gives_unbiased_weights():
    model, draws = clusters()
    guide = MeanField(model, draws["x"], hidden=(8,)).double()
    assert [site.name for site in guide.sites] == ["z"]
    pvae.fit(model, guide, draws["x"], objective=IWAE(10), train="guide", steps=300, lr=1e-2, step_mode="traced")
    found = pvae.log_marginal(model, guide, draws["x"], ImportanceSampling(4000))
    trusted = found.khat < found.khat_threshold
    assert trusted.double().mean() > 0.8
    exact = log_joint(model, draws["x"]).logsumexp(-1)
    assert ((found.values - exact).abs() < 5 * found.mc_standard_errors)[trusted].all()


def test_one_component_is_a_vae_with_a_gaussian_prior():
    model, draws = clusters(num_components=1)
    vae = VAE((X_DIM,), 2, likelihood=Gaussian(NOISE), prior=Component(model), decoder=model.decoder).double()
    guide = FullCovariance(model, draws["x"], hidden=(4,)).double()
    weights = []
    for each in (model, vae):
        with seeded(0):
            weights.append(pvae.log_weights(each, guide, draws["x"], 3).values)
    torch.testing.assert_close(*weights, rtol=0, atol=1e-10)


def test_responsibilities_are_those_of_bayes():
    model, draws = clusters()
    z = draws["z"]
    joint = model.logits.log_softmax(-1).exp() * torch.stack(
        [Normal(loc, scale).log_prob(z).sum(-1).exp() for loc, scale in zip(model.loc, model.scale, strict=True)], -1
    )
    found = model.responsibilities(z)
    torch.testing.assert_close(found, joint / joint.sum(-1, keepdim=True))
    torch.testing.assert_close(model.responsibilities(z[:6].unflatten(0, (2, 3))), found[:6].unflatten(0, (2, 3)))


def test_the_mean_of_responsibilities_over_draws_of_y_is_its_share():
    model, _ = clusters()
    num = 20_000
    draws = pvae.sample(model, num, seed=2)
    share = model.logits.softmax(-1)
    counts = torch.bincount(draws["y"], minlength=3) / num
    assert ((counts - share).abs() < 5 * (share * (1 - share) / num).sqrt()).all()
    found = model.responsibilities(draws["z"])
    assert ((found.mean(0) - share).abs() < 5 * found.std(0) / math.sqrt(num)).all()


def test_it_starts_at_the_components_of_its_codes():
    model, _ = clusters()
    with torch.no_grad():
        model.loc.copy_(torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]]))
    other, num = MixtureVAE((X_DIM,), 2, 3, likelihood=Gaussian(NOISE)).double(), 5000
    other.start_at(pvae.sample(model, num, seed=3)["z"])
    order = torch.cdist(model.loc, other.loc).argmin(-1)
    assert len(set(order.tolist())) == 3
    share = model.logits.softmax(-1)
    errors = model.scale / (share * num).sqrt()[:, None]
    assert ((other.loc[order] - model.loc).abs() < 5 * errors).all()
    assert ((other.scale[order] - model.scale).abs() < 5 * errors).all()
    assert ((other.logits.softmax(-1)[order] - share).abs() < 5 * (share * (1 - share) / num).sqrt()).all()


@pytest.mark.parametrize("step_mode", ["eager", "traced"])
def test_training_finds_the_clusters_of_its_data(step_mode):
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    x = 3 * torch.eye(3)[labels] + 0.3 * torch.randn(300, 3)
    options = {"likelihood": Gaussian(0.3), "decoder": nn.Linear(2, 3)}
    vae, model = VAE((3,), 2, **options), MixtureVAE((3,), 2, 3, **options)
    guide = MeanField(vae, x, hidden=(16,))
    pvae.fit(vae, guide, x, steps=300, lr=1e-2, step_mode="traced")
    model.start_at(pvae.encode(guide, x)["z"])
    result = pvae.fit(model, guide, x, objective=ELBO(2), steps=100, lr=3e-3, step_mode=step_mode)
    assert result.step_mode == step_mode
    assert result.losses[-20:].mean() < result.losses[:20].mean()
    found = model.responsibilities(pvae.encode(guide, x)["z"]).argmax(-1)
    # Each cluster is one component, whatever its number.
    table = torch.bincount(3 * labels + found, minlength=9).view(3, 3)
    assert table.max(1).values.sum() > 0.95 * len(x)
    assert len(set(table.argmax(1).tolist())) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixtureVAE((4,), 0), "latent_dim must be a whole number of at least 1, got 0; try 8"),
        (lambda: MixtureVAE((4,), 2, 0), "num_components must be a whole number of at least 1, got 0"),
        (lambda: MixtureVAE((4,), 2)(torch.zeros(3, 5)), r"of shape \(B, 4\), got \(3, 5\)"),
        (lambda: MixtureVAE((4,), 2).responsibilities(torch.zeros(3)), r"expected codes \(..., 2\), got \(3,\)"),
        (lambda: MixtureVAE((4,), 2, 5).start_at(torch.zeros(3, 2)), r"expected codes \(N, 2\), N >= 5, got \(3, 2\)"),
    ],
)
def test_bad_input_is_refused_in_a_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
