"""Labels for some of the data: weights, the classifier and its training against a closed form and sums by hand."""

import math

import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import nn
from torch.distributions import MultivariateNormal

import pvae
from pvae.estimators import ImportanceSampling
from pvae.guides import MeanField, SemiSupervised
from pvae.models import VAE, SemiSupervisedVAE
from pvae.models.likelihoods import Gaussian
from pvae.objectives import ELBO, IWAE, Supervised
from pvae.objectives.baselines import LeaveOneOut
from pvae.pair.contexts import seeded
from pvae.pair.store import private_store

X_DIM, NOISE, NUM_DATA = 3, 0.5, 8
LABELS = torch.tensor([0, -1, 1, -1, 1, 0, -1, -1])


def classes():
    """Two classes whose data are Gaussian, for the decoder is affine."""
    torch.manual_seed(0)
    decoder = nn.Linear(2 + 2, X_DIM)
    model = SemiSupervisedVAE((X_DIM,), 2, 2, likelihood=Gaussian(NOISE), decoder=decoder).double()
    with torch.no_grad():
        model.logits.copy_(torch.tensor([0.4, -0.3]))
        decoder.weight[:, 2:] *= 3
        # Orthogonal columns make p(z | x, y) a product.
        decoder.weight[:, :2] = torch.tensor([[1.0, -0.5], [0.0, 1.0], [0.5, 1.0]])
    return model


def data():
    return pvae.sample(classes(), NUM_DATA, like=torch.zeros(1, X_DIM).double(), seed=1)["x"]


@torch.no_grad()
def log_joint(model, x):
    """log p(x, y) for both y, (B, 2)."""
    weight = model.decoder.weight
    covariance = weight[:, :2] @ weight[:, :2].T + NOISE**2 * torch.eye(X_DIM)
    parts = [MultivariateNormal(weight[:, 2 + y] + model.decoder.bias, covariance).log_prob(x) for y in range(2)]
    return model.logits.log_softmax(-1) + torch.stack(parts, -1)


def log_seen(model, x, y):
    """log p(x, y) where y is known, log p(x) elsewhere."""
    joint = log_joint(model, x)
    return torch.where(y >= 0, joint.gather(1, y.clamp(min=0)[:, None])[:, 0], joint.logsumexp(1))


@torch.no_grad()
def posterior(model, x):
    """The guide with its affine nets at q(y | x) = p(y | x) and q(z | x, y) = p(z | x, y)."""
    guide = SemiSupervised(model, x, hidden=(), encoder=nn.Identity(), classifier=nn.Linear(X_DIM, 2)).double()
    weight, bias = model.decoder.weight[:, :2], model.decoder.bias
    shift = model.decoder.weight[:, 2:].T
    covariance = weight @ weight.T + NOISE**2 * torch.eye(X_DIM)
    # The log odds of two Gaussians of one covariance are affine.
    slope = torch.linalg.solve(covariance, (shift + bias).T).T
    guide.classifier.weight.copy_(slope)
    guide.classifier.bias.copy_(model.logits - 0.5 * ((shift + bias) * slope).sum(-1))
    precision = 1 + weight.square().sum(0) / NOISE**2
    gain = weight.T / NOISE**2 / precision[:, None]
    raw = (precision.rsqrt() - 1e-4).expm1().log()
    for net in (guide.encoder.head, guide.conditional.first):
        net.weight.zero_()
        net.bias.zero_()
    guide.encoder.head.weight[0::2] = gain
    guide.conditional.first.weight[0::2] = -gain @ shift.T
    guide.encoder.head.bias[0::2], guide.encoder.head.bias[1::2] = -gain @ bias, raw
    return guide


@pytest.mark.parametrize("labels", ["some", "all", "none"])
def test_at_the_posterior_every_weight_is_log_p_of_what_was_seen(labels):
    y = {"some": LABELS, "all": LABELS.clamp(min=0), "none": torch.full_like(LABELS, -1)}[labels]
    model, x = classes(), data()
    guide, exact = posterior(model, x), log_seen(model, x, y)
    torch.testing.assert_close(guide.classify(x), log_joint(model, x).softmax(-1), rtol=0, atol=1e-10)
    with torch.no_grad():
        weights = pvae.log_weights(model, guide, (x, y), 5).values
        assert (weights - exact).abs().max() < 1e-10
        for kl in ("sampled", "analytic"):
            bound = ELBO(50, kl=kl).bound(model, guide, (x, y))
            assert ((bound - exact).abs() < (1e-10 if kl == "sampled" else 0.5)).all()


def test_other_guides_have_the_label_summed_out():
    model, x = classes(), data()
    guide = MeanField(model, (x, LABELS), hidden=(8,)).double()
    options = {"steps": 300, "lr": 1e-2, "batch_size": NUM_DATA, "train": "guide", "step_mode": "traced"}
    result = pvae.fit(model, guide, (x, LABELS), objective=IWAE(5), **options)
    assert result.step_mode == "traced"
    found = pvae.log_marginal(model, guide, (x, LABELS), ImportanceSampling(4000))
    exact = log_seen(model, x, LABELS)
    trusted = found.khat < found.khat_threshold
    assert trusted.sum() > NUM_DATA / 2
    assert ((found.values - exact).abs() < 5 * found.mc_standard_errors)[trusted].all()


def test_training_goes_to_the_posterior():
    model, x = classes(), data()
    torch.manual_seed(1)
    guide = SemiSupervised(model, x, hidden=(8,)).double()
    options = {"steps": 600, "lr": 2e-2, "schedule": "cosine", "batch_size": NUM_DATA, "train": "guide"}
    objective = ELBO(2)
    result = pvae.fit(model, guide, (x, LABELS), objective=objective, step_mode="traced", **options)
    assert result.step_mode == "traced"
    with torch.no_grad():
        gap = log_seen(model, x, LABELS) - ELBO(2000).bound(model, guide, (x, LABELS))
    assert -0.01 < gap.mean() < 0.05


def test_labels_that_are_all_missing_may_be_left_out():
    model, x = classes(), data()
    guide = SemiSupervised(model, x, hidden=(4,)).double()
    weights = []
    for batch in (x, (x, torch.full_like(LABELS, -1))):
        with seeded(0):
            weights.append(pvae.log_weights(model, guide, batch, 3).values)
    assert torch.equal(*weights)


def test_the_bound_and_its_gradient_are_those_of_pyros_enumeration():
    model, x = classes(), data()
    torch.manual_seed(0)
    guide = SemiSupervised(model, x, hidden=(4,)).double()
    parameters = [*model.parameters(), *guide.parameters()]
    # Pyro counts a masked site once for every state, so that no label may be known.
    y = torch.full_like(LABELS, -1)
    losses = []
    for objective in (ELBO(), TraceEnum_ELBO(max_plate_nesting=1)):
        if isinstance(objective, ELBO):
            objective.bound(model, guide, (x, y))  # finds out how to run the pair, by draws of its own
        with private_store(model, guide), seeded(3):
            losses.append(objective.differentiable_loss(model, guide, x, y))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("inner", [ELBO(2), IWAE(3, gradient="mixed", baseline=LeaveOneOut())], ids=["ELBO", "IWAE"])
def test_supervised_adds_the_log_probability_of_the_labels(inner):
    model, x = classes(), data()
    torch.manual_seed(0)
    guide = SemiSupervised(model, x, hidden=(4,)).double()
    objective, batch = Supervised(inner, weight=1.7), (x, LABELS)
    bounds = []
    for each in (inner, objective):
        each.bound(model, guide, batch)
        with seeded(0):
            bounds.append(each.bound(model, guide, batch))
    log_q = guide.classifier(x).log_softmax(-1).gather(1, LABELS.clamp(min=0)[:, None])[:, 0]
    expected = 1.7 * torch.where(LABELS >= 0, log_q, 0.0)
    torch.testing.assert_close(bounds[1] - bounds[0], expected, rtol=0, atol=1e-10)
    assert (bounds[1] <= bounds[0]).all()
    parameters = [*guide.classifier.parameters()]
    found = [torch.autograd.grad(each.sum(), parameters, retain_graph=True) for each in (*bounds, expected)]
    for without, together, term in zip(*found, strict=True):
        torch.testing.assert_close(together, without + term, rtol=1e-9, atol=1e-10)


def test_supervised_is_the_bound_alone_for_a_pair_without_labels():
    torch.manual_seed(0)
    model, x = VAE((X_DIM,), 2, likelihood=Gaussian(NOISE)).double(), data()
    guide = MeanField(model, x, hidden=(4,)).double()
    bounds = []
    for objective in (ELBO(2), Supervised(ELBO(2), weight=3.0)):
        objective.bound(model, guide, x)
        with seeded(0):
            bounds.append(objective.bound(model, guide, x))
    assert torch.equal(*bounds)


def test_a_few_labels_name_the_clusters_of_the_rest():
    torch.manual_seed(0)
    truth = torch.arange(240) % 3
    x = 2 * torch.eye(3)[truth] + 0.4 * torch.randn(240, 3)
    y = torch.where(torch.arange(240) < 6, truth, -1)
    model = SemiSupervisedVAE((3,), 1, 3, likelihood=Gaussian("shared"))
    guide = SemiSupervised(model, (x, y), hidden=(16,))
    objective = Supervised(weight=10.0)
    result = pvae.fit(model, guide, (x, y), objective=objective, steps=150, lr=2e-2, step_mode="traced")
    assert result.step_mode == "traced"
    assert (guide.classify(x).argmax(-1) == truth).double().mean() > 0.97
    drawn = model.decode(torch.zeros(3, 1), torch.arange(3)).argmax(-1)
    assert drawn.tolist() == [0, 1, 2]


def test_draws_have_the_shares_of_the_classes():
    model, num = classes(), 20_000
    draws = pvae.sample(model, num, like=data()[:1])
    share = model.logits.softmax(-1).detach()
    counts = torch.bincount(draws["y_unobserved"], minlength=2) / num
    assert ((counts - share).abs() < 5 * (share * (1 - share) / num).sqrt()).all()
    mean = share @ (model.decoder.weight[:, 2:].T + model.decoder.bias).detach()
    assert ((draws["x"].mean(0) - mean).abs() < 5 * draws["x"].std(0) / math.sqrt(num)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SemiSupervisedVAE((4,), 0), "latent_dim must be a whole number of at least 1, got 0"),
        (lambda: SemiSupervisedVAE((4,), 2, 1), "num_classes must be a whole number of at least 2, got 1"),
        (lambda: SemiSupervisedVAE((4,), 2)(torch.zeros(3, 5)), r"of shape \(B, 4\), got \(3, 5\)"),
        (lambda: SemiSupervised(VAE((4,), 2), torch.zeros(3, 4)), "SemiSupervisedVAE, got VAE; use MeanField"),
        (lambda: Supervised(weight=-1.0), "weight must be a finite number of at least 0, got -1.0"),
        (lambda: Supervised("elbo"), "one of pvae.objectives, built, got 'elbo'"),
    ],
)
def test_bad_input_is_refused_in_a_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_labels_are_numbers_or_one_hot_rows():
    torch.manual_seed(0)
    model = SemiSupervisedVAE((4,), 2, 3)
    x = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)).round()
    y = torch.tensor([2, -1, 0, 1, -1])
    rows = torch.tensor([[0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]]).float()
    guide = SemiSupervised(model, (x, y), hidden=(5,))
    found = []
    for labels in (y, rows):
        torch.manual_seed(1)
        found.append(pvae.log_weights(model, guide, (x, labels), 4).values)
    assert torch.equal(*found)
    torch.manual_seed(1)
    unlabelled = pvae.log_weights(model, guide, x, 4).values
    assert not torch.allclose(found[0][:, [0, 2, 3]], unlabelled[:, [0, 2, 3]])
